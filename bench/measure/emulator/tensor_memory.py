"""Tensor memory of sm_100: who has which columns, and what warps move between it and
their registers (PTX ISA, "Tensor Memory" and "tcgen05.alloc", "tcgen05.ld",
"tcgen05.st", "tcgen05.wait").

A block has 128 lanes of 512 columns of 32 bits. An address is a lane in bits 16 to 31
and a column in bits 0 to 15. Warp w reaches lanes 32 * (w % 4) to the 31st behind, a
"part" here. A place is a column of a part: of each is known which lanes are written,
the agent that wrote it last and its clock, likewise the agent of the product that read
its scales last, and of each warp the clock of its last read.
The clock of an access that no tcgen05.wait has ended is OPEN: nobody knows it. Places
are those of the warp's block; those of the block with the next rank are TENSOR_PLACES
further on. To take columns counts as to write none of their lanes.

With .cta_group::2 both blocks of a pair take and free columns, a warp of each, and alike.
"""

from __future__ import annotations

from numba import int32, int64, uint8, uint32

from batchline.bench.measure.emulator import order
from batchline.bench.measure.emulator.asynchronous import (
    begin,
    mark_in_flight,
    pending_at,
)
from batchline.bench.measure.emulator.layout import (
    HEADER,
    KIND,
    LANES,
    PARAMETERS,
    SHARED_WINDOW,
    TENSOR_COLUMNS,
    TENSOR_LANES,
    TENSOR_PARTS,
    TENSOR_PLACES,
    TENSOR_WARPS,
    Finding,
    PendingKind,
    Status,
)
from batchline.bench.measure.emulator.memory_access import get
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import report, warp_at, write_shared
from batchline.bench.measure.emulator.raw import (
    fill,
    longs_at,
    lowest_one,
    read32,
    words_at,
    write32,
)
from batchline.bench.measure.emulator.shared_arrays import (
    is_in_shared,
    own_offset,
)

OUT_OF_BOUNDS, MISALIGNED = int(Finding.OUT_OF_BOUNDS), int(Finding.MISALIGNED)
MISSING_WAIT = int(Finding.MISSING_WAIT)
DIVERGENT_BARRIER = int(Finding.DIVERGENT_BARRIER)
UNINITIALISED = int(Finding.UNINITIALISED_TENSOR)
RACE, ALLOCATION = int(Finding.RACE_TENSOR), int(Finding.TENSOR_ALLOCATION)
FREE, READ = int(PendingKind.FREE), int(PendingKind.TENSOR_READ)
ENDED = int(Status.ENDED)
FULL = uint32(0xFFFFFFFF)
OPEN = (1 << 31) - 1
LEAST_COLUMNS = 32  # of an allocation
_AGENT_WORDS = 3  # 1 + its agent, its clock, its instruction
_RELINQUISHED, _TRACE = TENSOR_COLUMNS, TENSOR_COLUMNS + 1  # of `tensor_allocated`
_ALLOCATED_WORDS = TENSOR_COLUMNS + 2
_IS_OF_PAIR = PARAMETERS
_COUNT, _OFFSET, _WIDTH, _SPLIT = range(PARAMETERS, PARAMETERS + 4)
WHOLE = -1  # the SPLIT of what is not split
OF_LOADS, OF_STORES = range(2)  # parameter 0 of a TCGEN05_WAIT

BYTES_OF_BLOCK = {
    "tensor_values": TENSOR_LANES * TENSOR_COLUMNS * 4,
    "tensor_written": TENSOR_PLACES * 4,
    "tensor_writers": TENSOR_PLACES * _AGENT_WORDS * 4,
    "tensor_readers": TENSOR_PLACES * TENSOR_WARPS * 4,
    "tensor_product_readers": TENSOR_PLACES * _AGENT_WORDS * 4,
    "tensor_allocated": _ALLOCATED_WORDS * 8,
}
"""By the name of an array of the machine, its bytes for one block."""


@compile_native
def begin_block(m):
    """No columns are taken, none is written; what they hold is poison."""
    blocks = m.cluster_blocks
    fill(m.tensor_values, uint8(255), blocks * TENSOR_LANES * TENSOR_COLUMNS * 4)
    fill(m.tensor_written, uint8(0), blocks * TENSOR_PLACES * 4)
    fill(m.tensor_writers, uint8(0), blocks * TENSOR_PLACES * _AGENT_WORDS * 4)
    fill(m.tensor_readers, uint8(0), blocks * TENSOR_PLACES * TENSOR_WARPS * 4)
    fill(m.tensor_product_readers, uint8(0), blocks * TENSOR_PLACES * _AGENT_WORDS * 4)
    fill(m.tensor_allocated, uint8(0), blocks * _ALLOCATED_WORDS * 8)


