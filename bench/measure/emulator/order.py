"""What happened before what, by vector clocks, and the checks that follow from it.

Agents are the warps of a block and, of each warp, its asynchronous copies, tensor
copies, wgmma, and what its tensor copies write to global memory. `clocks[a][b]` is the
last event of agent b that a knows to be over; `fenced[a][b]` likewise, of what a proxy
fence has made visible to the asynchronous proxy. Clocks go on from block to block, and a
block starts with all that was before it.
(FastTrack, Flanagan and Freund 2009, with all readers of a granule kept.)

The lanes of a warp share its clock. An event keeps its lane, and `lanes_synced` is the
clock at which they last waited for one another: of what came later each knows its own.
One more agent of each warp stands for events that some lanes alone have handed on.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import int32, int64, uint8, uint32

from batchline.bench.measure.emulator.layout import (
    ALLOCATION_CHECKED,
    ALLOCATION_INITIALISED,
    ALLOCATION_WORDS,
    ALLOCATION_WRITTEN,
    FINDING,
    FINDINGS_KEPT,
    LANES,
    MBARRIER,
    SHADOW_INITIALISED,
    SHADOW_READ,
    SHADOW_WRITTEN,
    SHARED_MBARRIER,
    SHARED_WRITTEN,
    WARP,
    Finding,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.raw import (
    bytes_at,
    copy,
    count_ones,
    longs_at,
    read8,
    read32,
    read64,
    record_reader,
    words_at,
    write8,
    write32,
    write64,
)

# An epoch is the clock (28 bits), the agent (8 bits), the instruction (20 bits) and the
# lane (5 bits) of an access, and two bits: whether more lanes than this one have made
# it, and whether it is an atomic of the block's scope. In global memory the block is
# beside that, in a word of its own.
_CLOCK_BITS, _AGENT_BITS, _PC_BITS, _LANE_BITS = 28, 8, 20, 5
_CLOCK_MASK, _AGENT_MASK = (1 << _CLOCK_BITS) - 1, (1 << _AGENT_BITS) - 1
_PC_MASK, _LANE_MASK = (1 << _PC_BITS) - 1, (1 << _LANE_BITS) - 1
_PC_SHIFT = _CLOCK_BITS + _AGENT_BITS
_LANE_SHIFT = _PC_SHIFT + _PC_BITS
_OF_MORE_LANES = 1 << (_LANE_SHIFT + _LANE_BITS)
_OF_BLOCK_SCOPE = _OF_MORE_LANES << 1

_ALL_LANES = np.uint32(0xFFFFFFFF)
_finding = record_reader(FINDING)
_mbarrier = record_reader(MBARRIER)
_MBARRIER_BYTES = MBARRIER.itemsize
_warp = record_reader(WARP)
_WARP_BYTES = WARP.itemsize
_FINDING_BYTES = FINDING.itemsize
_INITIALISED_4 = np.uint32(SHADOW_INITIALISED * 0x01010101)
_WRITTEN_4 = np.uint32(0x01010101)  # a byte's state has this bit or the one above it
_READ_4 = np.uint32(SHADOW_READ * 0x01010101)
_NOW_WRITTEN_4 = np.uint32((SHADOW_INITIALISED | SHADOW_WRITTEN) * 0x01010101)

NONE = int(Finding.NONE)
OUT_OF_BOUNDS = int(Finding.OUT_OF_BOUNDS)
PAST_THE_END = int(Finding.PAST_THE_END)
UNINITIALISED_GLOBAL = int(Finding.UNINITIALISED_GLOBAL)
UNINITIALISED_SHARED = int(Finding.UNINITIALISED_SHARED)
RACE_SHARED = int(Finding.RACE_SHARED)
RACE_GLOBAL = int(Finding.RACE_GLOBAL)
MISSING_WAIT = int(Finding.MISSING_WAIT)
MISSING_PROXY_FENCE = int(Finding.MISSING_PROXY_FENCE)


@compile_native
def report(m, kind, pc, warp, lane, address, other_pc):
    """Note what was found; the same at the same instruction is counted."""
    for number in range(m.n_findings):
        known = _finding(m.findings + number * _FINDING_BYTES)
        if known.kind == kind and known.pc == pc:
            known.times += 1
            return
    if m.n_findings == FINDINGS_KEPT:
        return
    new = _finding(m.findings + m.n_findings * _FINDING_BYTES)
    new.kind = kind
    new.pc = pc
    rank = warp // m.block_warps
    new.block = longs_at(m.block_numbers, m.cluster_blocks)[rank]
    new.warp = warp - rank * m.block_warps
    new.lane = lane
    new.address = address
    new.other_pc = other_pc
    new.times = 1
    m.n_findings += 1


@compile_native
def has_fault(m):
    """Whether anything was found that is not only noted."""
    for number in range(m.n_findings):
        if _finding(m.findings + number * _FINDING_BYTES).kind != PAST_THE_END:
            return True
    return False


@compile_native
def warp_at(m, warp):
    """The record of a warp."""
    return _warp(m.warps + warp * _WARP_BYTES)


# --- clocks -------------------------------------------------------------------------


@compile_native
def tick(m, agent):
    """Begin the next event of an agent; the clock of the one before."""
    clocks = words_at(m.clocks, m.agents * m.agents)
    place = agent * m.agents + agent
    before = clocks[place]
    clocks[place] = before + 1
    return before


@compile_native
def join(m, into, source):
    """Raise the clocks at address `into` to those at `source`, elementwise."""
    target = words_at(into, m.agents)
    other = words_at(source, m.agents)
    for agent in range(m.agents):  # without a branch, for vector instructions
        target[agent] = max(target[agent], other[agent])


@compile_native
def clocks_of(m, agent):
    """The address of an agent's vector clock."""
    return m.clocks + agent * m.agents * 4


