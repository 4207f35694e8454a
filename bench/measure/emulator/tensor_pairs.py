"""Products that the blocks of a pair share (PTX ISA, "tcgen05.mma" with .cta_group::2).

The ranks of the two blocks differ in the lowest bit. One thread of either issues a
product for both. At the same addresses in its own shared memory each block has its 128
rows of A and its half of B's columns, and from the same column of its own tensor memory
on its 128 rows of D, with all columns: those of the block with the even rank come first.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint32

from batchline.bench.measure.emulator import clusters, order, tensor_memory
from batchline.bench.measure.emulator.asynchronous import begin
from batchline.bench.measure.emulator.layout import (
    HEADER,
    LANES,
    PARAMETERS,
    TENSOR_COLUMNS,
    TENSOR_LANES,
    TENSOR_PARTS,
    TENSOR_PLACES,
    Finding,
    PendingKind,
)
from batchline.bench.measure.emulator.matrix import DEPTH_BYTES, element_bytes
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_for_python,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import read_shared, report
from batchline.bench.measure.emulator.raw import (
    bytes_at,
    longs_at,
    read32,
    read64,
    words_at,
)
from batchline.bench.measure.emulator.shared_arrays import is_in_shared
from batchline.bench.measure.emulator.tensor_descriptors import (
    INVALID,
    NOT_KNOWN,
    VALID,
    why_matrix_invalid,
)
from batchline.bench.measure.emulator.tensor_products import (
    add_product,
    columns_of,
    element_of,
    matrix_of,
    pieces_of,
    rows_of,
    why_instruction_invalid,
)

OUT_OF_BOUNDS = int(Finding.OUT_OF_BOUNDS)
BAD_DESCRIPTOR, UNSUPPORTED = int(Finding.BAD_DESCRIPTOR), int(Finding.UNSUPPORTED)
PRODUCT = int(PendingKind.PAIR_PRODUCT)
_KIND, _OFFSET, _WIDTH = range(PARAMETERS, PARAMETERS + 3)
_BLOCKS = 2
_ROWS = 256  # of a pair's D; of 128 rows a block has two halves of the columns
_MULTIPLE = 32  # of columns
_ROWS_AND_COLUMNS = 0x1F << 24 | 0x3F << 17  # the bits of M / 16 and of N / 8


# --- descriptors and arithmetic -----------------------------------------------------


@compile_native
def of_block(instruction):
    """The instruction descriptor of what one block has of A and B: half of M and N."""
    halves = (instruction & _ROWS_AND_COLUMNS) >> 1 & _ROWS_AND_COLUMNS
    return instruction & ~_ROWS_AND_COLUMNS | halves


@compile_for_python
def why_pair_invalid(kind, instruction):
    """VALID, INVALID or NOT_KNOWN: of the descriptor of a pair's product. M is 128 (not
    known here) or 256, N a multiple of 32 up to 256; the rest is as for one block.
    """
    instruction = np.int64(instruction)
    rows, columns = rows_of(instruction), columns_of(instruction)
    if rows not in (_ROWS // 2, _ROWS) or columns % _MULTIPLE or columns > 256:
        return INVALID
    why = why_instruction_invalid(kind, of_block(instruction))
    return NOT_KNOWN if why == VALID and rows != _ROWS else why


@compile_for_python
def multiply(kind, instruction, adds, left, right, shared, values, column):
    """As tensor_products.multiply, of pairs: `shared` and `values` are those of the
    leading block and of the other one.
    """
    part = of_block(np.int64(instruction))
    first = matrix_of(kind, part, right, 1, shared[0])
    columns = first.shape[1]
    b = np.empty((first.shape[0], 2 * columns), np.float64)
    b[:, :columns] = first
    b[:, columns:] = matrix_of(kind, part, right, 1, shared[1])
    for block in range(_BLOCKS):
        a = matrix_of(kind, part, left, 0, shared[block]).transpose().copy()
        add_product(a, b, adds, values[block], column)


# --- instructions -------------------------------------------------------------------


@Handler
def start_product(machine, pc, warp, registers, row, mask):
    """tcgen05.mma.cta_group::2, for each lane in the mask; operands as of one block."""
    m = machine_at(machine)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            _start(m, pc, warp, lane, registers, row)
    return DONE


@compile_native
def _start(m, pc, warp, lane, registers, row):
    words = words_at(row, HEADER + 5)
    kind = int64(words[_KIND])
    address = tensor_memory.address_of_operand(
        registers, row, 0, words[_OFFSET], words[_WIDTH], lane
    )
    left = int64(read64(registers + int64(words[HEADER + 1]) + lane * 8))
    right = int64(read64(registers + int64(words[HEADER + 2]) + lane * 8))
    instruction = int64(read32(registers + int64(words[HEADER + 3]) + lane * 4))
    adds = read32(registers + int64(words[HEADER + 4])) >> uint32(lane) & uint32(1)
    for number, why in (
        (instruction, why_pair_invalid(kind, instruction)),
        (left, why_matrix_invalid(left)),
        (right, why_matrix_invalid(right)),
    ):
        if why != VALID:
            fault = BAD_DESCRIPTOR if why == INVALID else UNSUPPORTED
            report(m, fault, pc, warp, lane, number, -1)
            return
    new = begin(m, PRODUCT, pc, warp, uint32(1) << uint32(lane))
    new.clock = order.issue(m, m.product_agent + warp)
    new.descriptors[0] = left
    new.descriptors[1] = right
    new.accumulates = int64(adds)
    new.source[0] = kind
    new.source[1] = instruction
    new.target[0] = address
    if not _check_blocks(m, pc, warp, lane, new):
        new.landed = 1
    elif m.is_early:
        land(m, new)
    if m.is_counting:
        _count(m, pc, element_of(kind, instruction, 0), instruction)


@compile_native
def _leading(m, warp):
    """The rank of the leading block of a warp's pair."""
    return warp // m.block_warps & ~1


