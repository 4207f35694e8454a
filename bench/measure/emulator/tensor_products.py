"""Products of sm_100's tensor cores, whose sums lie in tensor memory (PTX ISA,
"tcgen05.mma").

One thread issues a product. It reads A and B from shared memory by two descriptors, and
a third one says of what types and how large they are. It is over when an mbarrier says
so that a later tcgen05.commit of the same thread names: a late machine multiplies no
sooner. Products of one warp are executed in the order in which they are issued.
"""

from __future__ import annotations

import numpy as np
from numba import int64, uint32

from batchline.bench.measure.emulator import order, tensor_memory, tensor_scales
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
from batchline.bench.measure.emulator.matrix import (
    BF16,
    DEPTH_BYTES,
    E4M3,
    E5M2,
    F16,
    TF32,
    accumulate,
    element_bytes,
    encode_f32,
    operand_addresses,
    read_right,
)
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
    as_of_wgmma,
    why_matrix_invalid,
)

OUT_OF_BOUNDS = int(Finding.OUT_OF_BOUNDS)
BAD_DESCRIPTOR, UNSUPPORTED = int(Finding.BAD_DESCRIPTOR), int(Finding.UNSUPPORTED)
PRODUCT = int(PendingKind.TENSOR_PRODUCT)

# Parameter 0 of a TCGEN05_MMA is a place in it.
KINDS = ("f16", "tf32", "f8f6f4", "mxf8f6f4")
_F16, _TF32, _F8, SCALED = range(4)
_KIND, _OFFSET, _WIDTH, _SCALES = range(PARAMETERS, PARAMETERS + 4)
_F32 = 1  # the type of D

# --- descriptors --------------------------------------------------------------------


@compile_native
def rows_of(instruction):
    """M of an instruction descriptor."""
    return (instruction >> 24 & 0x1F) << 4


@compile_native
def columns_of(instruction):
    """N of an instruction descriptor."""
    return (instruction >> 17 & 0x3F) << 3


@compile_native
def element_of(kind, instruction, side):
    """The type of A's (side 0) or B's (1) elements, as matrix.py knows it; -1 for one
    that the kind does not have, and -2 for one that is not known here.
    """
    code = instruction >> (7 + 3 * side) & 7
    if kind == _F16:
        return (F16, BF16)[code] if code < 2 else -1
    if kind == _TF32:
        return TF32 if code == 2 else -1
    if code < 2:
        return (E4M3, E5M2)[code]
    return -2 if code in (3, 4, 5) else -1  # e2m3, e3m2, e2m1


@compile_for_python
def why_instruction_invalid(kind, instruction):
    """VALID, INVALID or NOT_KNOWN: of the 32-bit descriptor of a tcgen05.mma of a kind;
    with scales it is another one.

    PTX ISA, "Instruction descriptor" for .kind::tf32, ::f16 and ::f8f6f4: bits 0 to 2
    are of sparse products, 3 of integers, 4 and 5 D's type (0 f16, 1 f32), 7 to 9 and
    10 to 12 those of A and B, 13 and 14 whether they are negated, 15 and 16 whether
    they lie transposed, 17 to 22 N / 8, 24 to 28 M / 16, 30 and 31 of .ws. M is 64, with
    N a multiple of 8, or 128, with N a multiple of 16; N is at most 256.
    """
    if kind == SCALED:
        return tensor_scales.why_instruction_invalid(instruction)
    instruction = np.int64(instruction)
    if instruction & 0x20800048:
        return INVALID
    rows, columns = rows_of(instruction), columns_of(instruction)
    if rows not in (64, 128) or not 0 < columns <= 256:
        return INVALID
    if columns % (8 if rows == 64 else 16):
        return INVALID
    left, right = element_of(kind, instruction, 0), element_of(kind, instruction, 1)
    if left == -1 or right == -1 or instruction >> 4 & 3 > _F32:
        return INVALID
    is_left_out = left == -2 or right == -2 or instruction & 0xC0000007
    if is_left_out or instruction >> 4 & 3 != _F32:
        return NOT_KNOWN
    if kind == _TF32 and instruction & 0x18000:
        return NOT_KNOWN  # transposed by 32 bytes, with a swizzle of their own
    return VALID