@compile_native
def fenced_of(m, agent):
    """The address of what of it is visible to the asynchronous proxy."""
    return m.fenced + agent * m.agents * 4


@compile_native
def hand_on(m, warp, mask, into, source):
    """Raise the clocks at `into` to those at `source`, as lanes `mask` of a warp know
    them: of their own warp, what was before its lanes last waited for one another, and
    what they have done themselves since.
    """
    state = warp_at(m, warp)
    target, other = words_at(into, m.agents), words_at(source, m.agents)
    own = target[warp]
    join(m, into, source)
    if mask == state.alive:
        return
    target[warp] = max(own, min(int64(other[warp]), int64(state.lanes_synced) - 1))
    lanes = m.lane_agent + warp
    clock = max(other[warp], other[lanes])
    target[lanes] = max(target[lanes], clock)
    released = words_at(m.lane_released + warp * LANES * 4, LANES)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            released[lane] = max(released[lane], clock)


@compile_native
def sync_lanes(m, warp):
    """The lanes of a warp have waited for one another: each knows what all have done."""
    tick(m, warp)
    state = warp_at(m, warp)
    known = words_at(clocks_of(m, warp), m.agents)
    state.lanes_synced = known[warp]
    state.copies_synced = known[m.copy_agent + warp]
    if state.fenced:
        state.fenced = _ALL_LANES
    if state.fenced_in_block:
        state.fenced_in_block = _ALL_LANES


@compile_native
def sync_some_lanes(m, warp, members):
    """Likewise of some lanes only."""
    clock = tick(m, warp) + 1
    table = words_at(m.lane_clocks + warp * LANES * LANES * 4, LANES * LANES)
    for lane in range(LANES):
        if not (members >> uint32(lane)) & uint32(1):
            continue
        for other in range(LANES):
            if (members >> uint32(other)) & uint32(1):
                table[lane * LANES + other] = clock


@compile_native
def meet_lanes(m, warp, mask):
    """Lanes execute an instruction together that orders no memory (a shuffle): if they
    are all, what each has read before is read; and written, if it has made a fence.
    """
    state = warp_at(m, warp)
    if mask != state.alive:
        return
    clock = words_at(clocks_of(m, warp), m.agents)
    clock[warp] += 1
    state.lanes_met = clock[warp]
    if state.lanes_fenced > state.lanes_synced:
        state.lanes_synced = state.lanes_fenced


@compile_native
def know(m, warp, agent, clock):
    """Warp `warp` has waited for event `clock` of an asynchronous agent."""
    known = words_at(clocks_of(m, warp), m.agents)
    known[agent] = max(known[agent], clock)
    if agent >= 2 * m.n_warps:  # it is in the asynchronous proxy itself
        visible = words_at(fenced_of(m, warp), m.agents)
        visible[agent] = max(visible[agent], clock)


@Handler
def fence_proxy(machine, pc, warp, registers, row, mask):
    """fence.proxy.async: what the warp knows is visible to the asynchronous proxy."""
    m = machine_at(machine)
    hand_on(m, warp, mask, fenced_of(m, warp), clocks_of(m, warp))
    tick(m, warp)
    return DONE


@compile_native
def issue(m, agent):
    """The clock of an asynchronous operation that begins now."""
    clocks = words_at(m.clocks, m.agents * m.agents)
    place = agent * m.agents + agent
    clocks[place] += 1
    return clocks[place]


@compile_native
def begin_block(m):
    """All that was before is over, and known to every warp."""
    clocks = words_at(m.clocks, m.agents * m.agents)
    fenced = words_at(m.fenced, m.agents * m.agents)
    for agent in range(m.agents):  # the first row is that of all
        fenced[agent] = clocks[agent * m.agents + agent] + 1
    for other in range(m.agents):
        copy(clocks_of(m, other), m.fenced, m.agents * 4)
    for other in range(1, m.agents):
        copy(fenced_of(m, other), m.fenced, m.agents * 4)
    if m.seen:
        copy(m.memory_fenced, m.fenced, m.n_warps * m.agents * 4)
    for agent in range(m.n_warps):
        clocks[agent * m.agents + agent] += 1