# --- allocations --------------------------------------------------------------------


@compile_native
def _allocated(m, warp):
    """int64[columns + 2]: for each column 1 + the first column and the count << 16 of
    its allocation, or 0; then whether the block may allocate no more, and a hash of what
    it has done as one of a pair.
    """
    rank = warp // m.block_warps
    place = m.tensor_allocated + rank * _ALLOCATED_WORDS * 8
    return longs_at(place, _ALLOCATED_WORDS)


@compile_native
def _trace(allocated, row, first, columns):
    """Note an instruction that both blocks of a pair have to execute, alike."""
    words = words_at(row, HEADER)
    if words[_IS_OF_PAIR]:
        done = (int64(words[KIND]) << 20) + (first << 10) + columns
        allocated[_TRACE] = allocated[_TRACE] * 31 + done


@compile_native
def _require_whole_warp(m, pc, warp, mask):
    if mask != FULL:
        report(m, DIVERGENT_BARRIER, pc, warp, lowest_one(~mask), 0, -1)


@compile_native
def _is_count(columns):
    """Whether so many columns can be allocated: a power of two from 32 to 512."""
    is_power = columns & (columns - 1) == 0
    return LEAST_COLUMNS <= columns <= TENSOR_COLUMNS and is_power


@compile_native
def _highest_free(allocated, columns):
    """The first of so many free columns, as high as there are: a kernel that takes its
    first column for 0 is wrong. -1 if there are none.
    """
    first = TENSOR_COLUMNS - columns
    while first >= 0:
        is_free = True
        for column in range(first, first + columns):
            if allocated[column]:
                is_free = False
        if is_free:
            return first
        first -= LEAST_COLUMNS
    return -1


@compile_native
def address_of_operand(registers, row, place, offset, width, lane):
    """A base register and an offset, in a lane; `width` 0: the offset alone."""
    address = int64(offset)
    if width:
        words = words_at(row, HEADER + place + 1)
        base = registers + int64(words[HEADER + place])
        address += int64(get(base + lane * width, width))
    return address - SHARED_WINDOW if address >= SHARED_WINDOW else address


@Handler
def allocate(machine, pc, warp, registers, row, mask):
    """tcgen05.alloc: operands the shared address that is given the columns' address,
    and the count of columns. A GPU would wait for columns that are not free; no other
    block is there to free them.
    """
    m = machine_at(machine)
    _require_whole_warp(m, pc, warp, mask)
    words = words_at(row, HEADER + 2)
    lane = lowest_one(mask)
    shared = address_of_operand(registers, row, 0, words[_OFFSET], words[_WIDTH], lane)
    shared = own_offset(m, shared)
    columns = int64(read32(registers + int64(words[HEADER + 1]) + lane * 4))
    allocated = _allocated(m, warp)
    if not _is_count(columns) or allocated[_RELINQUISHED]:
        report(m, ALLOCATION, pc, warp, lane, columns, -1)
        return DONE
    if shared & 3 or not is_in_shared(m, shared, 4):
        report(
            m, MISALIGNED if shared & 3 else OUT_OF_BOUNDS, pc, warp, lane, shared, -1
        )
        return DONE
    first = _highest_free(allocated, columns)
    if first < 0:
        report(m, ALLOCATION, pc, warp, lane, columns, -1)
        return DONE
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    for column in range(first, first + columns):
        allocated[column] = 1 + first + (columns << 16)
        for part in range(TENSOR_PARTS):
            place = part * TENSOR_COLUMNS + column
            note_write(m, pc, warp, warp, int64(clock), place, uint32(0))
    _trace(allocated, row, first, columns)
    write_shared(m, pc, warp, lane, warp, clock, shared, 4, 0)
    write32(m.shared + shared, uint32(first))
    return DONE


