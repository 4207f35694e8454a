"""Tensor maps: 128 bytes that say which tensor in global memory `cp.async.bulk.tensor`
copies boxes of, and the copying.

On a GPU these bytes are opaque. Here they have a layout of this project, little-endian:

    offset  type       field
         0  uint32     MARK, so that other bytes aren't taken for a map
         4  uint32     which fields have been set, a bit each (`field_bit`)
         8  uint64     global address
        16  uint32[5]  sizes of the tensor, in elements, the innermost first
        36  uint32[5]  sizes of the box
        56  uint32[5]  element strides (traversal strides)
        76  uint8      rank - 1
        77  uint8      element type
        78  uint8      interleave layout
        79  uint8      swizzle mode
        80  uint64[4]  strides of the tensor in bytes, from the second dimension on
       112  uint8      fill mode
       113  uint8      swizzle atomicity

Numbers of types and modes are those of PTX ISA's `tensormap.replace`. They differ from
the driver's CUtensorMapDataType from 8 on, see `ELEMENT_TYPES_OF_DRIVER`. A map is made
by `encode` on the host, or on the device by `tensormap.replace` on 128 bytes of zeros.

Declined, with a reason: interleaved layouts, im2col, sub-byte types, types that convert
(.f32.ftz, .tf32, .tf32.ftz), 96-byte swizzling, swizzle atomicities other than 16
bytes, and boxes whose rows are narrower than the swizzle's span, as no document says
how such rows lie in shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchline.bench.measure.emulator.native import (
    compile_for_python,
    compile_native,
)
from batchline.bench.measure.emulator.number_formats import (
    TO_NEAREST_EVEN,
    decode_bf16,
    decode_f16,
    encode_bf16,
    encode_f16,
)
from batchline.bench.measure.emulator.raw import copy, read8, write8

MAP_BYTES = 128
MARK = 0x50414D54
MAX_RANK = 5
MAX_BOX = 256
MAX_ELEMENT_STRIDE = 8
MAX_STRIDE_BYTES = 1 << 40
PIECE_BYTES = 16
# of a box's shared address, in every swizzle mode
SHARED_ALIGNMENT = 128

# Fields, by the number that `replace_field` takes
(
    GLOBAL_ADDRESS,
    RANK,
    BOX_DIM,
    GLOBAL_DIM,
    GLOBAL_STRIDE,
    ELEMENT_STRIDE,
    ELEMTYPE,
    INTERLEAVE_LAYOUT,
    SWIZZLE_MODE,
    FILL_MODE,
    SWIZZLE_ATOMICITY,
) = range(11)
FIELDS = {
    "global_address": GLOBAL_ADDRESS,
    "rank": RANK,
    "box_dim": BOX_DIM,
    "global_dim": GLOBAL_DIM,
    "global_stride": GLOBAL_STRIDE,
    "element_stride": ELEMENT_STRIDE,
    "elemtype": ELEMTYPE,
    "interleave_layout": INTERLEAVE_LAYOUT,
    "swizzle_mode": SWIZZLE_MODE,
    "fill_mode": FILL_MODE,
    "swizzle_atomicity": SWIZZLE_ATOMICITY,
}

U8, U16, U32, S32, U64, S64, F16, F32, F32_FTZ, F64, BF16, TF32, TF32_FTZ = range(13)
ELEMENT_TYPES_OF_DRIVER = (U8, U16, U32, S32, U64, S64, F16, F32, F64, BF16)
ELEMENT_TYPES_OF_DRIVER += (F32_FTZ, TF32, TF32_FTZ)

SWIZZLE_MODES = {0: 0, 32: 1, 64: 2, 128: 3}
FILL_ZEROS = 0
FILL_NAN = 1

# Operations of cp.reduce.async.bulk.tensor
ADD, MIN, MAX, INC, DEC, AND, OR, XOR = range(8)
REDUCTIONS = {
    "add": ADD,
    "min": MIN,
    "max": MAX,
    "inc": INC,
    "dec": DEC,
    "and": AND,
    "or": OR,
    "xor": XOR,
}

# What `why_invalid` says
VALID = 0
(
    NO_MAP,
    UNSET_FIELD,
    BAD_RANK,
    BAD_TYPE,
    MISALIGNED_ADDRESS,
    EMPTY_DIMENSION,
    BAD_STRIDE,
    BAD_BOX,
    BAD_BOX_ROW,
    WIDE_BOX_ROW,
    NARROW_BOX_ROW,
    BAD_ELEMENT_STRIDE,
    BAD_INTERLEAVE,
    BAD_SWIZZLE,
    BAD_FILL,
) = range(1, 16)
REASONS = {
    NO_MAP: "these 128 bytes aren't a tensor map",
    UNSET_FIELD: "a field that its rank needs was never set",
    BAD_RANK: "the rank isn't 1 to 5",
    BAD_TYPE: "this element type isn't supported",
    MISALIGNED_ADDRESS: "the global address isn't a multiple of 16 bytes",
    EMPTY_DIMENSION: "a dimension of the tensor is 0, or 2**32 or more",
    BAD_STRIDE: "a stride isn't a multiple of 16 bytes, or is 2**40 bytes or more",
    BAD_BOX: "a dimension of the box isn't 1 to 256",
    BAD_BOX_ROW: "the innermost dimension of the box isn't a multiple of 16 bytes",
    WIDE_BOX_ROW: "the innermost dimension of the box is more than the swizzle's span",
    NARROW_BOX_ROW: "the innermost dimension of the box is less than the swizzle's "
    "span, and where its rows lie isn't documented",
    BAD_ELEMENT_STRIDE: "an element stride isn't 1 to 8",
    BAD_INTERLEAVE: "interleaved layouts aren't supported",
    BAD_SWIZZLE: "this swizzle mode or atomicity isn't supported",
    BAD_FILL: "the fill mode isn't zeros, or NaN for a floating-point type",
}


@compile_native
def read_number(tensor_map, offset, size):
    """The little-endian unsigned integer of `size` bytes at an offset, as an int64."""
    value = np.int64(0)
    for i in range(size):
        value |= np.int64(tensor_map[offset + i]) << (8 * i)
    return value


@compile_native
def write_number(tensor_map, offset, size, value):
    """Write the low bytes of an integer at an offset."""
    value = np.int64(value)
    for i in range(size):
        tensor_map[offset + i] = np.uint8(value >> (8 * i) & 0xFF)


@compile_native
def rank_of(tensor_map):
    """The number of dimensions."""
    return np.int64(tensor_map[76]) + 1


@compile_native
def address_of(tensor_map):
    """The global address."""
    return read_number(tensor_map, 8, 8)


@compile_native
def size_of(tensor_map, dimension):
    """The tensor's size along a dimension, in elements."""
    return read_number(tensor_map, 16 + 4 * dimension, 4)


