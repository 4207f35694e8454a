"""What happened before what, by vector clocks, and the checks that follow from it.

Agents are the warps of a block and, of each warp, its asynchronous copies, tensor
copies and wgmma. `clocks[a][b]` is the last event of agent b that a knows to be over;
`fenced[a][b]` likewise, of what a proxy fence has made visible to the asynchronous
proxy. Clocks go on from block to block, and a block starts with all that was before it.
(FastTrack, Flanagan and Freund 2009, with all readers of a granule kept.)
"""

from __future__ import annotations

import numba
import numpy as np
from numba import int64, uint8, uint32

from batchline.bench.measure.emulator.layout import (
    ALLOCATION_CHECKED,
    ALLOCATION_INITIALISED,
    ALLOCATION_WORDS,
    ALLOCATION_WRITTEN,
    FINDING,
    FINDINGS_KEPT,
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

# An epoch is the clock (28 bits), the agent (8 bits) and the instruction (20 bits) of
# an access; in global memory the block comes above that, in a word of its own.
_CLOCK_BITS, _AGENT_BITS = 28, 8
_CLOCK_MASK, _AGENT_MASK = (1 << _CLOCK_BITS) - 1, (1 << _AGENT_BITS) - 1
_PC_SHIFT = _CLOCK_BITS + _AGENT_BITS

_finding = record_reader(FINDING)
_mbarrier = record_reader(MBARRIER)
_MBARRIER_BYTES = MBARRIER.itemsize
_warp = record_reader(WARP)
_WARP_BYTES = WARP.itemsize
_FINDING_BYTES = FINDING.itemsize
_INITIALISED_4 = np.uint32(SHADOW_INITIALISED * 0x01010101)
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
    new.block = m.block
    new.warp = warp
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
    for agent in range(m.agents):
        if other[agent] > target[agent]:
            target[agent] = other[agent]


@compile_native
def clocks_of(m, agent):
    """The address of an agent's vector clock."""
    return m.clocks + agent * m.agents * 4


@compile_native
def fenced_of(m, agent):
    """The address of what of it is visible to the asynchronous proxy."""
    return m.fenced + agent * m.agents * 4


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
    join(m, fenced_of(m, warp), clocks_of(m, warp))
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
    for agent in range(m.agents):
        latest = clocks[agent * m.agents + agent] + 1
        clocks[agent * m.agents + agent] = latest
        for other in range(m.agents):
            clocks[other * m.agents + agent] = latest
            fenced[other * m.agents + agent] = latest
    for agent in range(m.n_warps):
        clocks[agent * m.agents + agent] += 1


# --- shared memory ------------------------------------------------------------------


@compile_native
def _epoch(agent, clock, pc):
    return (pc << _PC_SHIFT) | (agent << _CLOCK_BITS) | clock


@compile_native
def pc_of(epoch):
    """The instruction of an access."""
    return epoch >> _PC_SHIFT


@compile_native
def _conflict(m, warp, agent, before, is_read):
    """What an access after the one with epoch `before` lacks, or NONE.

    `agent` is a warp or one of its asynchronous agents, on whose behalf `warp` issues.
    What the asynchronous proxy reads must have been made visible to it. What it writes
    need not: compilers let a copy overwrite what a barrier has ordered.
    """
    other = (before >> _CLOCK_BITS) & _AGENT_MASK
    clock = before & _CLOCK_MASK
    if words_at(m.clocks + warp * m.agents * 4, m.agents)[other] < clock:
        return MISSING_WAIT if other >= m.n_warps else RACE_SHARED
    if is_read and agent >= 2 * m.n_warps and other < 2 * m.n_warps:
        if words_at(m.fenced + warp * m.agents * 4, m.agents)[other] < clock:
            return MISSING_PROXY_FENCE
    return NONE


@compile_native
def read_shared(m, pc, warp, lane, agent, clock, address, count):
    """Check a read of `count` bytes of shared memory, which must be inside, and
    note it.
    """
    state = bytes_at(m.shared_state, m.shared_bytes)
    for place in range(address, address + count):
        if not state[place]:
            report(m, UNINITIALISED_SHARED, pc, warp, lane, address, -1)
            break
    granules = (m.shared_bytes >> m.granule_shift) + 1
    writers = longs_at(m.writers, 2 * granules)
    reads = words_at(m.reads, m.agents * granules)
    first = address >> m.granule_shift
    last = (address + count - 1) >> m.granule_shift
    for granule in range(first, last + 1):
        for before in (writers[granule], writers[granules + granule]):
            if before:
                fault = _conflict(m, warp, agent, before, True)
                if fault:
                    report(m, fault, pc, warp, lane, address, pc_of(before))
        reads[granule * m.agents + agent] = clock


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
    reads = words_at(m.reads, m.agents * granules)
    known = words_at(m.clocks + warp * m.agents * 4, m.agents)
    first = address >> m.granule_shift
    last = (address + count - 1) >> m.granule_shift
    for granule in range(first, last + 1):
        for before in (writers[granule], writers[granules + granule]):
            if before == 0:
                continue
            fault = _conflict(m, warp, agent, before, False)
            if fault and not (
                fault == RACE_SHARED and _is_same(m, address, count, data)
            ):
                report(m, fault, pc, warp, lane, address, pc_of(before))
        start = granule * m.agents
        newer = 0
        for other in range(m.agents):
            newer += reads[start + other] > known[other]
        if newer:
            _report_read(m, pc, warp, lane, address, granule)
        writers[granule] = _epoch(agent, clock, pc)


@compile_native
def update_shared(m, pc, warp, lane, clock, address, count):
    """Check an atomic on `count` bytes of shared memory, which must be inside, and note
    it: a write that no other atomic conflicts with.
    """
    state = bytes_at(m.shared_state, m.shared_bytes)
    for place in range(address, address + count):
        if not state[place]:
            report(m, UNINITIALISED_SHARED, pc, warp, lane, address, -1)
            break
    granules = (m.shared_bytes >> m.granule_shift) + 1
    writers = longs_at(m.writers, 2 * granules)
    reads = words_at(m.reads, m.agents * granules)
    known = words_at(m.clocks + warp * m.agents * 4, m.agents)
    first = address >> m.granule_shift
    last = (address + count - 1) >> m.granule_shift
    for granule in range(first, last + 1):
        before = writers[granule]
        if before:
            fault = _conflict(m, warp, warp, before, False)
            if fault:
                report(m, fault, pc, warp, lane, address, pc_of(before))
        newer = 0
        for other in range(m.agents):
            newer += reads[granule * m.agents + other] > known[other]
        if newer:
            _report_read(m, pc, warp, lane, address, granule)
        writers[granules + granule] = _epoch(warp, clock, pc)


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
def _report_read(m, pc, warp, lane, address, granule):
    reads = words_at(m.reads + granule * m.agents * 4, m.agents)
    known = words_at(m.clocks + warp * m.agents * 4, m.agents)
    for other in range(m.agents):
        if reads[other] > known[other]:
            is_asynchronous = other >= m.n_warps
            kind = MISSING_WAIT if is_asynchronous else RACE_SHARED
            report(m, kind, pc, warp, lane, address, -1)


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
def read_global(m, pc, warp, lane, row, address, count):
    """Check a read inside the allocation at `row`, and note it."""
    if _note_read(m, pc, warp, lane, row, address, count):
        shadow = int64(read64(row + 16)) + address - int64(read64(row))
        is_one_word = (address & 15) + count <= 16
        is_begun = read8(shadow) & SHADOW_INITIALISED
        kind = PAST_THE_END if is_one_word and is_begun else UNINITIALISED_GLOBAL
        report(m, kind, pc, warp, lane, address, -1)


@compile_native
def read_box(m, pc, warp, lane, row, address, count):
    """As read_global, of a box of a tensor: it may hold elements that nobody uses."""
    _note_read(m, pc, warp, lane, row, address, count)


@compile_native
def _note_read(m, pc, warp, lane, row, address, count):
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
        _read_in_order(m, pc, warp, lane, row, address, count)
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
    epoch = _epoch(agent, clock, pc)
    _write_in_order(m, pc, warp, lane, epoch, row, address, count, False)


@compile_native
def update_global(m, pc, warp, lane, row, address, count):
    """Check an atomic inside the allocation at `row`, and note it: a write that no
    other atomic conflicts with.
    """
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
    epoch = _epoch(warp, words_at(clocks_of(m, warp), m.agents)[warp], pc)
    _write_in_order(m, pc, warp, lane, epoch, row, address, count, True)


# A granule of global memory has two words for its last writer: the block (1 + its
# number, of all launches so far) and the epoch within the block; and two for its last
# atomic. For its last reader it
# has three: the block (negative: several blocks), and the epochs of one warp of it and
# of another that has read without an order between them (0: none).


@compile_native
def _read_in_order(m, pc, warp, lane, row, address, count):
    if not read64(row + 24):
        return
    shift = int64(read64(row + 48))
    first = (address - int64(read64(row))) >> shift
    last = (address + count - 1 - int64(read64(row))) >> shift
    block = m.first_block + m.block + 1
    epoch = _epoch(warp, words_at(clocks_of(m, warp), m.agents)[warp], pc)
    for granule in range(first, last + 1):
        writer = int64(read64(row + 24)) + granule * 32
        _check_order(m, pc, warp, lane, address, writer)
        if m.has_atomics:
            _check_order(m, pc, warp, lane, address, writer + 16)
        reader = int64(read64(row + 32)) + granule * 32
        by = int64(read64(reader))
        if by == block:
            _note_reader(m, warp, reader, epoch)
        elif by <= m.first_block and by >= 0:
            write64(reader, numba.uint64(block))
            write64(reader + 8, numba.uint64(epoch))
            write64(reader + 16, numba.uint64(0))
        else:
            write64(reader, numba.uint64(-block))


@compile_native
def _note_reader(m, warp, reader, epoch):
    """Add a warp to the readers of the block, of which two are kept."""
    known = words_at(clocks_of(m, warp), m.agents)
    for place in (reader + 8, reader + 16):
        before = int64(read64(place))
        agent = (before >> _CLOCK_BITS) & _AGENT_MASK
        if before == 0 or known[agent] >= before & _CLOCK_MASK:
            write64(place, numba.uint64(epoch))
            return


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
        _check_order(m, pc, warp, lane, address, writer)
        if m.has_atomics and not is_atomic:
            _check_order(m, pc, warp, lane, address, writer + 16)
        reader = int64(read64(row + 32)) + granule * 32
        by = int64(read64(reader))
        for place in (reader + 8, reader + 16):
            before = int64(read64(place))
            if before and _is_race(m, warp, by, before):
                report(m, RACE_GLOBAL, pc, warp, lane, address, pc_of(before))
        mine = writer + 16 if is_atomic else writer
        write64(mine, numba.uint64(block))
        write64(mine + 8, numba.uint64(epoch))


@compile_native
def _check_order(m, pc, warp, lane, address, writer):
    """Check an access against the writer whose block and epoch are at `writer`."""
    by, before = int64(read64(writer)), int64(read64(writer + 8))
    if _is_race(m, warp, by, before):
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
def _is_race(m, warp, by, epoch):
    """Whether an access by `warp` of this block conflicts with an earlier one.

    What an earlier launch did is over. Several readers (a negative block, the last of
    them) are in order if the last one is.
    """
    last = by if by > 0 else -by
    if last <= m.first_block:
        return False
    block = m.first_block + m.block + 1
    agent = (epoch >> _CLOCK_BITS) & _AGENT_MASK
    clock = epoch & _CLOCK_MASK
    if last == block and by > 0:
        return words_at(clocks_of(m, warp), m.agents)[agent] < clock
    if by < 0:
        clock, agent = 0, 0  # that of another block
    return not _has_seen(m, warp, last - m.first_block - 1, agent, clock)


@compile_native
def _has_seen(m, warp, block, agent, clock):
    """Whether this warp has synchronised, by atomics, with what `block` did before:
    it knows of a warp that has acquired, and who released there knew of event `clock`
    of warp `agent`.
    """
    if not m.seen:
        return m.has_atomics != 0  # too many blocks to know
    words = (m.n_blocks + 63) >> 6
    word = read64(m.seen + (m.block * words + (block >> 6)) * 8)
    if not (word >> numba.uint64(block & 63)) & numba.uint64(1):
        return False
    if words_at(m.released + block * m.agents * 4, m.agents)[agent] < clock:
        return False
    known = words_at(clocks_of(m, warp), m.agents)
    for other in range(m.n_warps):
        acquired = _acquired_by(m, other)
        if acquired and known[other] >= acquired:
            return True
    return False


@compile_native
def _acquired_by(m, warp):
    return _warp(m.warps + warp * _WARP_BYTES).acquired