# --- shared memory ------------------------------------------------------------------


@compile_native
def _epoch(agent, clock, pc, lane):
    place = (int64(lane) & _LANE_MASK) << _LANE_SHIFT
    return place | (pc << _PC_SHIFT) | (agent << _CLOCK_BITS) | clock


@compile_native
def pc_of(epoch):
    """The instruction of an access."""
    return (epoch >> _PC_SHIFT) & _PC_MASK


@compile_native
def _lane_of(epoch):
    return (epoch >> _LANE_SHIFT) & _LANE_MASK


@compile_native
def _with_lanes_before(m, warp, before, epoch):
    """The epoch of an access, which says too whether other lanes of its warp have made
    one of the kind since they last waited for one another.
    """
    if (before >> _CLOCK_BITS) & _AGENT_MASK != (epoch >> _CLOCK_BITS) & _AGENT_MASK:
        return epoch
    if before & _CLOCK_MASK < warp_at(m, warp).lanes_synced:
        return epoch
    is_of_more = before & _OF_MORE_LANES or _lane_of(before) != _lane_of(epoch)
    return epoch | _OF_MORE_LANES if is_of_more else epoch


# --- lanes --------------------------------------------------------------------------


@compile_native
def has_handed_on(m, knower, warp, lane, clock):
    """Whether `knower`, the address of clocks, knows event `clock` of one lane, which
    that lane has handed on without the others.
    """
    if words_at(knower, m.agents)[m.lane_agent + warp] < clock:
        return False
    return words_at(m.lane_released + warp * LANES * 4, LANES)[lane] >= clock


@compile_native
def _is_known_of(m, warp, lane, other, clock):
    """Whether a lane knows event `clock` of another lane of its warp, which came after
    all had waited for one another.
    """
    if lane >= 0:
        table = words_at(m.lane_clocks + warp * LANES * LANES * 4, LANES * LANES)
        if table[lane * LANES + other] > clock:
            return True
    return has_handed_on(m, clocks_of(m, warp), warp, other, clock)


@compile_native
def _lane_conflict(m, warp, lane, before):
    """What an access by a lane (-1: by all of them at once) lacks after one by its own
    warp, or by a copy that this has waited for; or NONE.
    """
    state = warp_at(m, warp)
    other, clock = (before >> _CLOCK_BITS) & _AGENT_MASK, before & _CLOCK_MASK
    if _lane_of(before) == lane and not before & _OF_MORE_LANES:
        return NONE
    if other != warp:
        return MISSING_WAIT if clock > state.copies_synced else NONE
    if clock < state.lanes_synced:
        return NONE
    if _is_known_of(m, warp, lane, _lane_of(before), clock):
        return NONE
    return RACE_SHARED


@compile_native
def _is_settled(m, warp, known, synced, before):
    """Whether an access by any lane of a warp is in order after the one with epoch
    `before`: what is so nearly always, and quick to tell.
    """
    other, clock = (before >> _CLOCK_BITS) & _AGENT_MASK, before & _CLOCK_MASK
    if known[other] < clock or other == m.copy_agent + warp:
        return False
    return other != warp or clock < synced


@compile_native
def _conflict(m, warp, agent, lane, before, is_read):
    """What an access after the one with epoch `before` lacks, or NONE.

    `agent` is a warp or one of its asynchronous agents, on whose behalf `warp` issues.
    What the asynchronous proxy reads must have been made visible to it. What it writes
    need not: compilers let a copy overwrite what a barrier has ordered.
    """
    other = (before >> _CLOCK_BITS) & _AGENT_MASK
    clock = before & _CLOCK_MASK
    if words_at(m.clocks + warp * m.agents * 4, m.agents)[other] < clock:
        if other >= m.n_warps:
            return MISSING_WAIT
        if not has_handed_on(m, clocks_of(m, warp), other, _lane_of(before), clock):
            return RACE_SHARED
    elif other == warp or other == m.copy_agent + warp:
        fault = _lane_conflict(m, warp, lane, before)
        if fault:
            return fault
    if is_read and agent >= 2 * m.n_warps and other < 2 * m.n_warps:
        visible = fenced_of(m, warp)
        if words_at(visible, m.agents)[other] < clock:
            if other >= m.n_warps or not has_handed_on(
                m, visible, other, _lane_of(before), clock
            ):
                return MISSING_PROXY_FENCE
    return NONE


