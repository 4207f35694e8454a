"""What a warp starts and something else completes: copies to shared memory, copies of
tensors, and wgmma (PTX ISA, "cp.async", "cp.async.bulk.tensor", "wgmma.mma_async").

Each is checked when it is issued, as an access by an agent of its own that nothing
orders but a wait. What it does to memory and registers is done at once (an early
machine) or when somebody waits for it or nothing else can go on (a late one).
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint8, uint32

from batchline.bench.measure.emulator import order
from batchline.bench.measure.emulator.layout import (
    HEADER,
    LANES,
    PARAMETERS,
    PENDING,
    PENDING_MOST,
    SLOT_SHIFT,
    Finding,
    PendingKind,
    Status,
)
from batchline.bench.measure.emulator.matrix import (
    DEPTH_BYTES,
    SCALE_D,
    TRANSPOSE_A,
    TRANSPOSE_B,
    addresses_of_rows,
    operand_addresses,
    wgmma_from_registers,
    wgmma_from_shared,
    why_descriptor_invalid,
)
from batchline.bench.measure.emulator.memory_access import (
    count_passes,
    count_sectors,
    get,
    why_outside,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import (
    find_allocation,
    read_global,
    read_shared,
    report,
    write_shared,
    warp_at,
)
from batchline.bench.measure.emulator.raw import (
    bytes_at,
    copy,
    fill,
    longs_at,
    lowest_one,
    read32,
    read64,
    record_reader,
    words_at,
    write32,
)
from batchline.bench.measure.emulator.shared_arrays import (
    is_in_shared,
    own_offset,
)

OUT_OF_BOUNDS = int(Finding.OUT_OF_BOUNDS)
MISALIGNED = int(Finding.MISALIGNED)
MISSING_WAIT, MISSING_FENCE = int(Finding.MISSING_WAIT), int(Finding.MISSING_FENCE)
DIVERGENT_BARRIER = int(Finding.DIVERGENT_BARRIER)
MBARRIER_MISUSE = int(Finding.MBARRIER_MISUSE)
BAD_DESCRIPTOR = int(Finding.BAD_DESCRIPTOR)
UNSUPPORTED = int(Finding.UNSUPPORTED)
ENDED = int(Status.ENDED)
FREE, COPY = int(PendingKind.FREE), int(PendingKind.COPY)
PRODUCT = int(PendingKind.PRODUCT)
OPEN = -1  # the group of what has not been committed yet

_pending = record_reader(PENDING)
_BYTES = PENDING.itemsize


@compile_native
def pending_at(m, number):
    """The operation with this running number, of those that are not over."""
    return _pending(m.pending + (number % PENDING_MOST) * _BYTES)


@compile_native
def begin(m, kind, pc, warp, mask):
    """The record of a new operation; the oldest lands if there are too many."""
    while m.first_pending < m.n_pending:
        if pending_at(m, m.first_pending).kind != FREE:
            break
        m.first_pending += 1
    if m.n_pending - m.first_pending == PENDING_MOST:
        report(m, UNSUPPORTED, pc, warp, -1, 0, -1)
        pending_at(m, m.first_pending).kind = FREE
        m.first_pending += 1
    new = pending_at(m, m.n_pending)
    m.n_pending += 1
    new.kind = kind
    new.warp = warp
    new.group = OPEN
    new.pc = pc
    new.mask = mask
    new.told = uint32(0)
    new.landed = 0
    new.mbarrier = -1
    new.rank = m.rank
    new.mbarrier_rank = m.rank
    new.reduction = 0
    return new


@compile_native
def commit(m, warp, kind, group):
    """Put a warp's open operations of a kind into a group."""
    for number in range(m.first_pending, m.n_pending):
        one = pending_at(m, number)
        if one.kind == kind and one.warp == warp and one.group == OPEN:
            one.group = group


# --- cp.async -----------------------------------------------------------------------

_COPY_BYTES, _HAS_SIZE, _TO_OFFSET, _FROM_OFFSET, _TO_WIDTH, _FROM_WIDTH = range(
    PARAMETERS, PARAMETERS + 6
)