@Handler
def deallocate(machine, pc, warp, registers, row, mask):
    """tcgen05.dealloc: operands the columns' address and their count, which must be
    those of an allocation. All that was done to them must be over.
    """
    m = machine_at(machine)
    _require_whole_warp(m, pc, warp, mask)
    words = words_at(row, HEADER + 2)
    lane = lowest_one(mask)
    first = int64(read32(registers + int64(words[HEADER]) + lane * 4))
    columns = int64(read32(registers + int64(words[HEADER + 1]) + lane * 4))
    allocated = _allocated(m, warp)
    if first >= TENSOR_COLUMNS or allocated[first] != 1 + first + (columns << 16):
        report(m, ALLOCATION, pc, warp, lane, first, -1)
        return DONE
    for part in range(TENSOR_PARTS):
        for column in range(first, first + columns):
            place = part * TENSOR_COLUMNS + column
            check_writer(m, pc, warp, -1, place, first)
            check_readers(m, pc, warp, place, first)
            write32(_written(m, warp, place), uint32(0))
    for column in range(first, first + columns):
        allocated[column] = 0
    _trace(allocated, row, first, columns)
    return DONE


@Handler
def relinquish(machine, pc, warp, registers, row, mask):
    """tcgen05.relinquish_alloc_permit: the block allocates no more."""
    m = machine_at(machine)
    _require_whole_warp(m, pc, warp, mask)
    allocated = _allocated(m, warp)
    allocated[_RELINQUISHED] = 1
    _trace(allocated, row, 0, 0)
    return DONE


@compile_native
def require_freed(m, pc, warp):
    """Report columns that are still allocated when the last warp of a block ends."""
    first = warp // m.block_warps * m.block_warps
    for other in range(first, first + m.block_warps):
        if warp_at(m, other).status != ENDED:
            return
    allocated = _allocated(m, warp)
    for column in range(TENSOR_COLUMNS):
        if allocated[column]:
            report(m, ALLOCATION, pc, warp, -1, column, -1)
            return
    if m.cluster_blocks % 2 == 0:
        _require_alike(m, pc, warp)