@compile_native
def box_size_of(tensor_map, dimension):
    """The box's size along a dimension, in elements of the tensor."""
    return read_number(tensor_map, 36 + 4 * dimension, 4)


@compile_native
def element_stride_of(tensor_map, dimension):
    """How many elements of the tensor lie from one of a box's to the next."""
    return read_number(tensor_map, 56 + 4 * dimension, 4)


@compile_native
def stride_of(tensor_map, dimension):
    """The tensor's stride in bytes along a dimension from 1 on."""
    return read_number(tensor_map, 80 + 8 * (dimension - 1), 8)


@compile_native
def element_type_of(tensor_map):
    """The type of its elements: a number of PTX (the constants here)."""
    return np.int64(tensor_map[77])


@compile_native
def type_bytes(element_type):
    """The bytes of an element, or 0 for a type that isn't supported."""
    if element_type == U8:
        return 1
    if element_type == U16 or element_type == F16 or element_type == BF16:
        return 2
    if element_type == U32 or element_type == S32 or element_type == F32:
        return 4
    if element_type == U64 or element_type == S64 or element_type == F64:
        return 8
    return 0


@compile_native
def swizzle_span(tensor_map):
    """The span of the swizzle mode in bytes; 16, a chunk by itself, for none."""
    return np.int64(16) << np.int64(tensor_map[79])


@compile_native
def field_bit(field, ordinal):
    """The bit that says that a field has been set: of the fields that have no use in a
    map of zeros. 0 for the others.
    """
    if field == GLOBAL_ADDRESS:
        return 1
    if field == RANK:
        return 2
    if field == ELEMTYPE:
        return 4
    if field == BOX_DIM:
        return 1 << (8 + ordinal)
    if field == GLOBAL_DIM:
        return 1 << (13 + ordinal)
    if field == ELEMENT_STRIDE:
        return 1 << (18 + ordinal)
    if field == GLOBAL_STRIDE:
        return 1 << (23 + ordinal)
    return 0