@Handler
def start_copy(machine, pc, warp, registers, row, mask):
    """cp.async: operands the shared address, the global one and, maybe, how many of the
    bytes are read; the others are zeros.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER + 3)
    count = int64(words[_COPY_BYTES])
    new = begin(m, COPY, pc, warp, mask)
    new.bytes = uint32(count)
    agent = m.copy_agent + warp
    new.clock = order.issue(m, agent)
    addresses = longs_at(m.scratch, LANES)
    to, source = registers + int64(words[HEADER]), registers + int64(words[HEADER + 1])
    sizes = registers + int64(words[HEADER + 2]) if words[_HAS_SIZE] else int64(0)
    to_width, from_width = words[_TO_WIDTH], words[_FROM_WIDTH]
    read = uint32(0)
    for lane in range(LANES):
        new.target[lane] = -1
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        target = int64(get(to + lane * to_width, to_width)) + int64(words[_TO_OFFSET])
        target = own_offset(m, target)
        address = int64(get(source + lane * from_width, from_width)) + int64(
            words[_FROM_OFFSET]
        )
        size = min(count, int64(read32(sizes + lane * 4))) if sizes else count
        new.source[lane] = address
        new.count[lane] = size
        addresses[lane] = address
        if target % count or size and address % count:
            report(m, MISALIGNED, pc, warp, lane, address, -1)
            continue
        if not is_in_shared(m, target, count):
            report(m, OUT_OF_BOUNDS, pc, warp, lane, target, -1)
            continue
        new.read[lane] = size
        if size:
            inside = _bytes_inside(m, pc, warp, lane, address, size)
            if not inside:
                continue
            new.read[lane] = inside
            read |= uint32(1) << uint32(lane)
        new.target[lane] = target
        write_shared(m, pc, warp, lane, agent, new.clock, target, count, 0)
    if m.is_counting:
        if read:
            count_sectors(m, pc, read, count, True)
        for lane in range(LANES):
            addresses[lane] = max(int64(0), new.target[lane])
        count_passes(m, pc, mask, count)
    if m.is_early:
        land_copy(m, new)
    return DONE


@compile_native
def _bytes_inside(m, pc, warp, lane, address, size):
    """Check a read of global memory; how many of its bytes the allocation has, all or
    up to its end if that is within the last 16 aligned ones.
    """
    allocation = find_allocation(m, address)
    end = int64(read64(allocation + 8)) if allocation else int64(0)
    if address + size > end:
        report(m, why_outside(m, address, size), pc, warp, lane, address, -1)
        if not allocation or address + size > ((end + 15) & ~15):
            return int64(0)
        size = end - address
    read_global(m, pc, warp, lane, allocation, address, size)
    return size


@compile_native
def land_copy(m, one):
    """Move the bytes of a copy by cp.async."""
    if one.landed:
        return
    one.landed = 1
    for lane in range(LANES):
        target = one.target[lane]
        if target < 0:
            continue
        read, count = one.read[lane], one.count[lane]
        copy(m.shared + target, one.source[lane], read)
        fill(m.shared + target + read, uint8(255), count - read)  # past the end: poison
        fill(m.shared + target + count, uint8(0), int64(one.bytes) - count)


@compile_native
def _commit_copies(m, warp):
    state = warp_at(m, warp)
    commit(m, warp, COPY, state.copy_groups)
    state.copy_groups += 1


@Handler
def commit_copies(machine, pc, warp, registers, row, mask):
    """cp.async.commit_group."""
    _commit_copies(machine_at(machine), warp)
    return DONE


@Handler
def wait_for_copies(machine, pc, warp, registers, row, mask):
    """cp.async.wait_group and wait_all: until at most so many of the last groups are
    still open; parameters their number, and whether what is open is committed first.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER)
    if words[PARAMETERS + 1]:
        _commit_copies(m, warp)
    last = warp_at(m, warp).copy_groups - int64(words[PARAMETERS])
    for number in range(m.first_pending, m.n_pending):
        one = pending_at(m, number)
        if one.kind == COPY and one.warp == warp and OPEN < one.group < last:
            land_copy(m, one)
            order.know(m, warp, m.copy_agent + warp, one.clock)
            one.kind = FREE
    if words[PARAMETERS + 1]:  # also what an mbarrier was told of before
        issued = words_at(order.clocks_of(m, m.copy_agent + warp), m.agents)
        order.know(m, warp, m.copy_agent + warp, int64(issued[m.copy_agent + warp]))
    return DONE


# --- wgmma --------------------------------------------------------------------------

_MMA_KIND, _FLAGS, _ACCUMULATORS, _IS_A_IN_REGISTERS = range(PARAMETERS, PARAMETERS + 4)
_A_REGISTERS = 4