# --- arithmetic ---------------------------------------------------------------------


@compile_for_python
def pieces_of(element, instruction, descriptor, side):
    """int32[pieces]: the shared address of each 16 bytes that a product reads of A
    (side 0) or B (1), in the order of matrix.operand_addresses.
    """
    rows = rows_of(instruction) if side == 0 else columns_of(instruction)
    descriptor = as_of_wgmma(np.int64(descriptor))
    if instruction >> (15 + side) & 1:  # its lines are of K, whatever their bytes
        size = element_bytes(element)
        return operand_addresses(descriptor, rows * size // 2, 64 // size, True)
    return operand_addresses(descriptor, rows, DEPTH_BYTES, False)


@compile_native
def matrix_of(kind, instruction, descriptor, side, shared):
    """float64[k, rows]: A transposed, or B."""
    element = element_of(kind, instruction, side)
    addresses = pieces_of(element, instruction, descriptor, side)
    rows = rows_of(instruction) if side == 0 else columns_of(instruction)
    is_transposed = instruction >> (15 + side) & 1 != 0
    sign = -1.0 if instruction >> (13 + side) & 1 else 1.0
    return read_right(element, shared, addresses, rows, is_transposed, sign)


@compile_native
def lane_of(rows, row):
    """The lane of tensor memory that has a row of D: of 64 rows each part has 16 (PTX
    ISA, "Data path layout organization", layouts D and F).
    """
    return row if rows == 128 else row // 16 * LANES + row % 16


@compile_for_python
def multiply(kind, instruction, adds, left, right, shared, values, column):
    """D = A B + D, or A B where `adds` is false, from `column` on of uint32[512 * 128]
    `values`, column after column of tensor memory.

    `left` and `right` are the descriptors of A and B in uint8[] `shared`. Products are
    exact, sums in float64, in the order of k, and rounded once to float32.
    """
    instruction = np.int64(instruction)
    a = matrix_of(kind, instruction, left, 0, shared).transpose().copy()
    b = matrix_of(kind, instruction, right, 1, shared)
    add_product(a, b, adds, values, column)


@compile_for_python
def multiply_scaled(
    instruction, adds, left, right, left_scales, right_scales, shared, values, column
):
    """As `multiply`, of kind SCALED: each row of A and column of B first times its
    scale. These are in tensor memory, from the columns `left_scales` and `right_scales`
    on.
    """
    instruction = np.int64(instruction)
    a = matrix_of(SCALED, instruction, left, 0, shared)
    b = matrix_of(SCALED, instruction, right, 1, shared)
    tensor_scales.scale(values, left_scales, tensor_scales.byte_of(instruction, 0), a)
    tensor_scales.scale(values, right_scales, tensor_scales.byte_of(instruction, 1), b)
    add_product(a.transpose().copy(), b, adds, values, column)


@compile_native
def add_product(a, b, adds, values, column):
    """As `multiply`, of A float64[m, k] and B float64[k, n]."""
    rows, columns = a.shape[0], b.shape[1]
    sums = np.zeros((rows, columns), np.float64)
    if adds:
        for row in range(rows):
            for number in range(columns):
                place = (column + number) * TENSOR_LANES + lane_of(rows, row)
                sums[row, number] = np.uint32(values[place]).view(np.float32)
    accumulate(a, b, sums)
    for row in range(rows):
        for number in range(columns):
            place = (column + number) * TENSOR_LANES + lane_of(rows, row)
            values[place] = encode_f32(sums[row, number])


# --- instructions -------------------------------------------------------------------


@Handler
def start_product(machine, pc, warp, registers, row, mask):
    """tcgen05.mma, for each lane in the mask: operands D's address, the descriptors of
    A, of B and of the instruction, and the predicate enable-input-d; of kind SCALED
    also the addresses of A's scales and B's.
    """
    m = machine_at(machine)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            _start(m, pc, warp, lane, registers, row)
    return DONE


@compile_native
def _start(m, pc, warp, lane, registers, row):
    words = words_at(row, HEADER + 5)
    kind = int64(words[_KIND])
    offset, width = words[_OFFSET], words[_WIDTH]
    address = tensor_memory.address_of_operand(registers, row, 0, offset, width, lane)
    left = int64(read64(registers + int64(words[HEADER + 1]) + lane * 8))
    right = int64(read64(registers + int64(words[HEADER + 2]) + lane * 8))
    instruction = int64(read32(registers + int64(words[HEADER + 3]) + lane * 4))
    adds = read32(registers + int64(words[HEADER + 4])) >> uint32(lane) & uint32(1)
    for number, why in (
        (instruction, why_instruction_invalid(kind, instruction)),
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
    is_right = _check_operands(m, pc, warp, new)
    if kind == SCALED:
        is_right &= _find_scales(m, pc, warp, new, lane, registers, row)
    if not _check_sums(m, pc, warp, new) or not is_right:
        new.landed = 1
    elif m.is_early:
        land(m, new)
    if m.is_counting:
        _count(m, pc, element_of(kind, instruction, 0), instruction)


@compile_native
def _check_operands(m, pc, warp, new):
    """Check what a product reads of shared memory; whether it can be read."""
    kind, instruction = new.source[0], new.source[1]
    agent = m.product_agent + warp
    for side in range(2):
        element = element_of(kind, instruction, side)
        addresses = pieces_of(element, instruction, new.descriptors[side], side)
        for place in range(len(addresses)):
            address = int64(addresses[place])
            if not is_in_shared(m, address, 16):
                report(m, OUT_OF_BOUNDS, pc, warp, -1, address, -1)
                return False
            read_shared(m, pc, warp, -1, agent, new.clock, address, 16)
    return True


@compile_native
def _find_scales(m, pc, warp, new, lane, registers, row):
    """Note where the scales of a product are, and check them; whether they can be
    read.
    """
    words, is_right = words_at(row, HEADER), True
    for side in range(2):
        offset, width = words[_SCALES + 2 * side], words[_SCALES + 2 * side + 1]
        address = tensor_memory.address_of_operand(
            registers, row, 5 + side, offset, width, lane
        )
        lines = rows_of(new.source[1]) if side == 0 else columns_of(new.source[1])
        is_right &= tensor_scales.check_scales(m, pc, warp, new, address, lines)
        new.target[1 + side] = address
    return is_right


@compile_native
def _check_sums(m, pc, warp, new):
    """Check and note what a product does to tensor memory; whether it may."""
    instruction, address = new.source[1], new.target[0]
    first, columns = address & 0xFFFF, columns_of(instruction)
    if address >> 16 or not tensor_memory.is_allocated(m, warp, first, columns):
        report(m, OUT_OF_BOUNDS, pc, warp, -1, address, -1)
        return False
    lanes = uint32(0xFFFFFFFF if rows_of(instruction) == 128 else 0xFFFF)
    agent = m.product_agent + warp
    for part in range(TENSOR_PARTS):
        for column in range(first, first + columns):
            place = part * TENSOR_COLUMNS + column
            if new.accumulates:
                tensor_memory.check_written(m, pc, warp, place, lanes, address)
            tensor_memory.check_writer(m, pc, warp, agent, place, address)
            tensor_memory.check_readers(m, pc, warp, place, address)
            tensor_memory.note_write(m, pc, warp, agent, new.clock, place, lanes)
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
    values = words_at(
        tensor_memory.values_of(m, one.warp), TENSOR_COLUMNS * TENSOR_LANES
    ).view(np.uint32)
    if one.source[0] == SCALED:
        _land_scaled(m, one, values)
        return
    multiply(
        one.source[0],
        one.source[1],
        one.accumulates != 0,
        one.descriptors[0],
        one.descriptors[1],
        bytes_at(m.shared, m.shared_bytes),
        values,
        one.target[0] & 0xFFFF,
    )


@compile_native
def _land_scaled(m, one, values):
    instruction, left, right = one.source[1], one.target[1], one.target[2]
    are_known = tensor_scales.are_alike(values, left, rows_of(instruction))
    if not are_known & tensor_scales.are_alike(values, right, columns_of(instruction)):
        report(m, UNSUPPORTED, one.pc, one.warp, -1, left, -1)
    multiply_scaled(
        instruction,
        one.accumulates != 0,
        one.descriptors[0],
        one.descriptors[1],
        left,
        right,
        bytes_at(m.shared, m.shared_bytes),
        values,
        one.target[0] & 0xFFFF,
    )