@compile_for_python
def replace_field(tensor_map, field, ordinal, value):
    """Write a field of uint8[128] `tensor_map` as tensormap.replace.tile does.

    `field` is a number of FIELDS; `ordinal` is the dimension of box_dim, global_dim,
    element_stride and global_stride (0 for that of dimension 1), and 0 else. `value` is
    as in PTX: rank is the rank - 1, global_stride is in bytes. Ordinals aren't
    checked: there are 0 to 4, and 0 to 3 of global_stride.

    128 bytes of zeros become a map by it; other bytes that aren't a map stay none.
    """
    mark = read_number(tensor_map, 0, 4)
    if mark == 0:
        write_number(tensor_map, 0, 4, MARK)
    # a number that doesn't fit its byte stays a wrong one
    byte = np.int64(value) if 0 <= np.int64(value) < 255 else np.int64(255)
    was_set = read_number(tensor_map, 4, 4)
    write_number(tensor_map, 4, 4, was_set | field_bit(field, ordinal))
    if field == GLOBAL_ADDRESS:
        write_number(tensor_map, 8, 8, value)
    elif field == GLOBAL_DIM:
        write_number(tensor_map, 16 + 4 * ordinal, 4, value)
    elif field == BOX_DIM:
        write_number(tensor_map, 36 + 4 * ordinal, 4, value)
    elif field == ELEMENT_STRIDE:
        write_number(tensor_map, 56 + 4 * ordinal, 4, value)
    elif field == GLOBAL_STRIDE:
        write_number(tensor_map, 80 + 8 * ordinal, 8, value)
    elif field == RANK:
        write_number(tensor_map, 76, 1, byte)
    elif field == ELEMTYPE:
        write_number(tensor_map, 77, 1, byte)
    elif field == INTERLEAVE_LAYOUT:
        write_number(tensor_map, 78, 1, byte)
    elif field == SWIZZLE_MODE:
        write_number(tensor_map, 79, 1, byte)
    elif field == FILL_MODE:
        write_number(tensor_map, 112, 1, byte)
    elif field == SWIZZLE_ATOMICITY:
        write_number(tensor_map, 113, 1, byte)


@compile_for_python
def why_invalid(tensor_map):
    """VALID, or the number of what is wrong, or not supported, in uint8[128]: REASONS
    has the text. PTX ISA, "Tensor Map", and the driver's cuTensorMapEncodeTiled.
    """
    if read_number(tensor_map, 0, 4) != MARK:
        return NO_MAP
    rank = rank_of(tensor_map)
    if rank > MAX_RANK:
        return BAD_RANK
    needed = 7
    for dimension in range(rank):
        needed |= field_bit(BOX_DIM, dimension) | field_bit(GLOBAL_DIM, dimension)
        needed |= field_bit(ELEMENT_STRIDE, dimension)
        if dimension > 0:
            needed |= field_bit(GLOBAL_STRIDE, dimension - 1)
    if needed & ~read_number(tensor_map, 4, 4) != 0:
        return UNSET_FIELD
    code = why_tensor_invalid(tensor_map)
    return code if code != VALID else why_box_invalid(tensor_map)


@compile_native
def why_tensor_invalid(tensor_map):
    """What is wrong with the tensor that a map describes; see `why_invalid`."""
    element_type = element_type_of(tensor_map)
    if type_bytes(element_type) == 0:
        return BAD_TYPE
    if address_of(tensor_map) % 16 != 0:
        return MISALIGNED_ADDRESS
    for dimension in range(rank_of(tensor_map)):
        if size_of(tensor_map, dimension) == 0:
            return EMPTY_DIMENSION
        if dimension > 0:
            stride = stride_of(tensor_map, dimension)
            if stride % 16 != 0 or stride < 0 or stride >= MAX_STRIDE_BYTES:
                return BAD_STRIDE
    fill = tensor_map[112]
    if fill > FILL_NAN or fill == FILL_NAN and element_type < F16:
        return BAD_FILL
    return VALID