@Handler
def start_product(machine, pc, warp, registers, row, mask):
    """wgmma.mma_async: operands the accumulators, A (four registers or a descriptor),
    B's descriptor, and the predicate scale-d.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER + 4)
    accumulators = int64(words[_ACCUMULATORS])
    operands = words_at(row, HEADER + accumulators + 6)
    place = HEADER + accumulators
    state = warp_at(m, warp)
    if mask != uint32(0xFFFFFFFF):
        report(m, DIVERGENT_BARRIER, pc, warp, lowest_one(~mask), 0, -1)
    is_a_in_registers = words[_IS_A_IN_REGISTERS] != 0
    pieces = _A_REGISTERS if is_a_in_registers else 1
    _require_fence(m, pc, warp, row, accumulators, pieces if is_a_in_registers else 0)
    new = begin(m, PRODUCT, pc, warp, mask)
    new.clock = order.issue(m, m.product_agent + warp)
    new.descriptors[0] = (
        0 if is_a_in_registers else int64(read64(registers + int64(operands[place])))
    )
    new.descriptors[1] = int64(read64(registers + int64(operands[place + pieces])))
    scale = read32(registers + int64(operands[place + pieces + 1]))
    new.accumulates = 1 if scale & uint32(1) else 0
    new.source[0] = row
    new.source[1] = registers
    state.products += 1
    state.product_trace = state.product_trace * 31 + pc + 1
    mark_in_flight(m, warp, row, accumulators, pieces if is_a_in_registers else 0, 1)
    if not _read_operands(m, pc, warp, words, new):
        new.landed = 1
    elif m.is_early:
        _land_product(m, new)
    return DONE


@compile_native
def require_group(m, pc, warp):
    """Report a warp that ends and has executed other wgmma than the three that these
    are for, too.
    """
    first = warp & ~3
    trace = warp_at(m, warp).product_trace
    for other in range(first, first + 4):
        if other >= m.n_warps:
            if trace:
                report(m, DIVERGENT_BARRIER, pc, warp, -1, 0, -1)
            return
        state = warp_at(m, other)
        if state.status == ENDED and state.product_trace != trace:
            report(m, DIVERGENT_BARRIER, pc, warp, -1, 0, -1)
            return


@compile_native
def _slots(m, warp, base, bytes_each):
    slots = m.register_bytes >> SLOT_SHIFT
    return base + warp * slots * bytes_each


@compile_native
def _require_fence(m, pc, warp, row, accumulators, more):
    """wgmma.fence orders the registers that were written before with the product's
    reads, but for accumulators of the product before.
    """
    state = warp_at(m, warp)
    words = words_at(row, HEADER + accumulators + more)
    dirty = words_at(_slots(m, warp, m.dirty, 4), m.register_bytes >> SLOT_SHIFT)
    in_flight = bytes_at(
        _slots(m, warp, m.in_flight, 1), m.register_bytes >> SLOT_SHIFT
    )
    is_fenced = state.fences > 1
    for place in range(HEADER, HEADER + accumulators + more):
        slot = int64(words[place]) >> SLOT_SHIFT
        if dirty[slot] == state.fences:
            is_fenced = False
        if place >= HEADER + accumulators and in_flight[slot] == 2:
            report(m, MISSING_WAIT, pc, warp, -1, 0, -1)  # A is still to be computed
    if not is_fenced:
        report(m, MISSING_FENCE, pc, warp, -1, 0, -1)


@compile_native
def mark_in_flight(m, warp, row, accumulators, more, is_in_flight):
    """Note of the first registers of a row that something asynchronous writes them, and
    of `more` behind them that it reads them; or that it does no longer.
    """
    words = words_at(row, HEADER + accumulators + more)
    in_flight = bytes_at(
        _slots(m, warp, m.in_flight, 1), m.register_bytes >> SLOT_SHIFT
    )
    for place in range(HEADER, HEADER + accumulators + more):
        slot = int64(words[place]) >> SLOT_SHIFT
        mark = 2 if place < HEADER + accumulators else 1
        in_flight[slot] = uint8(mark if is_in_flight else 0)


@compile_native
def _read_operands(m, pc, warp, words, new):
    """Check what the product reads of shared memory; whether it can be computed."""
    flags = int64(words[_FLAGS])
    columns = _columns(words)
    for side in range(2):
        if side == 0 and words[_IS_A_IN_REGISTERS]:
            continue
        descriptor = new.descriptors[side]
        if why_descriptor_invalid(descriptor):
            report(m, BAD_DESCRIPTOR, pc, warp, -1, descriptor, -1)
            return False
        addresses = (
            addresses_of_rows(descriptor, warp & 3, (flags & TRANSPOSE_A) != 0)
            if side == 0
            else operand_addresses(
                descriptor, columns, DEPTH_BYTES, (flags & TRANSPOSE_B) != 0
            )
        )
        agent = m.product_agent + warp
        for place in range(len(addresses)):
            address = int64(addresses[place])
            if not is_in_shared(m, address, 16):
                report(m, OUT_OF_BOUNDS, pc, warp, -1, address, -1)
                return False
            read_shared(m, pc, warp, -1, agent, new.clock, address, 16)
    return True


@compile_native
def _columns(words):
    per_register = 2 if (int64(words[_MMA_KIND]) >> 8) & 0xF == 1 else 1
    return 2 * per_register * int64(words[_ACCUMULATORS])


@compile_native
def gather_rows(registers, words, first, count):
    """uint32[count, 32]: the registers at `count` operands from words[first] on."""
    rows = np.empty((count, LANES), np.uint32)
    for number in range(count):
        source = registers + int64(words[first + number])
        for lane in range(LANES):
            rows[number, lane] = read32(source + lane * 4)
    return rows


@compile_native
def scatter_rows(registers, words, first, rows):
    """The reverse of gather_rows."""
    for number in range(rows.shape[0]):
        target = registers + int64(words[first + number])
        for lane in range(LANES):
            write32(target + lane * 4, rows[number, lane])


@compile_native
def _land_product(m, one):
    """Compute a product: the warp's 16 rows of D."""
    if one.landed:
        return
    one.landed = 1
    row, registers = one.source[0], one.source[1]
    words = words_at(row, HEADER + 4)
    kind, flags = int64(words[_MMA_KIND]), int64(words[_FLAGS])
    if one.accumulates:
        flags |= SCALE_D
    count = int64(words[_ACCUMULATORS])
    operands = words_at(row, HEADER + count + _A_REGISTERS)
    shared = bytes_at(m.shared, m.shared_bytes)
    rows = gather_rows(registers, operands, HEADER, count)
    if words[_IS_A_IN_REGISTERS]:
        a = gather_rows(registers, operands, HEADER + count, _A_REGISTERS)
        wgmma_from_registers(kind, flags, rows, a, one.descriptors[1], shared)
    else:
        a_descriptor, b_descriptor = one.descriptors[0], one.descriptors[1]
        wgmma_from_shared(
            kind, flags, rows, one.warp & 3, a_descriptor, b_descriptor, shared
        )
    scatter_rows(registers, operands, HEADER, rows)