@compile_native
def _require_alike(m, pc, warp):
    """Report a block that ends as the second of its pair, if they have not taken and
    freed columns alike.
    """
    first = (warp // m.block_warps ^ 1) * m.block_warps  # of the other block
    for other in range(first, first + m.block_warps):
        if warp_at(m, other).status != ENDED:
            return
    if _allocated(m, first)[_TRACE] != _allocated(m, warp)[_TRACE]:
        report(m, ALLOCATION, pc, warp, -1, 0, -1)


# --- places -------------------------------------------------------------------------


@compile_native
def values_of(m, warp):
    """The address of the values that a warp's block has in tensor memory: column after
    column, of 128 lanes each.
    """
    rank = warp // m.block_warps
    return m.tensor_values + rank * TENSOR_LANES * TENSOR_COLUMNS * 4


@compile_native
def _place(m, warp, place):
    return warp // m.block_warps * TENSOR_PLACES + place


@compile_native
def _written(m, warp, place):
    """The address of the mask of the lanes of a place that are written."""
    return m.tensor_written + _place(m, warp, place) * 4


@compile_native
def _writer(m, warp, place):
    at = m.tensor_writers + _place(m, warp, place) * _AGENT_WORDS * 4
    return words_at(at, _AGENT_WORDS)


@compile_native
def _readers(m, warp, place):
    at = m.tensor_readers + _place(m, warp, place) * TENSOR_WARPS * 4
    return words_at(at, TENSOR_WARPS)


@compile_native
def _product_reader(m, warp, place):
    at = m.tensor_product_readers + _place(m, warp, place) * _AGENT_WORDS * 4
    return words_at(at, _AGENT_WORDS)


@compile_native
def is_allocated(m, warp, column, count):
    """Whether all of these columns are."""
    if column + count > TENSOR_COLUMNS:
        return False
    allocated = _allocated(m, warp)
    for each in range(column, column + count):
        if not allocated[each]:
            return False
    return True


@compile_native
def _is_known(m, warp, other, clock):
    """Whether a warp knows event `clock` of another one, which all lanes made together:
    so any of them may have handed it on.
    """
    known = words_at(order.clocks_of(m, warp), m.agents)
    if known[other] >= clock:
        return True
    if clock == OPEN or known[m.lane_agent + other] < clock:
        return False
    released = words_at(m.lane_released + other * LANES * 4, LANES)
    for lane in range(LANES):
        if released[lane] >= clock:
            return True
    return False


@compile_native
def check_writer(m, pc, warp, agent, place, address):
    """Report an access of a warp, or of its `agent`, to what another has written last
    and it does not know to be over.
    """
    writer = _writer(m, warp, place)
    other, clock = int64(writer[0]) - 1, int64(writer[1])
    if other < 0 or other == agent:
        return
    if other >= m.n_warps:
        if words_at(order.clocks_of(m, warp), m.agents)[other] < clock:
            report(m, MISSING_WAIT, pc, warp, -1, address, int64(writer[2]))
    elif not _is_known(m, warp, other, clock):
        kind = MISSING_WAIT if other == warp else RACE
        report(m, kind, pc, warp, -1, address, int64(writer[2]))


@compile_native
def check_readers(m, pc, warp, place, address):
    """Report a write of a warp, or of its agent, to what a warp or a product still
    reads, as far as it knows.
    """
    product = _product_reader(m, warp, place)
    agent, read_at = int64(product[0]) - 1, int64(product[1])
    if agent >= 0 and words_at(order.clocks_of(m, warp), m.agents)[agent] < read_at:
        report(m, MISSING_WAIT, pc, warp, -1, address, int64(product[2]))
    readers = _readers(m, warp, place)
    part = place % TENSOR_PLACES // TENSOR_COLUMNS
    block = warp // m.block_warps + place // TENSOR_PLACES
    first = block * m.block_warps
    for number in range(TENSOR_WARPS):
        clock = int64(readers[number])
        other = first + TENSOR_PARTS * number + part
        if clock and not _is_known(m, warp, other, clock):
            report(
                m, MISSING_WAIT if other == warp else RACE, pc, warp, -1, address, -1
            )


@compile_native
def check_written(m, pc, warp, place, lanes, address):
    """Report lanes of a place that nothing has written."""
    if lanes & ~read32(_written(m, warp, place)):
        report(m, UNINITIALISED, pc, warp, -1, address, -1)


@compile_native
def note_write(m, pc, warp, agent, clock, place, lanes):
    """An agent writes lanes of a place; it is over at `clock`."""
    written = _written(m, warp, place)
    write32(written, uint32(read32(written) | lanes))
    writer = _writer(m, warp, place)
    writer[0] = int32(agent + 1)
    writer[1] = int32(clock)
    writer[2] = int32(pc)


@compile_native
def note_product_read(m, pc, warp, agent, clock, place):
    """A product of an agent reads a place; it is over at `clock`. Of the products of
    several agents the last one is known.
    """
    reader = _product_reader(m, warp, place)
    reader[0] = int32(agent + 1)
    reader[1] = int32(clock)
    reader[2] = int32(pc)


# --- registers ----------------------------------------------------------------------

# A tcgen05.ld or .st of the shape 32x32b moves a column to each register, a lane to each
# thread. In 16x32bx2 threads 16 to 31 have the lanes of the first 16, SPLIT columns on.


@compile_native
def _address(m, pc, warp, registers, row, operand, mask):
    """The address that a tcgen05.ld or .st names, or -1 where it may not: one for all
    lanes, of the warp's own part, and columns that are taken.
    """
    _require_whole_warp(m, pc, warp, mask)
    words = words_at(row, HEADER)
    offset, width, split = words[_OFFSET], words[_WIDTH], int64(words[_SPLIT])
    first = lowest_one(mask)
    address = address_of_operand(registers, row, operand, offset, width, first)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            other = address_of_operand(registers, row, operand, offset, width, lane)
            if other != address:
                report(m, DIVERGENT_BARRIER, pc, warp, lane, other, -1)
                return int64(-1)
    lane, column = address >> 16, address & 0xFFFF
    begins = warp % m.block_warps % TENSOR_PARTS * LANES
    is_own = lane == begins or split != WHOLE and lane == begins + LANES // 2
    count = int64(words[_COUNT]) + (0 if split == WHOLE else split)
    if not is_own or not is_allocated(m, warp, column, count):
        report(m, OUT_OF_BOUNDS, pc, warp, -1, address, -1)
        return int64(-1)
    return address


@compile_native
def _halves(split):
    """How many times the columns are moved, a half of the lanes each if not once."""
    return 1 if split == WHOLE else 2


@compile_native
def _lanes(address, split):
    """Which lanes of its part an access is of."""
    if split == WHOLE:
        return FULL
    return uint32(0xFFFF) << uint32((address >> 16) % LANES)


@compile_native
def _place_at(address, split, half, number):
    """The place of register `number`."""
    part = (address >> 16) // LANES
    column = (address & 0xFFFF) + number + (split if half else 0)
    return part * TENSOR_COLUMNS + column


@compile_native
def _value_at(m, warp, address, split, number, lane):
    """Where tensor memory has what thread `lane` has in register `number`."""
    half = 1 if split != WHOLE and lane >= LANES // 2 else 0
    column = _place_at(address, split, half, number) % TENSOR_COLUMNS
    tensor_lane = (address >> 16) + lane - half * LANES // 2
    return values_of(m, warp) + (column * TENSOR_LANES + tensor_lane) * 4


@Handler
def load(machine, pc, warp, registers, row, mask):
    """tcgen05.ld: operands the registers, then the address. What they get they have
    after tcgen05.wait::ld, and poison until then.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER)
    count, split = int64(words[_COUNT]), int64(words[_SPLIT])
    address = _address(m, pc, warp, registers, row, count, mask)
    if address < 0:
        return DONE
    reader = warp % m.block_warps // TENSOR_PARTS
    for half in range(_halves(split)):
        for number in range(count):
            place = _place_at(address, split, half, number)
            check_written(m, pc, warp, place, _lanes(address, split), address)
            check_writer(m, pc, warp, -1, place, address)
            _readers(m, warp, place)[reader] = int32(OPEN)
    new = begin(m, READ, pc, warp, mask)
    new.source[0] = row
    new.source[1] = registers
    new.target[0] = address
    if m.is_early:
        _read(m, new)
    else:
        _poison(registers, row, count)
    mark_in_flight(m, warp, row, count, 0, 1)
    warp_at(m, warp).products += 1
    return DONE


@compile_native
def _poison(registers, row, count):
    words = words_at(row, HEADER + count)
    for number in range(count):
        fill(registers + int64(words[HEADER + number]), uint8(255), LANES * 4)


@compile_native
def _read(m, one):
    """Move what a tcgen05.ld reads to its registers."""
    row, registers, address = one.source[0], one.source[1], one.target[0]
    head = words_at(row, HEADER)
    count, split = int64(head[_COUNT]), int64(head[_SPLIT])
    words = words_at(row, HEADER + count)
    for number in range(count):
        target = registers + int64(words[HEADER + number])
        for lane in range(LANES):
            source = _value_at(m, one.warp, address, split, number, lane)
            write32(target + lane * 4, read32(source))


@Handler
def store(machine, pc, warp, registers, row, mask):
    """tcgen05.st: operands the address, then the registers. It is over after
    tcgen05.wait::st.
    """
    m = machine_at(machine)
    head = words_at(row, HEADER)
    count, split = int64(head[_COUNT]), int64(head[_SPLIT])
    address = _address(m, pc, warp, registers, row, 0, mask)
    if address < 0:
        return DONE
    for half in range(_halves(split)):
        for number in range(count):
            place = _place_at(address, split, half, number)
            check_writer(m, pc, warp, warp, place, address)
            check_readers(m, pc, warp, place, address)
            note_write(m, pc, warp, warp, OPEN, place, _lanes(address, split))
    words = words_at(row, HEADER + 1 + count)
    for number in range(count):
        source = registers + int64(words[HEADER + 1 + number])
        for lane in range(LANES):
            target = _value_at(m, warp, address, split, number, lane)
            write32(target, read32(source + lane * 4))
    return DONE


@Handler
def wait(machine, pc, warp, registers, row, mask):
    """tcgen05.wait::ld and ::st: all of the warp's are over."""
    m = machine_at(machine)
    _require_whole_warp(m, pc, warp, mask)
    now = words_at(order.clocks_of(m, warp), m.agents)[warp]
    part = warp % m.block_warps % TENSOR_PARTS
    if words_at(row, HEADER)[PARAMETERS] == OF_LOADS:
        _end_reads(m, warp)
    number = warp % m.block_warps // TENSOR_PARTS
    for place in range(part * TENSOR_COLUMNS, (part + 1) * TENSOR_COLUMNS):
        if words_at(row, HEADER)[PARAMETERS] == OF_LOADS:
            readers = _readers(m, warp, place)
            if readers[number] == OPEN:
                readers[number] = now
        else:
            writer = _writer(m, warp, place)
            if writer[0] == warp + 1 and writer[1] == OPEN:
                writer[1] = now
    return DONE


@compile_native
def _end_reads(m, warp):
    """The registers of all that a warp reads have it."""
    state = warp_at(m, warp)
    for number in range(m.first_pending, m.n_pending):
        one = pending_at(m, number)
        if one.kind != READ or one.warp != warp:
            continue
        if not m.is_early:
            _read(m, one)
        row = one.source[0]
        mark_in_flight(m, warp, row, int64(words_at(row, HEADER)[_COUNT]), 0, 0)
        one.kind = FREE
        state.products -= 1