@compile_native
def read_shared(m, pc, warp, lane, agent, clock, address, count):
    """Check a read of `count` bytes of shared memory, which must be inside, and
    note it.
    """
    if not _is_written(m, address, count):
        report(m, UNINITIALISED_SHARED, pc, warp, lane, address, -1)
    granules = (m.shared_bytes >> m.granule_shift) + 1
    writers = longs_at(m.writers, 2 * granules)
    synced = warp_at(m, warp).lanes_synced
    mine = int32(uint32(1) << uint32(lane)) if lane >= 0 else int32(0)
    first = address >> m.granule_shift
    last = (address + count - 1) >> m.granule_shift
    known = words_at(clocks_of(m, warp), m.agents)
    for granule in range(first, last + 1):
        before = writers[granule]
        if before and not (
            agent == warp and _is_settled(m, warp, known, synced, before)
        ):
            fault = _conflict(m, warp, agent, lane, before, True)
            if fault:
                report(m, fault, pc, warp, lane, address, pc_of(before))
        if m.has_atomics:
            before = writers[granules + granule]
            fault = _conflict(m, warp, agent, lane, before, True) if before else NONE
            if fault:
                report(m, fault, pc, warp, lane, address, pc_of(before))
        reads = words_at(_reads_of(m, granule), m.readers + m.n_warps)
        if agent == warp:
            if reads[agent] >= synced:
                reads[m.readers + warp] |= mine
            else:
                reads[m.readers + warp] = mine
        reads[agent] = clock


@compile_native
def _reads_of(m, granule):
    """The address of the clocks of the agents that have read a granule of shared memory
    last, and behind them, of each warp, of the lanes that have read it since they last
    waited for one another.
    """
    return m.reads + granule * (m.readers + m.n_warps) * 4


@compile_native
def _is_written(m, address, count):
    """Whether each of these bytes of shared memory has been written."""
    place, end = m.shared_state + address, m.shared_state + address + count
    while place + 4 <= end:
        state = read32(place)
        if (state | state >> uint32(1)) & _WRITTEN_4 != _WRITTEN_4:
            return False
        place += 4
    while place < end:
        if not read8(place):
            return False
        place += 1
    return True


@compile_native
def _destroy_mbarriers(m, address, count):
    """Compilers do put other data where an mbarrier was: it is none from now on."""
    state = bytes_at(m.shared_state, m.shared_bytes)
    for number in range(m.n_mbarriers):
        known = _mbarrier(m.mbarriers + number * _MBARRIER_BYTES)
        if not known.is_valid or known.address >= address + count:
            continue
        if address < known.address + 8:
            known.is_valid = 0
            for place in range(known.address, known.address + 8):
                state[place] &= ~SHARED_MBARRIER


@compile_native
def write_shared(m, pc, warp, lane, agent, clock, address, count, data):
    """Check a write of `count` bytes of shared memory, which must be inside, and
    note it.

    `data` is the address of what is to be written, or 0: two warps that write the same
    bytes, as they do with what both hold, don't harm each other.
    """
    state = bytes_at(m.shared_state, m.shared_bytes)
    is_mbarrier = False
    for place in range(address, address + count):
        if state[place] & SHARED_MBARRIER:
            is_mbarrier = True
        state[place] |= SHARED_WRITTEN
    if is_mbarrier:
        _destroy_mbarriers(m, address, count)
    granules = (m.shared_bytes >> m.granule_shift) + 1
    writers = longs_at(m.writers, 2 * granules)
    known = words_at(clocks_of(m, warp), m.agents)
    synced = warp_at(m, warp).lanes_synced
    first = address >> m.granule_shift
    last = (address + count - 1) >> m.granule_shift
    for granule in range(first, last + 1):
        before = writers[granule]
        if before and not _is_settled(m, warp, known, synced, before):
            _check_writer(m, pc, warp, lane, agent, before, address, count, data)
        before = writers[granules + granule] if m.has_atomics else 0
        if before and not _is_settled(m, warp, known, synced, before):
            _check_writer(m, pc, warp, lane, agent, before, address, count, data)
        _check_readers(m, pc, warp, lane, address, granule)
        writers[granule] = _epoch(agent, clock, pc, lane)


@compile_native
def _check_writer(m, pc, warp, lane, agent, before, address, count, data):
    """Check a write against an earlier one."""
    fault = _conflict(m, warp, agent, lane, before, False)
    if fault and not (fault == RACE_SHARED and _is_same(m, address, count, data)):
        report(m, fault, pc, warp, lane, address, pc_of(before))


@compile_native
def update_shared(m, pc, warp, lane, clock, address, count):
    """Check an atomic on `count` bytes of shared memory, which must be inside, and note
    it: a write that no other atomic conflicts with.
    """
    if not _is_written(m, address, count):
        report(m, UNINITIALISED_SHARED, pc, warp, lane, address, -1)
    granules = (m.shared_bytes >> m.granule_shift) + 1
    writers = longs_at(m.writers, 2 * granules)
    first = address >> m.granule_shift
    last = (address + count - 1) >> m.granule_shift
    for granule in range(first, last + 1):
        before = writers[granule]
        if before:
            fault = _conflict(m, warp, warp, lane, before, False)
            if fault:
                report(m, fault, pc, warp, lane, address, pc_of(before))
        _check_readers(m, pc, warp, lane, address, granule)
        mine = _epoch(warp, clock, pc, lane)
        before = writers[granules + granule]
        writers[granules + granule] = _with_lanes_before(m, warp, before, mine)