@compile_native
def why_box_invalid(tensor_map):
    """What is wrong with the box that a map describes; see `why_invalid`."""
    if tensor_map[78] != 0:
        return BAD_INTERLEAVE
    if tensor_map[79] > 3 or tensor_map[113] != 0:
        return BAD_SWIZZLE
    for dimension in range(rank_of(tensor_map)):
        box = box_size_of(tensor_map, dimension)
        if box < 1 or box > MAX_BOX:
            return BAD_BOX
        step = element_stride_of(tensor_map, dimension)
        if step < 1 or step > MAX_ELEMENT_STRIDE:
            return BAD_ELEMENT_STRIDE
    row = row_bytes(tensor_map)
    if row % 16 != 0:
        return BAD_BOX_ROW
    span = swizzle_span(tensor_map)
    if span > 16 and row > span:
        return WIDE_BOX_ROW
    if span > 16 and row < span:
        return NARROW_BOX_ROW
    return VALID


@compile_native
def row_bytes(tensor_map):
    """The bytes of a row of the box. The innermost element stride is without effect, as
    in maps that aren't interleaved.
    """
    return box_size_of(tensor_map, 0) * type_bytes(element_type_of(tensor_map))


@compile_native
def box_steps(tensor_map, dimension):
    """How many elements of a box lie along a dimension from 1 on; 1 beyond the rank."""
    if dimension >= rank_of(tensor_map):
        return np.int64(1)
    step = element_stride_of(tensor_map, dimension)
    return (box_size_of(tensor_map, dimension) + step - 1) // step


@compile_for_python
def box_bytes(tensor_map):
    """The bytes of the whole box: what a load's mbarrier counts, out of bounds or not."""
    size = row_bytes(tensor_map)
    for dimension in range(1, MAX_RANK):
        size *= box_steps(tensor_map, dimension)
    return size


@compile_native
def row_address(tensor_map, coordinates, row):
    """The global address of the element at the first coordinate 0 in row `row` of a
    box, or -1 if the row is outside of the tensor.
    """
    address = address_of(tensor_map)
    for dimension in range(1, rank_of(tensor_map)):
        steps = box_steps(tensor_map, dimension)
        step = element_stride_of(tensor_map, dimension)
        place = np.int64(coordinates[dimension]) + row % steps * step
        if place < 0 or place >= size_of(tensor_map, dimension):
            return np.int64(-1)
        address += place * stride_of(tensor_map, dimension)
        row //= steps
    return address