@Handler
def fence_products(machine, pc, warp, registers, row, mask):
    """wgmma.fence."""
    warp_at(machine_at(machine), warp).fences += 1
    return DONE


@Handler
def commit_products(machine, pc, warp, registers, row, mask):
    """wgmma.commit_group."""
    m = machine_at(machine)
    state = warp_at(m, warp)
    commit(m, warp, PRODUCT, state.product_groups)
    state.product_groups += 1
    return DONE


@Handler
def wait_for_products(machine, pc, warp, registers, row, mask):
    """wgmma.wait_group: until at most so many of the last groups are still open."""
    m = machine_at(machine)
    state = warp_at(m, warp)
    last = state.product_groups - int64(words_at(row, HEADER)[PARAMETERS])
    for number in range(m.first_pending, m.n_pending):
        one = pending_at(m, number)
        if one.kind == PRODUCT and one.warp == warp and OPEN < one.group < last:
            _land_product(m, one)
            order.know(m, warp, m.product_agent + warp, one.clock)
            _mark_product(m, warp, one, 0)
            one.kind = FREE
            state.products -= 1
    for number in range(m.first_pending, m.n_pending):
        one = pending_at(m, number)  # its registers may be another's, still in flight
        if one.kind == PRODUCT and one.warp == warp:
            _mark_product(m, warp, one, 1)
    return DONE


@compile_native
def _mark_product(m, warp, one, is_in_flight):
    words = words_at(one.source[0], HEADER + 4)
    more = _A_REGISTERS if words[_IS_A_IN_REGISTERS] else 0
    count = int64(words[_ACCUMULATORS])
    mark_in_flight(m, warp, one.source[0], count, more, is_in_flight)


@Handler
def require_not_in_flight(machine, pc, warp, registers, row, mask):
    """Report an instruction that touches a register of a product in flight."""
    m = machine_at(machine)
    words = words_at(row, HEADER)
    count = int64(words[3])
    operands = words_at(row, HEADER + count)
    in_flight = bytes_at(
        _slots(m, warp, m.in_flight, 1), m.register_bytes >> SLOT_SHIFT
    )
    written = int64(words[2]) >> 8
    for place in range(count):
        mark = in_flight[int64(operands[HEADER + place]) >> SLOT_SHIFT]
        if mark == 2 or mark == 1 and place < written:
            report(m, MISSING_WAIT, pc, warp, -1, 0, -1)
    return DONE


@Handler
def mark_dirty(machine, pc, warp, registers, row, mask):
    """Note the registers that an instruction writes, up to the next wgmma.fence."""
    m = machine_at(machine)
    words = words_at(row, HEADER)
    written = int64(words[2]) >> 8
    operands = words_at(row, HEADER + written)
    dirty = words_at(_slots(m, warp, m.dirty, 4), m.register_bytes >> SLOT_SHIFT)
    fences = warp_at(m, warp).fences
    for place in range(written):
        dirty[int64(operands[HEADER + place]) >> SLOT_SHIFT] = fences
    return DONE