@compile_native
def _is_same(m, address, count, data):
    """Whether the bytes at `data` are in shared memory already."""
    if not data:
        return False
    for place in range(count):
        if read8(m.shared + address + place) != read8(data + place):
            return False
    return True


@compile_native
def _check_readers(m, pc, warp, lane, address, granule):
    """Report who has read a granule of shared memory that a lane writes, unless what
    the warp knows orders them.
    """
    reads = words_at(_reads_of(m, granule), m.readers)
    known = words_at(m.clocks + warp * m.agents * 4, m.agents)
    newer = 0
    for other in range(m.readers):
        newer += reads[other] > known[other]
    if newer:
        _report_readers(m, pc, warp, lane, address, granule)
    state = warp_at(m, warp)
    if reads[warp] >= state.lanes_synced and reads[warp] >= state.lanes_met:
        _check_lanes_of_read(m, pc, warp, lane, address, granule)


@compile_native
def _report_readers(m, pc, warp, lane, address, granule):
    reads = words_at(_reads_of(m, granule), m.readers)
    known = words_at(m.clocks + warp * m.agents * 4, m.agents)
    for other in range(m.readers):
        if reads[other] <= known[other]:
            continue
        if other >= m.n_warps:
            report(m, MISSING_WAIT, pc, warp, lane, address, -1)
        elif not _is_read_handed_on(m, warp, other, granule, reads[other]):
            report(m, RACE_SHARED, pc, warp, lane, address, -1)


@compile_native
def _is_read_handed_on(m, warp, other, granule, clock):
    """Whether each lane of warp `other` that has read a granule, the last of them at
    `clock`, has told that warp `warp`.
    """
    if words_at(clocks_of(m, warp), m.agents)[m.lane_agent + other] < clock:
        return False
    if clock < warp_at(m, other).lanes_met:
        return True
    lanes = read32(_reads_of(m, granule) + (m.readers + other) * 4)
    released = words_at(m.lane_released + other * LANES * 4, LANES)
    for lane in range(LANES):
        if (lanes >> uint32(lane)) & uint32(1) and released[lane] < clock:
            return False
    return True


@compile_native
def _check_lanes_of_read(m, pc, warp, lane, address, granule):
    """Likewise of the other lanes of the same warp."""
    clock = words_at(_reads_of(m, granule), m.readers)[warp]
    lanes = read32(_reads_of(m, granule) + (m.readers + warp) * 4)
    if lane >= 0:
        lanes &= ~(uint32(1) << uint32(lane))
    for other in range(LANES):
        if (lanes >> uint32(other)) & uint32(1):
            if not _is_known_of(m, warp, lane, other, clock):
                report(m, RACE_SHARED, pc, warp, lane, address, -1)
                return


# --- global memory ------------------------------------------------------------------


@compile_native
def find_allocation(m, address):
    """The address of the row of the allocation that holds this address; 0 if none."""
    row = m.allocations + m.last_allocation * ALLOCATION_WORDS * 8
    if int64(read64(row)) <= address < int64(read64(row + 8)):
        return row
    low, high = 0, m.n_allocations
    while low < high:
        middle = (low + high) >> 1
        if int64(read64(m.allocations + middle * ALLOCATION_WORDS * 8)) <= address:
            low = middle + 1
        else:
            high = middle
    if low == 0:
        return 0
    row = m.allocations + (low - 1) * ALLOCATION_WORDS * 8
    if address >= int64(read64(row + 8)):
        return 0
    m.last_allocation = low - 1
    return row


@compile_native
def read_global(m, pc, warp, lane, row, address, count, is_strong=False):
    """Check a read inside the allocation at `row`, and note it. A strong one (volatile,
    relaxed, acquire) conflicts with no atomic and no strong write.
    """
    if _note_read(m, pc, warp, lane, row, address, count, is_strong):
        shadow = int64(read64(row + 16)) + address - int64(read64(row))
        is_one_word = (address & 15) + count <= 16
        is_begun = read8(shadow) & SHADOW_INITIALISED
        kind = PAST_THE_END if is_one_word and is_begun else UNINITIALISED_GLOBAL
        report(m, kind, pc, warp, lane, address, -1)


@compile_native
def read_box(m, pc, warp, lane, row, address, count):
    """As read_global, of a box of a tensor: it may hold elements that nobody uses."""
    _note_read(m, pc, warp, lane, row, address, count, False)


