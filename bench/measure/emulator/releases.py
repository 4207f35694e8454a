"""The order that atomics and fences make, between blocks and between a block's warps
(PTX ISA, "Memory Consistency Model", "membar / fence").

Who releases at an address (an access that does, or one behind a fence) hands on there
all that it did and has seen; who acquires there has seen it from then on. What is behind
a fence is what came before that fence, not what came after.
"""

from __future__ import annotations

from numba import int64, uint32, uint64

from batchline.bench.measure.emulator import clusters, order
from batchline.bench.measure.emulator.layout import (
    ACQUIRES,
    HEADER,
    IS_OF_BLOCK,
    PARAMETERS,
    RELEASES,
    SYNCS,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.raw import (
    longs_at,
    read32,
    read64,
    words_at,
    write32,
    write64,
)


@compile_native
def fenced_of(m, warp):
    """The address of what a warp knows to be before a memory fence."""
    return m.memory_fenced + warp * m.agents * 4


@compile_native
def fenced_at(m, number):
    """Likewise of the warps that have arrived at a barrier."""
    return m.barrier_fenced + number * m.agents * 4


@compile_native
def synchronise(m, warp, lane, key, action):
    """What an atomic, or another strong access, at an address orders. `key` is the
    address, or that of shared memory in its window.
    """
    state = order.warp_at(m, warp)
    mine = uint32(1) << uint32(lane)
    is_fenced = state.fenced & mine != uint32(0)
    is_fenced_in_block = (state.fenced | state.fenced_in_block) & mine != uint32(0)
    number = _place_of(m, key)
    if number < 0:
        return
    state.touched = number + 1
    clocks = m.sync_clocks + number * m.agents * 4
    if action & ACQUIRES or is_fenced_in_block:
        order.join(m, order.clocks_of(m, warp), clocks)
    if action & RELEASES or is_fenced_in_block:
        order.hand_on(m, warp, mine, clocks, order.clocks_of(m, warp))
    if not action & IS_OF_BLOCK:
        if action & ACQUIRES or is_fenced:
            _acquire(m, warp, number)
        if action & RELEASES:
            _release(m, warp, mine, number, order.clocks_of(m, warp))
        elif is_fenced:
            _release(m, warp, mine, number, fenced_of(m, warp))
    if action & RELEASES or is_fenced_in_block:
        order.tick(m, warp)


@compile_native
def is_ordering(m, warp, action):
    """Whether an atomic on shared memory may order anything: most of them don't."""
    if action & (ACQUIRES | RELEASES):
        return True
    return order.warp_at(m, warp).fenced_in_block != uint32(0)


@compile_native
def _place_of(m, key):
    """The number of an address at which something is handed on; -1: too many."""
    places = longs_at(m.sync_places, SYNCS)
    for known in range(m.n_syncs):
        if places[known] == key:
            return known
    if m.n_syncs == SYNCS:
        return int64(-1)
    places[m.n_syncs] = key
    m.n_syncs += 1
    return m.n_syncs - 1


@compile_native
def _acquire(m, warp, number):
    words = (m.n_blocks + 63) >> 6
    _unite(m.seen + m.block * words * 8, m.sync_sets + number * words * 8, words)
    state = order.warp_at(m, warp)
    if not state.acquired:
        state.acquired = words_at(order.clocks_of(m, warp), m.agents)[warp]


@compile_native
def _release(m, warp, lanes, number, known):
    """Hand on at a place what the block has seen, and what lanes of a warp know of its
    own events: the clocks at address `known`.
    """
    words = (m.n_blocks + 63) >> 6
    handed_on = m.sync_sets + number * words * 8
    _unite(handed_on, m.seen + m.block * words * 8, words)
    word = handed_on + (m.block >> 6) * 8
    write64(word, read64(word) | uint64(1) << uint64(m.block & 63))
    order.hand_on(m, warp, lanes, m.released + m.block * m.agents * 4, known)
    place = m.released_lanes + (m.block * m.n_warps + warp) * 4
    write32(place, uint32(read32(place) | lanes))


@compile_native
def _unite(into, source, words):
    for word in range(words):
        place = into + word * 8
        write64(place, read64(place) | read64(source + word * 8))


@Handler
def fence_memory(machine, pc, warp, registers, row, mask):
    """membar and fence: a relaxed atomic from now on releases what was before, and the
    one before has acquired. Parameter 0: it is of the block's scope.
    """
    m = machine_at(machine)
    state = order.warp_at(m, warp)
    state.fenced_in_block |= mask
    if m.seen:
        if state.touched:
            number = state.touched - 1
            clocks = m.sync_clocks + number * m.agents * 4
            order.join(m, order.clocks_of(m, warp), clocks)
        if not words_at(row, HEADER)[PARAMETERS]:
            if state.touched:
                _acquire(m, warp, state.touched - 1)
            state.fenced |= mask
            order.hand_on(m, warp, mask, fenced_of(m, warp), order.clocks_of(m, warp))
    clusters.note_fence(m, warp, mask)
    clock = order.tick(m, warp) + 1
    if mask == state.alive:
        state.lanes_fenced = clock
    return DONE