@compile_native
def _check_blocks(m, pc, warp, lane, new):
    """Check what a product does to the memory of both blocks; whether it may."""
    is_right = True
    for block in range(_leading(m, warp), _leading(m, warp) + _BLOCKS):
        clusters.turn_to(m, block)
        is_right &= _check_operands(m, pc, warp, lane, new)
        is_right &= _check_sums(m, pc, warp, new, block)
    clusters.turn_home(m, warp)
    return is_right


@compile_native
def _check_operands(m, pc, warp, lane, new):
    """Check what is read of the shared memory at hand; whether it can be read."""
    kind, part = new.source[0], of_block(new.source[1])
    agent = m.product_agent + warp
    for side in range(2):
        element = element_of(kind, part, side)
        addresses = pieces_of(element, part, new.descriptors[side], side)
        for place in range(len(addresses)):
            address = int64(addresses[place])
            if not is_in_shared(m, address, 16):
                report(m, OUT_OF_BOUNDS, pc, warp, -1, address, -1)
                return False
            read_shared(m, pc, warp, -1, agent, new.clock, address, 16)
        clusters.reach(m, pc, warp, lane, agent, new.clock, int64(addresses[0]))
    return True


@compile_native
def _check_sums(m, pc, warp, new, block):
    """Check and note what is done to a block's tensor memory; whether it may."""
    address = new.target[0]
    first, columns = address & 0xFFFF, columns_of(new.source[1])
    of_block_warp = block * m.block_warps
    if address >> 16 or not tensor_memory.is_allocated(
        m, of_block_warp, first, columns
    ):
        report(m, OUT_OF_BOUNDS, pc, warp, -1, address, -1)
        return False
    agent = m.product_agent + warp
    ahead = (block - warp // m.block_warps) * TENSOR_PLACES
    for part in range(TENSOR_PARTS):
        for column in range(first, first + columns):
            place = ahead + part * TENSOR_COLUMNS + column
            if new.accumulates:
                tensor_memory.check_written(
                    m, pc, warp, place, tensor_memory.FULL, address
                )
            tensor_memory.check_writer(m, pc, warp, agent, place, address)
            tensor_memory.check_readers(m, pc, warp, place, address)
            tensor_memory.note_write(
                m, pc, warp, agent, new.clock, place, tensor_memory.FULL
            )
    return True


@compile_native
def _count(m, pc, element, instruction):
    depth = DEPTH_BYTES // element_bytes(element)
    rows, columns = rows_of(instruction), columns_of(instruction)
    longs_at(m.tensor_flops, m.instructions)[pc] += 2 * rows * columns * depth
    read = longs_at(m.tensor_operand_bytes, m.instructions)
    read[pc] += (rows + columns) * DEPTH_BYTES


@compile_native
def land(m, one):
    """Multiply."""
    if one.landed:
        return
    one.landed = 1
    leading, before = _leading(m, one.warp), m.rank
    clusters.turn_to(m, leading)
    first = bytes_at(m.shared, m.shared_bytes)
    clusters.turn_to(m, leading + 1)
    second = bytes_at(m.shared, m.shared_bytes)
    clusters.turn_to(m, before)
    multiply(
        one.source[0],
        one.source[1],
        one.accumulates != 0,
        one.descriptors[0],
        one.descriptors[1],
        (first, second),
        (_values_of(m, leading), _values_of(m, leading + 1)),
        one.target[0] & 0xFFFF,
    )


@compile_native
def _values_of(m, block):
    """uint32[] of a block's tensor memory."""
    at = tensor_memory.values_of(m, block * m.block_warps)
    return words_at(at, TENSOR_COLUMNS * TENSOR_LANES).view(np.uint32)