@compile_native
def _note_read(m, pc, warp, lane, row, address, count, is_strong):
    """Note a read, and check what orders it; whether some of it was never written."""
    shadow = int64(read64(row + 16)) + address - int64(read64(row))
    missing = False
    if count & 3 == 0:  # by words, which is most of the time of a large grid
        for place in range(shadow, shadow + count, 4):
            state = read32(place)
            if state & _INITIALISED_4 != _INITIALISED_4:
                missing = True
            if state & _READ_4 != _READ_4:
                m.distinct += count_ones(uint32(~state & _READ_4))
                write32(place, uint32(state | _READ_4))
    else:
        for place in range(shadow, shadow + count):
            state = read8(place)
            if not state & SHADOW_INITIALISED:
                missing = True
            if not state & SHADOW_READ:
                m.distinct += 1
                write8(place, uint8(state | SHADOW_READ))
    flags = int64(read64(row + 40))
    if flags & (ALLOCATION_WRITTEN | ALLOCATION_CHECKED):
        _read_in_order(m, pc, warp, lane, row, address, count, is_strong)
    return missing and not flags & ALLOCATION_INITIALISED


@compile_native
def write_global(m, pc, warp, lane, row, address, count):
    """Check a write inside the allocation at `row`, and note it."""
    clock = words_at(clocks_of(m, warp), m.agents)[warp]
    write_global_by(m, pc, warp, lane, warp, clock, row, address, count)


@compile_native
def write_global_by(m, pc, warp, lane, agent, clock, row, address, count):
    """As write_global, of an agent that the warp has issued the write to."""
    shadow = int64(read64(row + 16)) + address - int64(read64(row))
    if count & 3 == 0:
        for place in range(shadow, shadow + count, 4):
            write32(place, uint32(read32(place) | _NOW_WRITTEN_4))
    else:
        for place in range(shadow, shadow + count):
            write8(place, uint8(read8(place) | SHADOW_INITIALISED | SHADOW_WRITTEN))
    flags = int64(read64(row + 40))
    if not flags & ALLOCATION_WRITTEN:
        write64(row + 40, numba.uint64(flags | ALLOCATION_WRITTEN))
    epoch = _epoch(agent, clock, pc, lane)
    _write_in_order(m, pc, warp, lane, epoch, row, address, count, False)


@compile_native
def update_global(m, pc, warp, lane, row, address, count, is_of_block):
    """Check an atomic inside the allocation at `row`, and note it: a write that no
    other atomic conflicts with, but for those of another block if it is of its block's
    scope only.
    """
    clock = words_at(clocks_of(m, warp), m.agents)[warp]
    update_global_by(m, pc, warp, lane, warp, clock, row, address, count, is_of_block)


@compile_native
def update_global_by(m, pc, warp, lane, agent, clock, row, address, count, is_of_block):
    """As update_global, of an agent that the warp has issued the atomic to."""
    shadow = int64(read64(row + 16)) + address - int64(read64(row))
    missing = False
    for place in range(shadow, shadow + count):
        state = read8(place)
        missing |= not state & SHADOW_INITIALISED
        if not state & SHADOW_READ:
            m.distinct += 1
        state |= uint8(SHADOW_INITIALISED | SHADOW_WRITTEN | SHADOW_READ)
        write8(place, state)
    flags = int64(read64(row + 40))
    if missing and not flags & ALLOCATION_INITIALISED:
        report(m, UNINITIALISED_GLOBAL, pc, warp, lane, address, -1)
    if not flags & ALLOCATION_WRITTEN:
        write64(row + 40, numba.uint64(flags | ALLOCATION_WRITTEN))
    epoch = _epoch(agent, clock, pc, lane)
    if is_of_block:
        epoch |= _OF_BLOCK_SCOPE
    _write_in_order(m, pc, warp, lane, epoch, row, address, count, True)


@compile_native
def write_strong(m, pc, warp, lane, row, address, count):
    """Check a volatile, relaxed or releasing store, which no atomic conflicts with."""
    shadow = int64(read64(row + 16)) + address - int64(read64(row))
    for place in range(shadow, shadow + count):
        write8(place, uint8(read8(place) | SHADOW_INITIALISED | SHADOW_WRITTEN))
    flags = int64(read64(row + 40))
    write64(row + 40, numba.uint64(flags | ALLOCATION_WRITTEN))
    clock = words_at(clocks_of(m, warp), m.agents)[warp]
    epoch = _epoch(warp, clock, pc, lane)
    _write_in_order(m, pc, warp, lane, epoch, row, address, count, True)


# A granule of global memory has two words for its last writer: the block (1 + its
# number, of all launches so far) and the epoch within the block; and two for its last
# atomic. For its readers it has four: the block of the last one (negative: others have
# read, too), the epochs of one warp of it and of another that has read without an order
# between them (0: none), and an earlier block that the last one had not seen (0: none).


