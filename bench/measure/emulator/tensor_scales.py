"""Scales of the products of sm_100's tensor cores: how they get from shared memory to
tensor memory, and which of them a product multiplies by (PTX ISA, "tcgen05.cp", "Block
Scaling for tcgen05.mma", "Instruction descriptor" of .kind::mxf8f6f4).

Of .scale_vec::1X a row of A, and a column of B, has one scale for all of a product's K:
an e8m0 of 8 bits. Those of lines 32 i to 32 i + 31 are in column i behind the address
that is named, line 32 i + j in lane j, the same in all four parts; which byte of the 32
bits the instruction's descriptor says. A copy of the shape 32x128b.warpx4 writes four
such columns from 32 rows of 16 bytes, to each part.

Copies and the products of one warp are executed in the order in which they are issued:
a product behind a copy finds what it has copied. A copy behind a product is not ordered
so by the PTX ISA, and has to wait for it.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint32

from batchline.bench.measure.emulator import order, tensor_memory
from batchline.bench.measure.emulator.asynchronous import begin
from batchline.bench.measure.emulator.layout import (
    HEADER,
    LANES,
    PARAMETERS,
    TENSOR_COLUMNS,
    TENSOR_LANES,
    TENSOR_PARTS,
    Finding,
    PendingKind,
)
from batchline.bench.measure.emulator.matrix import operand_addresses
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_for_python,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.number_formats import decode_e8m0
from batchline.bench.measure.emulator.order import read_shared, report
from batchline.bench.measure.emulator.raw import read32, read64, words_at, write32
from batchline.bench.measure.emulator.shared_arrays import is_in_shared
from batchline.bench.measure.emulator.tensor_descriptors import (
    INVALID,
    NOT_KNOWN,
    VALID,
    why_matrix_invalid,
)

OUT_OF_BOUNDS, UNSUPPORTED = int(Finding.OUT_OF_BOUNDS), int(Finding.UNSUPPORTED)
BAD_DESCRIPTOR = int(Finding.BAD_DESCRIPTOR)
COPY = int(PendingKind.TENSOR_COPY)
_OFFSET, _WIDTH = range(PARAMETERS, PARAMETERS + 2)
_ROWS, _COLUMNS = 32, 4  # of a copy, each of 32 bits
_ROW_BYTES = 16
FULL = uint32(0xFFFFFFFF)

# --- descriptors --------------------------------------------------------------------


@compile_for_python
def why_instruction_invalid(instruction):
    """VALID, INVALID or NOT_KNOWN: of the 32-bit descriptor of a tcgen05.mma of
    .kind::mxf8f6f4 by one block.

    PTX ISA: bit 2 is of sparse products, 4 and 5 say which byte has B's scales, 7 to 9
    and 10 to 12 the types of A and B, 13 and 14 whether they are negated, 15 and 16
    whether they lie transposed, 17 to 22 N / 8, 23 is 1 for scales in e8m0, 27 and 28
    M / 128, 29 and 30 which byte has A's scales; all others are 0. M is 128 and N a
    multiple of 8 up to 256.
    """
    instruction = np.int64(instruction)
    if instruction & 0x8700004B or not instruction & 0x800000:
        return INVALID
    columns = (instruction >> 17 & 0x3F) << 3
    if instruction >> 27 & 3 != 1 or not 0 < columns <= 256:
        return INVALID
    is_sparse = instruction >> 2 & 1
    left, right = instruction >> 7 & 7, instruction >> 10 & 7
    if left in (2, 6, 7) or right in (2, 6, 7):
        return INVALID
    return NOT_KNOWN if is_sparse or left > 1 or right > 1 else VALID


@compile_native
def byte_of(instruction, side):
    """Which byte of 32 bits has the scales of A (side 0) or B (1)."""
    return instruction >> (29 if side == 0 else 4) & 3


# --- copies -------------------------------------------------------------------------


@Handler
def start_copy(machine, pc, warp, registers, row, mask):
    """tcgen05.cp of the shape 32x128b.warpx4, for each lane in the mask: operands the
    address in tensor memory and the descriptor of 32 rows of 16 bytes.
    """
    m = machine_at(machine)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            _start(m, pc, warp, lane, registers, row)
    return DONE


@compile_native
def _start(m, pc, warp, lane, registers, row):
    words = words_at(row, HEADER + 2)
    address = tensor_memory.address_of_operand(
        registers, row, 0, words[_OFFSET], words[_WIDTH], lane
    )
    descriptor = int64(read64(registers + int64(words[HEADER + 1]) + lane * 8))
    why = why_matrix_invalid(descriptor)
    if why != VALID:
        fault = BAD_DESCRIPTOR if why == INVALID else UNSUPPORTED
        report(m, fault, pc, warp, lane, descriptor, -1)
        return
    first = address & 0xFFFF
    if address >> 16 or not tensor_memory.is_allocated(m, warp, first, _COLUMNS):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
        return
    new = begin(m, COPY, pc, warp, uint32(1) << uint32(lane))
    new.clock = order.issue(m, m.product_agent + warp)
    new.descriptors[0] = descriptor
    new.target[0] = address
    _note_write(m, pc, warp, new)
    if not _check_source(m, pc, warp, new):
        new.landed = 1
    elif m.is_early:
        land(m, new)


@compile_native
def _sources_of(descriptor):
    """int32[32]: the shared address of the 16 bytes of each row of a copy."""
    return operand_addresses(descriptor, _ROWS, _ROW_BYTES, False)


@compile_native
def _check_source(m, pc, warp, new):
    """Check what a copy reads of shared memory; whether it can be read."""
    agent, sources = m.product_agent + warp, _sources_of(new.descriptors[0])
    for row in range(_ROWS):
        address = int64(sources[row])
        if not is_in_shared(m, address, _ROW_BYTES):
            report(m, OUT_OF_BOUNDS, pc, warp, -1, address, -1)
            return False
        read_shared(m, pc, warp, -1, agent, new.clock, address, _ROW_BYTES)
    return True


@compile_native
def _note_write(m, pc, warp, new):
    """Check and note what a copy writes of tensor memory."""
    address, agent = new.target[0], m.product_agent + warp
    for part in range(TENSOR_PARTS):
        for column in range(address, address + _COLUMNS):
            place = part * TENSOR_COLUMNS + column
            tensor_memory.check_writer(m, pc, warp, agent, place, address)
            tensor_memory.check_readers(m, pc, warp, place, address)
            tensor_memory.note_write(m, pc, warp, agent, new.clock, place, FULL)


@compile_native
def land(m, one):
    """Move what a copy is of."""
    if one.landed:
        return
    one.landed = 1
    values = tensor_memory.values_of(m, one.warp)
    sources = _sources_of(one.descriptors[0])
    for row in range(_ROWS):
        source = m.shared + int64(sources[row])
        for number in range(_COLUMNS):
            column = values + (one.target[0] + number) * TENSOR_LANES * 4
            for part in range(TENSOR_PARTS):
                write32(column + (part * LANES + row) * 4, read32(source + number * 4))


# --- products -----------------------------------------------------------------------


@compile_native
def columns_of(lines):
    """How many columns have the scales of so many rows of A, or columns of B."""
    return (lines + LANES - 1) // LANES


@compile_native
def check_scales(m, pc, warp, new, address, lines):
    """Check and note what a product reads of the scales of so many lines; whether it
    may.
    """
    first, columns = address & 0xFFFF, columns_of(lines)
    if address >> 16 or not tensor_memory.is_allocated(m, warp, first, columns):
        report(m, OUT_OF_BOUNDS, pc, warp, -1, address, -1)
        return False
    agent = m.product_agent + warp
    for part in range(TENSOR_PARTS):
        for number in range(columns):
            place = part * TENSOR_COLUMNS + first + number
            left = lines - LANES * number
            lanes = FULL if left >= LANES else (uint32(1) << uint32(left)) - uint32(1)
            tensor_memory.check_written(m, pc, warp, place, lanes, address)
            tensor_memory.check_writer(m, pc, warp, agent, place, address)
            tensor_memory.note_product_read(m, pc, warp, agent, new.clock, place)
    return True


@compile_for_python
def are_alike(values, column, lines):
    """Whether the four parts of uint32[512 * 128] `values` have the same scales of so
    many lines, from `column` on. If not, which of them count no document says.
    """
    for line in range(lines):
        place = (column + line // LANES) * TENSOR_LANES + line % LANES
        for part in range(1, TENSOR_PARTS):
            if values[place + part * LANES] != values[place]:
                return False
    return True


@compile_for_python
def scale(values, column, byte, matrix):
    """Multiply each column of float64[k, lines] `matrix` by its scale in uint32[512 *
    128] `values`, from `column` of tensor memory on.
    """
    for line in range(matrix.shape[1]):
        place = (column + line // LANES) * TENSOR_LANES + line % LANES
        factor = decode_e8m0(values[place] >> np.uint32(8 * byte))
        for k in range(matrix.shape[0]):
            matrix[k, line] *= factor
