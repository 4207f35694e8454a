"""cp.async.mbarrier.arrive: threads arrive at an mbarrier when all copies that they have
started by cp.async are over (PTX ISA, "cp.async.mbarrier.arrive").

It hands on these copies, and nothing else that the threads have done.
"""

from __future__ import annotations

from collections.abc import Iterator

from numba import int64, uint32

from batchline.bench.measure.emulator import mbarriers, order
from batchline.bench.measure.emulator.asynchronous import (
    OPEN,
    begin,
    land_copy,
    pending_at,
)
from batchline.bench.measure.emulator.layout import (
    HEADER,
    LANES,
    PARAMETERS,
    SHARED_WINDOW,
    Finding,
    Kind,
    PendingKind,
)
from batchline.bench.measure.emulator.memory_access import get
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import read_shared, report
from batchline.bench.measure.emulator.ptx import Instruction, UnknownOpcode
from batchline.bench.measure.emulator.raw import count_ones, lowest_one, words_at
from batchline.bench.measure.emulator.rows import Operands, Row
from batchline.bench.measure.emulator.shared_arrays import (
    is_in_shared,
    own_offset,
)

MISALIGNED = int(Finding.MISALIGNED)
OUT_OF_BOUNDS, MISUSE = int(Finding.OUT_OF_BOUNDS), int(Finding.MBARRIER_MISUSE)
FREE, COPY = int(PendingKind.FREE), int(PendingKind.COPY)
ARRIVAL = int(PendingKind.COPY_ARRIVAL)
_COUNTS_ITSELF, _OFFSET, _WIDTH = range(PARAMETERS, PARAMETERS + 3)


def decode(operands: Operands, instruction: Instruction) -> Iterator[Row]:
    """The row of cp.async.mbarrier.arrive{.noinc}{.shared{::cta}}.b64."""
    tokens = instruction.opcode.split(".")
    words = set(tokens[4:])
    if tokens[:4] != ["cp", "async", "mbarrier", "arrive"] or words - {
        "noinc",
        "shared",
        "shared::cta",
        "b64",
    }:
        raise UnknownOpcode(instruction.opcode)
    base, offset, width = operands.address(instruction.operands[0])
    is_counted = int("noinc" not in words)
    yield Row(Kind.COPY_ARRIVE, (base,), (is_counted, offset, width))


@Handler
def start_arrivals(machine, pc, warp, registers, row, mask):
    """Lanes that name different mbarriers take turns. Without .noinc each adds itself to
    what the mbarrier waits for.
    """
    m = machine_at(machine)
    while mask:
        first = _address(registers, row, lowest_one(mask))
        alike = uint32(0)
        for lane in range(LANES):
            if (mask >> uint32(lane)) & uint32(1):
                if _address(registers, row, lane) == first:
                    alike |= uint32(1) << uint32(lane)
        _start(m, pc, warp, row, alike, first)
        mask &= ~alike
    return DONE


@compile_native
def _address(registers, row, lane):
    words = words_at(row, HEADER + 1)
    width, address = int64(words[_WIDTH]), int64(words[_OFFSET])
    if width:
        base = registers + int64(words[HEADER])
        address += int64(get(base + lane * width, width))
    return address - SHARED_WINDOW if address >= SHARED_WINDOW else address


@compile_native
def _start(m, pc, warp, row, mask, address):
    lane = lowest_one(mask)
    address = own_offset(m, address)
    if address & 7:
        report(m, MISALIGNED, pc, warp, lane, address, -1)
        return
    if not is_in_shared(m, address, 8):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
        return
    number = mbarriers.find(m, address)
    if number < 0:
        report(m, MISUSE, pc, warp, lane, address, -1)
        return
    known = words_at(order.clocks_of(m, warp), m.agents)
    read_shared(m, pc, warp, lane, warp, known[warp], address, 8)
    if words_at(row, HEADER)[_COUNTS_ITSELF]:
        mbarriers.mbarrier_at(m, number).pending += count_ones(mask)
    clock = int64(known[m.copy_agent + warp])
    for place in range(m.first_pending, m.n_pending):
        one = pending_at(m, place)
        if one.kind == COPY and one.warp == warp:
            one.told |= mask
            if not one.mask & ~one.told:
                clock = max(clock, one.clock)
    new = begin(m, ARRIVAL, pc, warp, mask)
    new.mbarrier = number
    new.clock = clock
    if m.is_early:
        land(m, new)


@compile_native
def land(m, one):
    """The copies of these threads are over: they arrive."""
    for place in range(m.first_pending, m.n_pending):
        copy = pending_at(m, place)
        if copy.kind == COPY and copy.warp == one.warp and copy.clock <= one.clock:
            land_copy(m, copy)
            if copy.group == OPEN and not copy.mask & ~copy.told:
                copy.kind = FREE
    one.kind = FREE
    agent = m.copy_agent + one.warp
    arrivals = count_ones(one.mask)
    mbarriers.arrive_for(m, one.pc, one.warp, one.mbarrier, arrivals, agent, one.clock)
