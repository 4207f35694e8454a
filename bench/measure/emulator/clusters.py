"""Blocks of a cluster, which are executed side by side: whose shared memory is at hand,
their barrier, and whether a block is there when another reaches into it (PTX ISA,
"barrier.cluster", "mapa", "Shared State Space").

The warps of all blocks of a cluster are numbered through, and so are their agents: what
is said of order within a block holds in a cluster. What each block has of its own
(shared memory, barriers, mbarriers) is found through the machine's record, which shows
one block of the cluster at a time: that of the warp that goes on, or the one that it
reaches into.

An address in shared memory has FIRST_RANK + the block's rank in its bits from 24 on, or
0 if it is of the block's own. Addresses of variables have the rank in them, as on a GPU:
with bit 24 cleared they are those of the pair's leading block, which Triton's code relies
on.
"""

from __future__ import annotations

from collections.abc import Iterator

from numba import int64, uint8

from batchline.bench.measure.emulator import order
from batchline.bench.measure.emulator.layout import (
    FIRST_RANK,
    HEADER,
    PARAMETERS,
    RANK_SHIFT,
    SHARED_WINDOW,
    VIEW,
    Finding,
    Kind,
    Status,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import report, warp_at
from batchline.bench.measure.emulator.ptx import Immediate, Instruction, UnknownOpcode
from batchline.bench.measure.emulator.raw import (
    copy,
    fill,
    lowest_one,
    record_reader,
    words_at,
)
from batchline.bench.measure.emulator.rows import Operands, Row

DIVERGENT_BARRIER = int(Finding.DIVERGENT_BARRIER)
BLOCK_LIFETIME = int(Finding.BLOCK_LIFETIME)
READY, AT_CLUSTER = int(Status.READY), int(Status.AT_CLUSTER)
ENDED = int(Status.ENDED)
ARRIVE, ARRIVE_RELAXED, WAIT, FENCE = range(4)  # parameter 0 of a CLUSTER_BARRIER
_NOT_ARRIVED, _ARRIVED, _COMPLETE = range(3)  # of a warp, its `cluster_phase`
_PENDING, _PENDING_VISIBLE, _HANDED, _HANDED_VISIBLE = range(4)  # of the barrier

_view = record_reader(VIEW)
_VIEW_BYTES = VIEW.itemsize
_OFFSET_MASK = (1 << RANK_SHIFT) - 1


# --- how it is decoded --------------------------------------------------------------


def decode_barrier(operands: Operands, instruction: Instruction) -> Iterator[Row]:
    """The row of barrier.cluster.arrive{.release, .relaxed}{.aligned} and .wait."""
    tokens = instruction.opcode.split(".")
    action, words = tokens[2], set(tokens[3:])
    allowed = {"arrive": {"release", "relaxed"}, "wait": {"acquire"}}
    if words - {"aligned"} - allowed.get(action, set()) or action not in allowed:
        raise UnknownOpcode(instruction.opcode)
    mode = WAIT
    if action == "arrive":
        mode = ARRIVE_RELAXED if "relaxed" in words else ARRIVE
    yield Row(Kind.CLUSTER_BARRIER, parameters=(mode,))


def decode_map(decoder: Operands, instruction: Instruction) -> Iterator[Row]:
    """mapa{.shared::cluster}.u32 or .u64: an address of this block as that of another."""
    opcode = instruction.opcode
    if opcode not in ("mapa.shared::cluster.u32", "mapa.u64"):
        raise UnknownOpcode(opcode)
    wide = opcode == "mapa.u64"
    bits, window = (64, SHARED_WINDOW) if wide else (32, 0)
    target, address, rank = instruction.operands
    own = decoder.temporary(f"mapa.b{bits}", bits)
    first = window + (FIRST_RANK << RANK_SHIFT)
    multiply = "mad.wide.u32" if wide else "mad.lo.u32"
    yield decoder.arithmetic(f"and.b{bits}", (own, address, _number(_OFFSET_MASK)))
    yield decoder.arithmetic(f"add.u{bits}", (own, own, _number(first)))
    yield decoder.arithmetic(multiply, (target, rank, _number(1 << RANK_SHIFT), own))


def _number(value: int) -> Immediate:
    return Immediate(str(value), "integer", value)


# --- whose memory is at hand --------------------------------------------------------


@compile_native
def turn_to(m, rank):
    """Show what the block with this rank in the cluster has of its own."""
    if m.rank == rank:
        return
    _view(m.views + m.rank * _VIEW_BYTES).n_mbarriers = m.n_mbarriers
    view = _view(m.views + rank * _VIEW_BYTES)
    m.rank = rank
    m.shared = view.shared
    m.shared_state = view.shared_state
    m.writers = view.writers
    m.reads = view.reads
    m.barriers = view.barriers
    m.barrier_clocks = view.barrier_clocks
    m.barrier_fenced = view.barrier_fenced
    m.mbarriers = view.mbarriers
    m.mbarrier_clocks = view.mbarrier_clocks
    m.n_mbarriers = view.n_mbarriers


@compile_native
def turn_home(m, warp):
    """Show again what the block of this warp has of its own."""
    if m.cluster_blocks > 1:
        turn_to(m, warp // m.block_warps)


@compile_native
def rank_of(m, warp, address):
    """The rank of the block that an address in shared memory is of; that of the warp's
    own for an address without one. It may be too large.
    """
    named = address >> RANK_SHIFT
    if named <= 0:
        return warp // m.block_warps
    return named - FIRST_RANK if named >= FIRST_RANK else named << RANK_SHIFT


@compile_native
def turn_to_address(m, warp, address):
    """Show the block that an address in shared memory is of; the address there, or -1
    if there is no such block.
    """
    if address < 0:
        return address
    rank = rank_of(m, warp, address)
    if rank >= m.cluster_blocks:
        return int64(-1)
    turn_to(m, rank)
    return address & _OFFSET_MASK


# --- whether it is there ------------------------------------------------------------


@compile_native
def begin(m):
    """Note when the warps of a cluster begin, which is an event of its own."""
    started = words_at(m.start_clocks, m.n_warps)
    for warp in range(m.n_warps):
        started[warp] = order.tick(m, warp)
    cells = m.cluster_blocks * m.agents
    fill(m.reach_clocks, uint8(0), cells * 4)


@compile_native
def reach(m, pc, warp, lane, agent, clock, address):
    """Check an access of the shared memory at hand, if that is another block's: it must
    be known to have started, and not have ended. Whether it ends too early is seen then.
    """
    if m.cluster_blocks == 1 or m.rank == warp // m.block_warps:
        return
    known = words_at(order.clocks_of(m, warp), m.agents)
    started = words_at(m.start_clocks, m.n_warps)
    first = m.rank * m.block_warps
    has_started, has_ended = False, True
    for other in range(first, first + m.block_warps):
        if known[other] >= started[other]:
            has_started = True
        if warp_at(m, other).status != ENDED:
            has_ended = False
    if has_ended or not has_started:
        report(m, BLOCK_LIFETIME, pc, warp, lane, address, -1)
    place = m.rank * m.agents + agent
    cells = m.cluster_blocks * m.agents
    words_at(m.reach_clocks, cells)[place] = clock
    words_at(m.reach_places, cells)[place] = pc
    words_at(m.reach_lanes, cells)[place] = lane


@compile_native
def leave(m, pc, warp):
    """A warp has ended: the barrier of the cluster waits for it no longer. If its block
    has, report who has reached into that without telling it.
    """
    _release_if_complete(m)
    first = m.rank * m.block_warps
    for other in range(first, first + m.block_warps):
        if warp_at(m, other).status != ENDED:
            return
    clocks = words_at(m.reach_clocks + m.rank * m.agents * 4, m.agents)
    places = words_at(m.reach_places + m.rank * m.agents * 4, m.agents)
    lanes = words_at(m.reach_lanes + m.rank * m.agents * 4, m.agents)
    for agent in range(m.agents):
        if clocks[agent] == 0:
            continue
        is_known = False
        for other in range(first, first + m.block_warps):
            if _knows_of(m, other, agent, int64(lanes[agent]), int64(clocks[agent])):
                is_known = True
        if not is_known:
            by = agent % m.n_warps
            report(m, BLOCK_LIFETIME, int64(places[agent]), by, -1, 0, pc)


@compile_native
def _knows_of(m, warp, agent, lane, clock):
    """Whether a warp knows of an agent's event, by a lane if the agent is a warp."""
    known = words_at(order.clocks_of(m, warp), m.agents)
    if known[agent] >= clock:
        return True
    if agent >= m.n_warps or lane < 0:
        return False
    return order.has_handed_on(m, order.clocks_of(m, warp), agent, lane, clock)


# --- the barrier of a cluster -------------------------------------------------------


@compile_native
def _clocks(m, which):
    return m.cluster_clocks + which * m.agents * 4


@compile_native
def _relaxed_clocks_of(m, warp):
    """The address of what a warp hands on when it arrives relaxed: what was before its
    last fence, and that it has started.
    """
    return m.cluster_fenced + warp * m.agents * 4


@compile_native
def note_fence(m, warp, mask):
    """fence.mbarrier_init, or a memory fence of the cluster's scope or a wider one."""
    if m.cluster_blocks > 1:
        into = _relaxed_clocks_of(m, warp)
        order.hand_on(m, warp, mask, into, order.clocks_of(m, warp))


@Handler
def act(machine, pc, warp, registers, row, mask):
    """barrier.cluster.arrive and .wait, by all lanes of a warp; fence.mbarrier_init."""
    m = machine_at(machine)
    state = warp_at(m, warp)
    mode = words_at(row, HEADER)[PARAMETERS]
    if mode == FENCE:
        note_fence(m, warp, mask)
        order.tick(m, warp)
        return DONE
    if mask != state.alive:
        lane = lowest_one(state.alive & ~mask)
        report(m, DIVERGENT_BARRIER, pc, warp, lane, 0, -1)
    is_expected = (mode == WAIT) == (state.cluster_phase != _NOT_ARRIVED)
    if not is_expected:
        report(m, DIVERGENT_BARRIER, pc, warp, -1, 0, -1)
        return DONE
    if mode == WAIT:
        state.barrier_pc = pc
        state.status = AT_CLUSTER
        if state.cluster_phase == _COMPLETE:
            _go_on(m, warp)
        return DONE
    into = _clocks(m, _PENDING)
    if mode == ARRIVE:
        order.join(m, into, order.clocks_of(m, warp))
        order.join(m, _clocks(m, _PENDING_VISIBLE), order.fenced_of(m, warp))
    else:
        order.join(m, into, _relaxed_clocks_of(m, warp))
        clocks = words_at(into, m.agents)
        started = words_at(m.start_clocks, m.n_warps)[warp]
        clocks[warp] = max(clocks[warp], started)
    order.tick(m, warp)
    state.cluster_phase = _ARRIVED
    _release_if_complete(m)
    return DONE


@compile_native
def _release_if_complete(m):
    """Let all warps of a cluster go on if each has arrived that has not ended."""
    has_arrived = False
    for warp in range(m.n_warps):
        state = warp_at(m, warp)
        if state.status == ENDED:
            continue
        if state.cluster_phase != _ARRIVED:
            return
        has_arrived = True
    if not has_arrived:
        return
    copy(_clocks(m, _HANDED), _clocks(m, _PENDING), 2 * m.agents * 4)
    for warp in range(m.n_warps):
        state = warp_at(m, warp)
        if state.status == ENDED:
            continue
        state.cluster_phase = _COMPLETE
        if state.status == AT_CLUSTER:
            _go_on(m, warp)


@compile_native
def _go_on(m, warp):
    order.join(m, order.clocks_of(m, warp), _clocks(m, _HANDED))
    order.join(m, order.fenced_of(m, warp), _clocks(m, _HANDED_VISIBLE))
    order.sync_lanes(m, warp)
    state = warp_at(m, warp)
    state.cluster_phase = _NOT_ARRIVED
    state.status = READY