@compile_native
def _read_in_order(m, pc, warp, lane, row, address, count, is_strong):
    if not read64(row + 24):
        return
    shift = int64(read64(row + 48))
    first = (address - int64(read64(row))) >> shift
    last = (address + count - 1 - int64(read64(row))) >> shift
    block = m.first_block + m.block + 1
    epoch = _epoch(warp, words_at(clocks_of(m, warp), m.agents)[warp], pc, lane)
    for granule in range(first, last + 1):
        writer = int64(read64(row + 24)) + granule * 32
        if int64(read64(writer)) > m.first_block:
            _check_order(m, pc, warp, lane, address, writer)
        if is_strong:
            continue
        if m.has_atomics:
            _check_order(m, pc, warp, lane, address, writer + 16)
        reader = int64(read64(row + 32)) + granule * 32
        by = abs(int64(read64(reader)))
        if by <= m.first_block:
            write64(reader, numba.uint64(block))
            if m.seen:
                write64(reader + 24, numba.uint64(0))
        elif by == block:
            if not _is_noted(int64(read64(reader + 8)), epoch):
                _note_reader(m, warp, reader, epoch)
            continue
        else:
            _keep_reader(m, warp, reader, by)
            write64(reader, numba.uint64(-block))
        write64(reader + 8, numba.uint64(epoch))
        write64(reader + 16, numba.uint64(0))


@compile_native
def check_unwritten(m, pc, warp, lane, row, address, count):
    """Report a read through the cache of what no launch writes while it reads it
    (ld.global.nc), if this launch has written it: nothing orders the two.
    """
    if not read64(row + 24):
        return
    shift = int64(read64(row + 48))
    first = (address - int64(read64(row))) >> shift
    end = min(address + count, int64(read64(row + 8)))
    last = (end - 1 - int64(read64(row))) >> shift
    for granule in range(first, last + 1):
        writer = int64(read64(row + 24)) + granule * 32
        for place in (writer, writer + 16):
            if int64(read64(place)) > m.first_block:
                before = int64(read64(place + 8))
                report(m, RACE_GLOBAL, pc, warp, lane, address, pc_of(before))
                return


@compile_native
def _is_noted(before, epoch):
    """Whether a read says nothing that another since the same event does not."""
    difference = before ^ epoch
    if difference & (_AGENT_MASK << _CLOCK_BITS | _CLOCK_MASK):
        return False
    return bool(before & _OF_MORE_LANES) or not difference & (_LANE_MASK << _LANE_SHIFT)


@compile_native
def _note_reader(m, warp, reader, epoch):
    """Add a warp to the readers of the block, of which two are kept."""
    before = int64(read64(reader + 8))
    if (before >> _CLOCK_BITS) & _AGENT_MASK == warp:
        write64(reader + 8, numba.uint64(_with_lanes_before(m, warp, before, epoch)))
        return
    known = words_at(clocks_of(m, warp), m.agents)
    for place in (reader + 8, reader + 16):
        before = int64(read64(place))
        agent = (before >> _CLOCK_BITS) & _AGENT_MASK
        if before == 0 or known[agent] >= before & _CLOCK_MASK:
            epoch = _with_lanes_before(m, warp, before, epoch)
            write64(place, numba.uint64(epoch))
            return


@compile_native
def _keep_reader(m, warp, reader, by):
    """Keep block `by`, which has read before this one, if this one has not seen that it
    has: one that has released none of its reads before others.
    """
    epoch = int64(read64(reader + 8))
    if not m.seen or _has_seen(m, warp, by - m.first_block - 1, epoch):
        return
    if read64(reader + 24):
        if _has_released(m, by - m.first_block - 1, epoch):
            return
    write64(reader + 24, numba.uint64(by))


@compile_native
def _write_in_order(m, pc, warp, lane, epoch, row, address, count, is_atomic):
    if not read64(row + 24):
        return
    shift = int64(read64(row + 48))
    first = (address - int64(read64(row))) >> shift
    last = (address + count - 1 - int64(read64(row))) >> shift
    block = m.first_block + m.block + 1
    for granule in range(first, last + 1):
        writer = int64(read64(row + 24)) + granule * 32
        if int64(read64(writer)) > m.first_block:
            before = int64(read64(writer + 8))
            is_same = pc_of(before) == pc  # whose lanes are compared by their bytes
            _check_order(m, pc, warp, -2 if is_same else lane, address, writer)
        if m.has_atomics:
            _check_atomic(m, pc, warp, lane, address, writer + 16, epoch, is_atomic)
        reader = int64(read64(row + 32)) + granule * 32
        if abs(int64(read64(reader))) > m.first_block:
            _check_readers_of(m, pc, warp, lane, address, reader)
        mine = writer + 16 if is_atomic else writer
        if is_atomic and int64(read64(mine)) == block:
            epoch = _with_lanes_before(m, warp, int64(read64(mine + 8)), epoch)
        write64(mine, numba.uint64(block))
        write64(mine + 8, numba.uint64(epoch))


