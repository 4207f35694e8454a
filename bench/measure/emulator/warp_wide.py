"""Instructions in which the lanes of a warp exchange values (PTX ISA, "shfl.sync",
"vote.sync", "match.sync", "redux.sync", "elect.sync", "ldmatrix", "stmatrix").
"""

from __future__ import annotations

import numpy as np
from numba import int32, int64, uint32, uint64

from batchline.bench.measure.emulator import order
from batchline.bench.measure.emulator.layout import (
    HEADER,
    LANES,
    PARAMETERS,
    Finding,
)
from batchline.bench.measure.emulator.matrix import ldmatrix, stmatrix
from batchline.bench.measure.emulator.memory_access import gather_addresses
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import (
    read_shared,
    report,
    warp_at,
    write_shared,
)
from batchline.bench.measure.emulator.raw import (
    bytes_at,
    copy,
    longs_at,
    lowest_one,
    read32,
    read64,
    words_at,
    write32,
    write64,
)
from batchline.bench.measure.emulator.shared_arrays import (
    is_in_shared,
    own_offset,
)

DIVERGENT_BARRIER = int(Finding.DIVERGENT_BARRIER)
OUT_OF_BOUNDS = int(Finding.OUT_OF_BOUNDS)
MISALIGNED = int(Finding.MISALIGNED)
UP, DOWN, BUTTERFLY, INDEXED = range(4)
ALL, ANY, UNIFORM, BALLOT = range(4)
ADD, MINIMUM, MAXIMUM, AND, OR, XOR = range(6)
_P0, _P1, _P2 = PARAMETERS, PARAMETERS + 1, PARAMETERS + 2


@compile_native
def require_members(m, pc, warp, members, mask):
    """Report an instruction of a whole warp that not all of its members execute."""
    order.meet_lanes(m, warp, mask)
    away = members & warp_at(m, warp).alive & ~mask
    strangers = mask & ~members
    if away or strangers:
        lane = lowest_one(away if away else strangers)
        report(m, DIVERGENT_BARRIER, pc, warp, lane, 0, -1)


@compile_native
def _members(registers, offset, mask):
    return read32(registers + offset + lowest_one(mask) * 4)


@compile_native
def _alike(registers, offset, mask):
    """The lanes that name the same members as the first of them: two halves of a warp
    may execute an instruction at once, each for itself.
    """
    members = _members(registers, offset, mask)
    alike = uint32(0)
    for lane in range(LANES):
        is_same = read32(registers + offset + lane * 4) == members
        alike |= uint32(is_same) << uint32(lane)
    return alike & mask


@Handler
def synchronise(machine, pc, warp, registers, row, mask):
    """bar.warp.sync: operand members."""
    m = machine_at(machine)
    offset = int64(words_at(row, HEADER + 1)[HEADER])
    while mask:
        group = _alike(registers, offset, mask)
        mask &= ~group
        members = _members(registers, offset, group)
        require_members(m, pc, warp, members, group)
        if group == warp_at(m, warp).alive:
            order.sync_lanes(m, warp)
        else:
            order.sync_some_lanes(m, warp, group)
    return DONE


@compile_native
def _write_predicate(address, value, mask):
    write32(address, uint32((read32(address) & ~mask) | (value & mask)))


@Handler
def shuffle(machine, pc, warp, registers, row, mask):
    """shfl.sync: operands d, p (or the sink), a, b, c, members."""
    offset = int64(words_at(row, HEADER + 6)[HEADER + 5])
    while mask:
        group = _alike(registers, offset, mask)
        mask &= ~group
        _shuffle(machine_at(machine), pc, warp, registers, row, group)
    return DONE


@compile_native
def _shuffle(m, pc, warp, registers, row, mask):
    words = words_at(row, HEADER + 6)
    mode = words[_P0]
    target = registers + int64(words[HEADER])
    source = registers + int64(words[HEADER + 2])
    lanes = registers + int64(words[HEADER + 3])
    clamps = registers + int64(words[HEADER + 4])
    require_members(
        m, pc, warp, _members(registers, int64(words[HEADER + 5]), mask), mask
    )
    values = longs_at(m.scratch, LANES)
    for lane in range(LANES):
        values[lane] = int64(read32(source + lane * 4))
    in_range = uint32(0)
    for lane in range(LANES):
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        by = int64(read32(lanes + lane * 4) & uint32(31))
        clamp = read32(clamps + lane * 4)
        limit = int64(clamp & uint32(31))
        segment = int64((clamp >> uint32(8)) & uint32(31))
        highest = (lane & segment) | (limit & ~segment)
        lowest = lane & segment
        if mode == UP:
            place = lane - by
            is_valid = place >= highest
        elif mode == DOWN:
            place = lane + by
            is_valid = place <= highest
        elif mode == BUTTERFLY:
            place = lane ^ by
            is_valid = place <= highest
        else:
            place = lowest | (by & ~segment)
            is_valid = place <= highest
        if not is_valid:
            place = lane
        else:
            in_range |= uint32(1) << uint32(lane)
            if not (mask >> uint32(place)) & uint32(1):
                report(m, DIVERGENT_BARRIER, pc, warp, lane, 0, -1)
        write32(target + lane * 4, uint32(values[place]))
    _write_predicate(registers + int64(words[HEADER + 1]), in_range, mask)