@compile_for_python
def box_pieces(tensor_map, coordinates, shared_start):
    """The pieces of 16 bytes or less that a box is copied in: int64[pieces, 3].

    A row is the global byte address, or -1 where the box is outside of the tensor; the
    shared byte address; the bytes. `tensor_map` is a valid uint8[128], `coordinates`
    are integers[rank], the innermost first, and `shared_start` is the box's shared byte
    address. Rows of a box follow one another in shared memory. Swizzling exclusive-ors
    bits 4 to 6 (4 to 5, 4) of the shared address with bits 7 to 9 (7 to 8, 7) of it:
    PTX ISA, "Swizzling Modes". A piece never crosses the tensor's edge.
    """
    element = type_bytes(element_type_of(tensor_map))
    row_size = row_bytes(tensor_map)
    rows = box_bytes(tensor_map) // row_size
    mask = swizzle_span(tensor_map) // 16 - 1
    first = np.int64(coordinates[0])
    low = min(max(-first * element, 0), row_size)
    high = max(min((size_of(tensor_map, 0) - first) * element, row_size), low)
    pieces = np.empty((rows * (row_size // 16 + 2), 3), np.int64)
    count = 0
    for row in range(rows):
        address = row_address(tensor_map, coordinates, row)
        source = address + first * element
        for chunk in range(0, row_size, 16):
            target = shared_start + row * row_size + chunk
            target ^= (target >> 7 & mask) << 4
            begin = chunk
            while begin < chunk + 16:
                end = chunk + 16
                inside = address >= 0 and low <= begin < high
                if address >= 0 and begin < low:
                    end = min(end, low)
                elif inside:
                    end = min(end, high)
                pieces[count, 0] = source + begin if inside else -1
                pieces[count, 1] = target + begin - chunk
                pieces[count, 2] = end - begin
                count += 1
                begin = end
    return pieces[:count]


@compile_native
def copy_bytes(destination, source, count):
    """Copy up to 16 bytes between addresses of this process."""
    if count == PIECE_BYTES:
        copy(destination, source, PIECE_BYTES)
    else:
        for i in range(count):
            write8(destination + i, read8(source + i))


@compile_native
def nan_byte(tensor_map, place):
    """The byte at `place` of elements that are NaN, with all bits but the sign set. The
    bits of the hardware's NaN aren't documented.
    """
    size = type_bytes(element_type_of(tensor_map))
    return np.uint8(0x7F if place % size == size - 1 else 0xFF)


@compile_for_python
def load_box(tensor_map, coordinates, shared, shared_start):
    """Copy a box from global memory, at its addresses in this process, to uint8[]
    `shared`, whose index is the shared address. See `box_pieces`.

    Returns the box's bytes.
    """
    pieces = box_pieces(tensor_map, coordinates, shared_start)
    base = np.int64(shared.ctypes.data)
    zeros = tensor_map[112] == FILL_ZEROS
    for i in range(len(pieces)):
        source, target, count = pieces[i, 0], pieces[i, 1], pieces[i, 2]
        if source >= 0:
            copy_bytes(base + target, source, count)
        elif zeros:
            for byte in range(count):
                shared[target + byte] = 0
        else:
            for byte in range(count):
                shared[target + byte] = nan_byte(tensor_map, target + byte)
    return box_bytes(tensor_map)


@compile_for_python
def store_box(tensor_map, coordinates, shared, shared_start):
    """Copy a box from shared to global memory; see `load_box`. What is outside of the
    tensor is dropped.
    """
    pieces = box_pieces(tensor_map, coordinates, shared_start)
    base = np.int64(shared.ctypes.data)
    for i in range(len(pieces)):
        if pieces[i, 0] >= 0:
            copy_bytes(pieces[i, 0], base + pieces[i, 1], pieces[i, 2])


@compile_for_python
def reduces(operation, element_type):
    """Whether cp.reduce.async.bulk.tensor has an operation for an element type, and
    this module too: add, min and max of u32, s32, u64, s64, f16 and bf16, add of f32,
    inc and dec of u32, and, or and xor of the integers of 32 and 64 bits.
    """
    if U32 <= element_type <= S64:
        return operation != INC and operation != DEC or element_type == U32
    if element_type == F32:
        return operation == ADD
    return (element_type == F16 or element_type == BF16) and operation <= MAX


@compile_native
def reduce_floats(operation, left, right):
    """The sum, or the lesser or greater number where there is one, of two float64."""
    if operation == ADD:
        return left + right
    if np.isnan(left):
        return right
    if np.isnan(right):
        return left
    return min(left, right) if operation == MIN else max(left, right)


@compile_native
def reduce_integers(operation, left, right, signed):
    """The operation on two int64 that hold 32-bit numbers, or the bits of 64-bit ones.

    PTX ISA: inc is left >= right ? 0 : left + 1, and dec is left == 0 or left > right ?
    right : left - 1.
    """
    less = left < right
    if not signed:
        less = np.uint64(left) < np.uint64(right)
    if operation == ADD:
        return left + right
    if operation == MIN:
        return left if less else right
    if operation == MAX:
        return right if less else left
    if operation == INC:
        return left + 1 if less else np.int64(0)
    if operation == DEC:
        return right if left == 0 or left > right else left - 1
    if operation == AND:
        return left & right
    return left | right if operation == OR else left ^ right


@compile_native
def reduce_elements(operation, element_type, left, right):
    """The bits, in an int64, of the operation on the bits of two elements."""
    if element_type == F16:
        result = reduce_floats(
            operation, np.float64(decode_f16(left)), np.float64(decode_f16(right))
        )
        return np.int64(encode_f16(result, TO_NEAREST_EVEN, False))
    if element_type == BF16:
        result = reduce_floats(
            operation, np.float64(decode_bf16(left)), np.float64(decode_bf16(right))
        )
        return np.int64(encode_bf16(result, TO_NEAREST_EVEN, False))
    if element_type == F32:
        left_value = np.uint32(left).view(np.float32)
        right_value = np.uint32(right).view(np.float32)
        return np.int64(np.float32(left_value + right_value).view(np.uint32))
    if element_type == S32:
        left, right = np.int64(np.int32(left)), np.int64(np.int32(right))
    signed = element_type == S32 or element_type == S64
    return reduce_integers(operation, left, right, signed)


@compile_native
def read_memory(address, size):
    """The little-endian unsigned integer at an address of this process, in an int64."""
    value = np.int64(0)
    for i in range(size):
        value |= np.int64(read8(address + i)) << (8 * i)
    return value


@compile_for_python
def reduce_box(operation, tensor_map, coordinates, shared, shared_start):
    """Combine a box in shared memory with the tensor in global memory, element by
    element: cp.reduce.async.bulk.tensor. See `store_box`.

    `operation` is of REDUCTIONS. Float sums are rounded to nearest even; subnormal
    numbers are kept. Returns whether the operation is known for the element type (see
    `reduces`); nothing is written otherwise.
    """
    element_type = element_type_of(tensor_map)
    if not reduces(operation, element_type):
        return False
    size = type_bytes(element_type)
    pieces = box_pieces(tensor_map, coordinates, shared_start)
    base = np.int64(shared.ctypes.data)
    for i in range(len(pieces)):
        target, source = pieces[i, 0], base + pieces[i, 1]
        if target >= 0:
            for byte in range(0, pieces[i, 2], size):
                left = read_memory(target + byte, size)
                right = read_memory(source + byte, size)
                result = reduce_elements(operation, element_type, left, right)
                for place in range(size):
                    write8(
                        target + byte + place, np.uint8(result >> (8 * place) & 0xFF)
                    )
    return True


def replace(tensor_map: bytes, field: str, ordinal: int | None, value: int) -> bytes:
    """128 bytes with a field replaced: `replace_field`, by its name in PTX.

    KeyError for a field that PTX doesn't have.
    """
    replaced = np.frombuffer(tensor_map, np.uint8).copy()
    bits = value & 0xFFFFFFFFFFFFFFFF
    replace_field(replaced, FIELDS[field], ordinal or 0, np.uint64(bits).view(np.int64))
    return replaced.tobytes()


def encode(
    address: int,
    element_type: int,
    shape: Sequence[int],
    strides: Sequence[int],
    box: Sequence[int],
    *,
    element_strides: Sequence[int] | None = None,
    swizzle: int = 0,
    interleave: int = 0,
    fill: int = FILL_ZEROS,
) -> bytes:
    """A tensor map as cuTensorMapEncodeTiled makes it: 128 bytes.

    `shape`, `box` and `element_strides` are in elements, `strides` in bytes and from
    the second dimension on, all with the innermost dimension first. `element_type` is a
    number of PTX (the constants here); `swizzle` is the span in bytes, 0, 32, 64 or
    128. ValueError, a line, for what the driver refuses or isn't supported.
    """
    rank = len(shape)
    steps = [1] * rank if element_strides is None else list(element_strides)
    if not 1 <= rank <= MAX_RANK:
        raise ValueError(f"tensor map: {REASONS[BAD_RANK]}, but {rank}")
    if (len(strides), len(box), len(steps)) != (rank - 1, rank, rank):
        raise ValueError(
            f"tensor map: {len(strides)} strides, {len(box)} sizes of the box and "
            f"{len(steps)} element strides for rank {rank}"
        )
    for reason, numbers, limit in (
        (EMPTY_DIMENSION, shape, 1 << 32),
        (BAD_STRIDE, strides, MAX_STRIDE_BYTES),
        (BAD_BOX, box, MAX_BOX + 1),
        (BAD_ELEMENT_STRIDE, steps, MAX_ELEMENT_STRIDE + 1),
        (MISALIGNED_ADDRESS, [address], 1 << 63),
        (BAD_TYPE, [element_type], 256),
        (BAD_INTERLEAVE, [interleave], 256),
        (BAD_FILL, [fill], 256),
    ):
        if not all(0 <= number < limit for number in numbers):
            raise ValueError(f"tensor map: {REASONS[reason]}: {list(numbers)}")
    if swizzle not in SWIZZLE_MODES:
        raise ValueError(f"tensor map: {REASONS[BAD_SWIZZLE]}: {swizzle} bytes")
    encoded = np.zeros(MAP_BYTES, np.uint8)
    for field, numbers in (
        (GLOBAL_ADDRESS, [address]),
        (RANK, [rank - 1]),
        (ELEMTYPE, [element_type]),
        (GLOBAL_DIM, shape),
        (GLOBAL_STRIDE, strides),
        (BOX_DIM, box),
        (ELEMENT_STRIDE, steps),
        (INTERLEAVE_LAYOUT, [interleave]),
        (SWIZZLE_MODE, [SWIZZLE_MODES[swizzle]]),
        (FILL_MODE, [fill]),
    ):
        for ordinal, number in enumerate(numbers):
            replace_field(encoded, field, ordinal, int(number))
    code = why_invalid(encoded)
    if code != VALID:
        raise ValueError(f"tensor map: {REASONS[code]}")
    return encoded.tobytes()