@compile_native
def _check_atomic(m, pc, warp, lane, address, atomic, epoch, is_atomic):
    """Check a write or an atomic against the last atomic."""
    if is_atomic:
        before = int64(read64(atomic + 8))
        is_wide = not (before | epoch) & _OF_BLOCK_SCOPE
        if is_wide or int64(read64(atomic)) == m.first_block + m.block + 1:
            return
    _check_order(m, pc, warp, lane, address, atomic)


@compile_native
def _check_readers_of(m, pc, warp, lane, address, reader):
    """Check a write of a granule of global memory against its readers."""
    by = int64(read64(reader))
    for place in (reader + 8, reader + 16):
        before = int64(read64(place))
        if before == 0:
            continue
        if _is_race(m, warp, lane, by, before, True):
            report(m, RACE_GLOBAL, pc, warp, lane, address, pc_of(before))
    kept = int64(read64(reader + 24)) if m.seen else int64(0)
    if kept > m.first_block and kept != m.first_block + m.block + 1:
        if not _has_seen(m, warp, kept - m.first_block - 1, 0):
            report(m, RACE_GLOBAL, pc, warp, lane, address, -1)


@compile_native
def _check_order(m, pc, warp, lane, address, writer):
    """Check an access against the writer whose block and epoch are at `writer`."""
    by, before = int64(read64(writer)), int64(read64(writer + 8))
    if by and _is_race(m, warp, lane, by, before, False):
        agent = (before >> _CLOCK_BITS) & _AGENT_MASK
        is_mine = by == m.first_block + m.block + 1
        kind = MISSING_WAIT if is_mine and agent >= m.n_warps else RACE_GLOBAL
        report(m, kind, pc, warp, lane, address, pc_of(before))


@compile_native
def check_visible(m, pc, warp, lane, row, address, count):
    """Report what the block has written to global memory by ordinary stores and has
    not made visible to the asynchronous proxy, which is to read it.
    """
    if not read64(row + 24):
        return
    shift = int64(read64(row + 48))
    first = (address - int64(read64(row))) >> shift
    last = (address + count - 1 - int64(read64(row))) >> shift
    visible = words_at(fenced_of(m, warp), m.agents)
    for granule in range(first, last + 1):
        writer = int64(read64(row + 24)) + granule * 32
        before = int64(read64(writer + 8))
        agent = (before >> _CLOCK_BITS) & _AGENT_MASK
        if int64(read64(writer)) != m.first_block + m.block + 1:
            continue
        if agent < 2 * m.n_warps and visible[agent] < before & _CLOCK_MASK:
            report(m, MISSING_PROXY_FENCE, pc, warp, lane, address, pc_of(before))


@compile_native
def _is_race(m, warp, lane, by, epoch, is_read):
    """Whether an access by a lane of this block (-2: whichever) conflicts with an
    earlier access, or with a read.

    What an earlier launch did is over. Of several readers (a negative block, the last
    of them) none is in order where no atomics order blocks.
    """
    last = by if by > 0 else -by
    if last <= m.first_block:
        return False
    agent, clock = (epoch >> _CLOCK_BITS) & _AGENT_MASK, epoch & _CLOCK_MASK
    if last != m.first_block + m.block + 1:
        return not _has_seen(m, warp, last - m.first_block - 1, epoch)
    if by < 0 and not m.has_atomics:
        return True
    if words_at(clocks_of(m, warp), m.agents)[agent] < clock:
        return agent >= m.n_warps or not has_handed_on(
            m, clocks_of(m, warp), agent, _lane_of(epoch), clock
        )
    if agent != warp or lane == -2:
        return False
    if is_read and clock < warp_at(m, warp).lanes_met:
        return False
    return _lane_conflict(m, warp, lane, epoch) != NONE


@compile_native
def _has_released(m, block, epoch):
    """Whether `block` has released an event of one of its agents."""
    agent, clock = (epoch >> _CLOCK_BITS) & _AGENT_MASK, epoch & _CLOCK_MASK
    released = words_at(m.released + block * m.agents * 4, m.agents)
    if released[agent] >= clock:
        return True
    if agent >= m.n_warps or released[m.lane_agent + agent] < clock:
        return False
    lanes = read32(m.released_lanes + (block * m.n_warps + agent) * 4)
    return (lanes >> uint32(_lane_of(epoch))) & uint32(1) != uint32(0)


@compile_native
def _has_seen(m, warp, block, epoch):
    """Whether this warp has synchronised, by atomics, with what `block` did before:
    it knows of a warp that has acquired, and who released there knew of that event.
    """
    if not m.seen:
        return m.has_atomics != 0  # too many blocks to know
    words = (m.n_blocks + 63) >> 6
    word = read64(m.seen + (m.block * words + (block >> 6)) * 8)
    if not (word >> numba.uint64(block & 63)) & numba.uint64(1):
        return False
    if not _has_released(m, block, epoch):
        return False
    known = words_at(clocks_of(m, warp), m.agents)
    for other in range(m.n_warps):
        acquired = warp_at(m, other).acquired
        if acquired and known[other] >= acquired:
            return True
    return False