@Handler
def vote(machine, pc, warp, registers, row, mask):
    """vote.sync: operands d, a, members; parameter 1 says that a is negated."""
    offset = int64(words_at(row, HEADER + 3)[HEADER + 2])
    while mask:
        group = _alike(registers, offset, mask)
        mask &= ~group
        _vote(machine_at(machine), pc, warp, registers, row, group)
    return DONE


@compile_native
def _vote(m, pc, warp, registers, row, mask):
    words = words_at(row, HEADER + 3)
    mode = words[_P0]
    members = _members(registers, int64(words[HEADER + 2]), mask)
    require_members(m, pc, warp, members, mask)
    asked = read32(registers + int64(words[HEADER + 1]))
    if words[_P1]:
        asked = ~asked
    taking_part = members & mask
    yes = asked & taking_part
    if mode == BALLOT:
        _broadcast(registers + int64(words[HEADER]), yes, mask)
        return
    if mode == ALL:
        outcome = yes == taking_part
    elif mode == ANY:
        outcome = yes != 0
    else:
        outcome = yes == taking_part or yes == 0
    everywhere = uint32(0xFFFFFFFF) if outcome else uint32(0)
    _write_predicate(registers + int64(words[HEADER]), everywhere, mask)


@compile_native
def _broadcast(target, value, mask):
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            write32(target + lane * 4, uint32(value))


@Handler
def active_mask(machine, pc, warp, registers, row, mask):
    """activemask: operand d."""
    _broadcast(registers + int64(words_at(row, HEADER + 1)[HEADER]), mask, mask)
    return DONE


@Handler
def elect(machine, pc, warp, registers, row, mask):
    """elect.sync: operands d, p, members: the lowest member is elected."""
    m = machine_at(machine)
    words = words_at(row, HEADER + 3)
    members = _members(registers, int64(words[HEADER + 2]), mask)
    require_members(m, pc, warp, members, mask)
    leader = lowest_one(members & mask)
    _broadcast(registers + int64(words[HEADER]), uint32(leader), mask)
    _write_predicate(
        registers + int64(words[HEADER + 1]), uint32(1) << uint32(leader), mask
    )
    return DONE


@Handler
def match(machine, pc, warp, registers, row, mask):
    """match.sync: operands d, p, a, members; parameter 0: .all, parameter 1: bytes."""
    offset = int64(words_at(row, HEADER + 4)[HEADER + 3])
    while mask:
        group = _alike(registers, offset, mask)
        mask &= ~group
        _match(machine_at(machine), pc, warp, registers, row, group)
    return DONE


@compile_native
def _match(m, pc, warp, registers, row, mask):
    words = words_at(row, HEADER + 4)
    members = _members(registers, int64(words[HEADER + 3]), mask)
    require_members(m, pc, warp, members, mask)
    taking_part = members & mask
    source = registers + int64(words[HEADER + 2])
    width = words[_P1]
    values = longs_at(m.scratch, LANES)
    for lane in range(LANES):
        if width == 8:
            values[lane] = int64(read64(source + lane * 8))
        else:
            values[lane] = int64(read32(source + lane * 4))
    is_one = True
    for lane in range(LANES):
        if not (taking_part >> uint32(lane)) & uint32(1):
            continue
        alike = uint32(0)
        for other in range(LANES):
            if (taking_part >> uint32(other)) & uint32(1):
                if values[other] == values[lane]:
                    alike |= uint32(1) << uint32(other)
        if alike != taking_part:
            is_one = False
        if not words[_P0]:
            write32(registers + int64(words[HEADER]) + lane * 4, alike)
    if words[_P0]:
        outcome = taking_part if is_one else uint32(0)
        _broadcast(registers + int64(words[HEADER]), outcome, mask)
        everywhere = uint32(0xFFFFFFFF) if is_one else uint32(0)
        _write_predicate(registers + int64(words[HEADER + 1]), everywhere, mask)


@Handler
def redux(machine, pc, warp, registers, row, mask):
    """redux.sync: operands d, a, members; parameter 0: operation, 1: signed."""
    offset = int64(words_at(row, HEADER + 3)[HEADER + 2])
    while mask:
        group = _alike(registers, offset, mask)
        mask &= ~group
        _redux(machine_at(machine), pc, warp, registers, row, group)
    return DONE


@compile_native
def _redux(m, pc, warp, registers, row, mask):
    words = words_at(row, HEADER + 3)
    members = _members(registers, int64(words[HEADER + 2]), mask)
    require_members(m, pc, warp, members, mask)
    taking_part = members & mask
    source = registers + int64(words[HEADER + 1])
    operation, is_signed = words[_P0], words[_P1]
    is_first = True
    outcome = uint32(0)
    for lane in range(LANES):
        if not (taking_part >> uint32(lane)) & uint32(1):
            continue
        value = read32(source + lane * 4)
        if is_first:
            outcome = value
            is_first = False
        elif operation == ADD:
            outcome = uint32(outcome + value)
        elif operation == AND:
            outcome = outcome & value
        elif operation == OR:
            outcome = outcome | value
        elif operation == XOR:
            outcome = outcome ^ value
        else:
            is_less = int32(value) < int32(outcome) if is_signed else value < outcome
            if is_less == (operation == MINIMUM) and value != outcome:
                outcome = value
    _broadcast(registers + int64(words[HEADER]), outcome, mask)


# --- matrices in shared memory ------------------------------------------------------


@compile_native
def _rows_of_matrices(m, pc, warp, matrices, data):
    """Check the 16-byte rows of `matrices` 8 x 8 matrices, whose addresses the first
    lanes have given in m.scratch; whether all may be used. They are read, or else what
    lies at `data`, row after row, is written to those.
    """
    addresses = longs_at(m.scratch, LANES)
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    is_right = True
    for lane in range(8 * matrices):
        address = own_offset(m, addresses[lane])
        addresses[lane] = address
        if address & 15:
            report(m, MISALIGNED, pc, warp, lane, address, -1)
            is_right = False
        elif not is_in_shared(m, address, 16):
            report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
            is_right = False
        elif not data:
            read_shared(m, pc, warp, -1, warp, clock, address, 16)
        else:
            source = data + 16 * lane
            write_shared(m, pc, warp, lane, warp, clock, address, 16, source)
            copy(m.shared + address, source, 16)  # seen by the rows behind it
    if m.is_counting:
        _count_rows(m, pc, matrices)
    return is_right


@compile_native
def _count_rows(m, pc, matrices):
    """A matrix is served in one pass if its 8 rows are in different banks."""
    addresses = longs_at(m.scratch, LANES)
    passes = 0
    for matrix in range(matrices):
        worst = 1
        for row in range(8):
            alike = 1
            mine = addresses[matrix * 8 + row]
            for other in range(row):
                theirs = addresses[matrix * 8 + other]
                if theirs != mine and ((theirs ^ mine) >> 4) & 7 == 0:
                    alike += 1
            if alike > worst:
                worst = alike
        passes += worst
    write64(m.passes + pc * 8, read64(m.passes + pc * 8) + uint64(passes))
    write64(m.requests + pc * 8, read64(m.requests + pc * 8) + uint64(matrices))


@Handler
def load_matrices(machine, pc, warp, registers, row, mask):
    """ldmatrix.m8n8.b16: operands d…, address; parameters matrices, transposed."""
    m = machine_at(machine)
    words = words_at(row, HEADER + 5)
    matrices, transposed = int64(words[_P0]), words[_P1]
    if mask != uint32(0xFFFFFFFF):
        report(m, DIVERGENT_BARRIER, pc, warp, lowest_one(~mask), 0, -1)
    gather_addresses(m, registers, row, matrices, mask)
    if not _rows_of_matrices(m, pc, warp, matrices, 0):
        return DONE
    order.meet_lanes(m, warp, mask)
    values = np.empty((matrices, LANES), np.uint32)
    shared = bytes_at(m.shared, m.shared_bytes)
    ldmatrix(shared, longs_at(m.scratch, LANES), transposed != 0, values)
    for matrix in range(matrices):
        target = registers + int64(words[HEADER + matrix])
        for lane in range(LANES):
            write32(target + lane * 4, values[matrix, lane])
    return DONE


@Handler
def store_matrices(machine, pc, warp, registers, row, mask):
    """stmatrix.m8n8.b16: operands address, s…; parameters matrices, transposed."""
    m = machine_at(machine)
    words = words_at(row, HEADER + 5)
    matrices, transposed = int64(words[_P0]), words[_P1]
    if mask != uint32(0xFFFFFFFF):
        report(m, DIVERGENT_BARRIER, pc, warp, lowest_one(~mask), 0, -1)
    gather_addresses(m, registers, row, 0, mask)
    values = np.empty((matrices, LANES), np.uint32)
    for matrix in range(matrices):
        source = registers + int64(words[HEADER + 1 + matrix])
        for lane in range(LANES):
            values[matrix, lane] = read32(source + lane * 4)
    rows = np.empty(16 * LANES, np.uint8)
    stmatrix(rows, 16 * np.arange(LANES), transposed != 0, values)
    _rows_of_matrices(m, pc, warp, matrices, int64(rows.ctypes.data))
    return DONE
