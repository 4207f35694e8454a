"""The arithmetic of the tensor cores: mma, wgmma, ldmatrix, stmatrix and movmatrix of
one warp or warp group, on registers and shared memory that are NumPy arrays.

Registers are uint32[registers, 32]: a row for each register of the PTX operand's vector
in its order, a column for each lane. For a warp group uint32[4, registers, 32]. Where
the elements of a matrix lie in them is PTX ISA's "Matrix Fragments for mma" and
"Register Fragments for wgmma.mma_async.m64nNk..".

Products are exact and sums are in float64, in the order of k, from the accumulator on;
the result is rounded once, to nearest even. Real tensor cores align the products of one
step to the largest and truncate, so their float32 results may differ in the last bits.
Integer sums are exact; they wrap to 32 bits, or clamp with `.satfinite`. Inputs of tf32
are read as they are in hardware: the low 13 bits are ignored.

Nothing here checks an address or an alignment. Functions that write, write into the
array that is their destination: they are called for each instruction by native code,
which owns the registers.
"""

from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from batchline.bench.measure.emulator.native import (
    compile_for_python,
    compile_native,
)
from batchline.bench.measure.emulator.number_formats import (
    TO_NEAREST_EVEN,
    decode_e4m3,
    decode_e5m2,
    decode_f16,
    encode_f16,
)

# Element types of a kind: A's in bits 0 to 3, B's in 4 to 7, those of C and D in 8 to 11
F16, BF16, TF32, E4M3, E5M2, S8, U8 = range(7)
ACCUMULATE_F32, ACCUMULATE_F16, ACCUMULATE_S32 = range(3)
SATURATE = 1 << 12

INPUT_TYPES = {
    "f16": F16,
    "bf16": BF16,
    "tf32": TF32,
    "e4m3": E4M3,
    "e5m2": E5M2,
    "s8": S8,
    "u8": U8,
}
ACCUMULATOR_TYPES = {
    "f32": ACCUMULATE_F32,
    "f16": ACCUMULATE_F16,
    "s32": ACCUMULATE_S32,
}

# Flags of a wgmma
SCALE_D = 1
NEGATE_A = 2
NEGATE_B = 4
TRANSPOSE_A = 8
TRANSPOSE_B = 16

DEPTH_BYTES = 32  # of A's rows and B's columns, in every wgmma

# What `why_descriptor_invalid` says
VALID = 0
RESERVED_BITS = 1
MISALIGNED_START = 2
DESCRIPTOR_FAULTS = {
    RESERVED_BITS: "reserved bits of a matrix descriptor are set",
    MISALIGNED_START: "a matrix doesn't start in the first row of its swizzle pattern",
}


def encode_kind(accumulator: str, a: str, b: str, saturate: bool = False) -> int:
    """The number by which `mma` and `wgmma` know the types of their operands, from
    PTX's names of them, as "f32", "bf16", "bf16".

    KeyError for a type that isn't known here.
    """
    kind = INPUT_TYPES[a] | INPUT_TYPES[b] << 4 | ACCUMULATOR_TYPES[accumulator] << 8
    return kind | (SATURATE if saturate else 0)


@intrinsic
def fused_multiply_add(typing_context, a, b, c):
    """a * b + c of float64, rounded once."""

    def generate(context, builder, signature, arguments):
        double = ir.DoubleType()
        function = builder.module.declare_intrinsic(
            "llvm.fma", [double], ir.FunctionType(double, [double] * 3)
        )
        return builder.call(function, arguments)

    return types.float64(types.float64, types.float64, types.float64), generate


@compile_native
def element_bytes(element):
    """Bytes of an element of an input type."""
    if element == TF32:
        return 4
    return 2 if element <= BF16 else 1


@compile_native
def decode_bytes(element, codes, sign, values):
    """Write the numbers of uint8[n] `codes` of an 8-bit type, times `sign`, to
    float64[n] `values`. A loop for each type, so that each is vectorised.
    """
    if element == E4M3:
        for i in range(len(values)):
            values[i] = sign * np.float64(decode_e4m3(codes[i]))
    elif element == E5M2:
        for i in range(len(values)):
            values[i] = sign * np.float64(decode_e5m2(codes[i]))
    elif element == S8:
        for i in range(len(values)):
            values[i] = sign * np.float64(np.int8(codes[i]))
    else:
        for i in range(len(values)):
            values[i] = sign * np.float64(codes[i])


@compile_native
def decode_words(element, words, sign):
    """The elements in uint32[n] `words`, lowest bits first, times `sign`.

    Returns float64[4 * n // bytes of an element].
    """
    count = len(words)
    values = np.empty(count * 4 // element_bytes(element), np.float64)
    if element == F16:
        for i in range(count):
            values[2 * i] = sign * np.float64(decode_f16(words[i]))
            values[2 * i + 1] = sign * np.float64(decode_f16(words[i] >> np.uint32(16)))
    elif element == BF16:
        for i in range(count):
            low = np.uint32(words[i] << np.uint32(16)).view(np.float32)
            high = np.uint32(words[i] & np.uint32(0xFFFF0000)).view(np.float32)
            values[2 * i] = sign * np.float64(low)
            values[2 * i + 1] = sign * np.float64(high)
    elif element == TF32:
        for i in range(count):
            truncated = np.uint32(words[i] & np.uint32(0xFFFFE000)).view(np.float32)
            values[i] = sign * np.float64(truncated)
    else:
        decode_bytes(element, words.view(np.uint8), sign, values)
    return values


@compile_native
def decode_accumulators(accumulator, registers):
    """The numbers in uint32[registers, 32]: float64[registers * n, 32], with n = 2 for
    f16 (the lower half first) and 1 else.
    """
    count = registers.shape[0]
    if accumulator == ACCUMULATE_F16:
        values = np.empty((2 * count, 32), np.float64)
        for i in range(count):
            for lane in range(32):
                word = registers[i, lane]
                values[2 * i, lane] = decode_f16(word)
                values[2 * i + 1, lane] = decode_f16(word >> np.uint32(16))
        return values
    values = np.empty((count, 32), np.float64)
    for i in range(count):
        for lane in range(32):
            word = registers[i, lane]
            if accumulator == ACCUMULATE_F32:
                values[i, lane] = np.uint32(word).view(np.float32)
            else:
                values[i, lane] = np.int32(word)
    return values


@compile_native
def encode_integer(value, saturate):
    """The bit pattern of an s32 from a whole number in a float64."""
    if saturate:
        value = min(max(value, -2147483648.0), 2147483647.0)
    return np.uint32(np.int64(value) & 0xFFFFFFFF)


@compile_native
def encode_f32(value):
    """The bit pattern of a float64 rounded to float32; any NaN is 0x7fffffff."""
    if np.isnan(value):
        return np.uint32(0x7FFFFFFF)
    return np.float32(value).view(np.uint32)


@compile_native
def encode_accumulators(kind, values, registers):
    """Write float64[registers * n, 32] `values` as D's type: see
    `decode_accumulators`.
    """
    accumulator = kind >> 8 & 0xF
    for i in range(registers.shape[0]):
        for lane in range(32):
            if accumulator == ACCUMULATE_F32:
                word = encode_f32(values[i, lane])
            elif accumulator == ACCUMULATE_F16:
                low = encode_f16(values[2 * i, lane], TO_NEAREST_EVEN, False)
                high = encode_f16(values[2 * i + 1, lane], TO_NEAREST_EVEN, False)
                word = np.uint32(low | high << np.uint32(16))
            else:
                word = encode_integer(values[i, lane], kind & SATURATE != 0)
            registers[i, lane] = word


@compile_native
def accumulate(a, b, c):
    """Add the product of float64[m, k] `a` and float64[k, n] `b` to float64[m, n] `c`."""
    for row in range(c.shape[0]):
        for k in range(a.shape[1]):
            left = a[row, k]
            for column in range(c.shape[1]):
                c[row, column] += left * b[k, column]


@compile_native
def collect_a(element, registers, sign, first_row, matrix):
    """Write the 16 rows of A in a warp's fragment, uint32[2 or 4, 32], to float64[m, k]
    `matrix` from `first_row` on.

    Register r holds row lane / 4 + 8 * (r % 2) and the columns of the word
    lane % 4 + 4 * (r / 2) of that row.
    """
    count = registers.shape[0]
    per_word = 4 // element_bytes(element)
    values = decode_words(element, registers.reshape(count * 32), sign)
    for r in range(count):
        for lane in range(32):
            row = first_row + (lane >> 2) + 8 * (r & 1)
            column = per_word * ((lane & 3) + 4 * (r >> 1))
            for i in range(per_word):
                matrix[row, column + i] = values[per_word * (32 * r + lane) + i]


@compile_native
def collect_b(element, registers, sign):
    """The float64[k, 8] matrix B of a warp's fragment, uint32[1 or 2, 32].

    Register r holds column lane / 4 and the rows of the word lane % 4 + 4 * r of it.
    """
    count = registers.shape[0]
    per_word = 4 // element_bytes(element)
    values = decode_words(element, registers.reshape(count * 32), sign)
    matrix = np.empty((per_word * 4 * count, 8), np.float64)
    for r in range(count):
        for lane in range(32):
            row = per_word * ((lane & 3) + 4 * r)
            for i in range(per_word):
                value = values[per_word * (32 * r + lane) + i]
                matrix[row + i, lane >> 2] = value
    return matrix


@compile_native
def fragment_to_matrix(values, matrix):
    """Lay float64[4 * n / 8, 32] numbers of a warp's C or D fragment out as
    float64[16, n]: number i of a lane is in row lane / 4 + 8 * (i / 2 % 2) and column
    8 * (i / 4) + lane % 4 * 2 + i % 2.
    """
    for i in range(values.shape[0]):
        for lane in range(32):
            row = (lane >> 2) + 8 * (i >> 1 & 1)
            column = 8 * (i >> 2) + 2 * (lane & 3) + (i & 1)
            matrix[row, column] = values[i, lane]


@compile_native
def matrix_to_fragment(matrix):
    """The float64[4 * n / 8, 32] numbers of a warp's fragment of float64[16, n]."""
    values = np.empty((matrix.shape[1] // 2, 32), np.float64)
    for i in range(values.shape[0]):
        for lane in range(32):
            row = (lane >> 2) + 8 * (i >> 1 & 1)
            column = 8 * (i >> 2) + 2 * (lane & 3) + (i & 1)
            values[i, lane] = matrix[row, column]
    return values


@compile_for_python
def mma(kind, d, a, b, c):
    """mma.sync.aligned of m16n8 with the k that the fragments hold: D = A B + C.

    `kind` is of `encode_kind`. `a` is uint32[4, 32] (or [2, 32] for the half of k), `b`
    uint32[2, 32] (or [1, 32]), `c` and `d` uint32[4, 32], or [2, 32] for f16. That is
    m16n8k8 and k16 of f16 and bf16, m16n8k4 and k8 of tf32, m16n8k16 and k32 of e4m3,
    e5m2, s8 and u8. `d` may be `c`.
    """
    depth = 8 * a.shape[0] // element_bytes(kind & 0xF)
    left = np.empty((16, depth), np.float64)
    collect_a(kind & 0xF, a, 1.0, 0, left)
    right = collect_b(kind >> 4 & 0xF, b, 1.0)
    sums = np.empty((16, 8), np.float64)
    fragment_to_matrix(decode_accumulators(kind >> 8 & 0xF, c), sums)
    accumulate(left, right, sums)
    encode_accumulators(kind, matrix_to_fragment(sums), d)


@compile_for_python
def mma_f64(d, a, b, c):
    """mma.sync.aligned of f64: m8n8k4, and m16n8k4, k8 and k16.

    `a`, `b`, `c` and `d` are float64[registers, 32]; `d` may be `c`. m8n8k4 has 1, 1
    and 2 registers of A, B and C. Each product is added with one rounding, in the order
    of k.
    """
    halves = d.shape[0] // 2
    depth = 4 * b.shape[0]
    sums = np.empty((d.shape[0], 32), np.float64)
    for i in range(d.shape[0]):
        for lane in range(32):
            row = (lane >> 2) + 8 * (i >> 1)
            column = 2 * (lane & 3) + (i & 1)
            total = c[i, lane]
            for k in range(depth):
                left = a[(k >> 2) * halves + (row >> 3), 4 * (row & 7) + (k & 3)]
                right = b[k >> 2, 4 * column + (k & 3)]
                total = fused_multiply_add(left, right, total)
            sums[i, lane] = total
    for i in range(d.shape[0]):
        for lane in range(32):
            d[i, lane] = sums[i, lane]


@compile_native
def swizzle_bytes(mode):
    """The span in bytes of a matrix descriptor's swizzle mode; 16 for none."""
    if mode == 0:
        return 16
    return 256 >> mode


@compile_for_python
def why_descriptor_invalid(descriptor):
    """VALID, or what is wrong with a 64-bit matrix descriptor of wgmma.

    PTX ISA, "Matrix Descriptor Format": bits 0 to 13 are the start address, 16 to 29
    the leading dimension byte offset and 32 to 45 the stride dimension byte offset, all
    in units of 16 bytes, 49 to 51 the base offset, 62 and 63 the swizzle mode; all else
    is reserved. A swizzled matrix starts in row 0 of the repeating pattern of 8 rows,
    whose own start is at the base offset times 128 bytes, in 1024 (512, 256).
    """
    descriptor = np.int64(descriptor)
    reserved = np.int64(0x3FF1C000C000C000)
    if descriptor & reserved != 0:
        return RESERVED_BITS
    mode = descriptor >> 62 & 3
    if mode == 0:
        return VALID
    span = swizzle_bytes(mode)
    start = (descriptor & 0x3FFF) << 4
    base = (descriptor >> 49 & 7) << 7
    return VALID if (start - base & 8 * span - 1) < span else MISALIGNED_START


@compile_for_python
def operand_addresses(descriptor, rows, depth_bytes, transposed):
    """The shared-memory byte address of each 16-byte piece that wgmma reads of a matrix
    given by a descriptor. int32[pieces].

    `rows` is M or N. `depth_bytes` is k times the bytes of an element: 32 for the
    instructions there are. K-major (`transposed` false): pieces are in the order of
    the row, then of k; there are rows * depth_bytes / 16. MN-major (`transposed`, only
    for elements of 2 bytes): in the order of k, then of the row; there are
    depth_bytes / 2 * rows / 8.

    From PTX ISA, "Strides" and "Canonical Layouts", in units of 16 bytes, with L and S
    for the leading and the stride offset and W for the swizzle's span:
    K-major        (8, m), (k):  (W, S), (1), with L for the 1 if not swizzled
    MN-major       (W, m), (8, k):  (1, L), (W, S)
    MN-major, not swizzled  (1, m), (8, k):  (1, S), (1, L)
    Swizzling exclusive-ors bits 4 to 6 (4 to 5, 4) of the address with bits 7 to 9 (7
    to 8, 7), counted from the pattern's start, which the base offset gives.
    """
    descriptor = np.int64(descriptor)
    start = (descriptor & 0x3FFF) << 4
    leading = (descriptor >> 16 & 0x3FFF) << 4
    stride = (descriptor >> 32 & 0x3FFF) << 4
    base = descriptor >> 49 & 7
    span = np.int64(swizzle_bytes(descriptor >> 62 & 3))
    if transposed:
        outer, inner = depth_bytes // 2, rows // 8
    else:
        outer, inner = rows, depth_bytes // 16
    if span == 16 and transposed:
        leading, stride = stride, leading
    step = np.int64(16) if span > 16 else leading
    width = span // 16
    addresses = np.empty(outer * inner, np.int32)
    for i in range(outer):
        line = start + (i & 7) * span + (i >> 3) * stride
        for j in range(inner):
            if transposed:
                address = line + j % width * 16 + j // width * leading
            else:
                address = line + j * step
            address ^= ((address >> 7) - base & width - 1) << 4
            addresses[i * inner + j] = address
    return addresses


@compile_native
def read_pieces(shared, addresses):
    """The 16-byte pieces at int32[n] byte addresses of uint8[] shared memory:
    uint32[4 * n].
    """
    words = np.empty(4 * len(addresses), np.uint32)
    target = words.view(np.uint8)
    for i in range(len(addresses)):
        address = addresses[i]
        for byte in range(16):
            target[16 * i + byte] = shared[address + byte]
    return words


@compile_native
def addresses_of_rows(descriptor, warp, transposed):
    """Of a matrix A in shared memory the pieces of the 16 rows of a warp of the group:
    int32[32], in the order of `operand_addresses`.
    """
    addresses = operand_addresses(descriptor, 64, DEPTH_BYTES, transposed)
    mine = np.empty(32, np.int32)
    for place in range(32):
        if transposed:
            mine[place] = addresses[(place >> 1) * 8 + 2 * warp + (place & 1)]
        else:
            mine[place] = addresses[warp * 32 + place]
    return mine


@compile_native
def read_left(element, shared, addresses, transposed, sign):
    """The float64[16, k] rows of A at `addresses_of_rows`."""
    values = decode_words(element, read_pieces(shared, addresses), sign)
    depth = len(values) // 16
    if not transposed:
        return values.reshape((16, depth))
    matrix = np.empty((16, depth), np.float64)
    for k in range(depth):
        for row in range(16):
            matrix[row, k] = values[16 * k + row]
    return matrix


@compile_native
def collect_left(element, registers, sign):
    """The float64[16, k] rows of A in a warp's registers, uint32[4, 32]."""
    matrix = np.empty((16, DEPTH_BYTES // element_bytes(element)), np.float64)
    collect_a(element, registers, sign, 0, matrix)
    return matrix


@compile_native
def read_right(element, shared, addresses, columns, transposed, sign):
    """The float64[k, n] matrix B of a wgmma from shared memory."""
    values = decode_words(element, read_pieces(shared, addresses), sign)
    depth = len(values) // columns
    if transposed:
        return values.reshape((depth, columns))
    matrix = np.empty((depth, columns), np.float64)
    for column in range(columns):
        for k in range(depth):
            matrix[k, column] = values[depth * column + k]
    return matrix


@compile_native
def count_columns(kind, accumulators):
    """n of a wgmma, by a warp's accumulators, uint32[registers, 32]."""
    per_register = 2 if kind >> 8 & 0xF == ACCUMULATE_F16 else 1
    return 2 * per_register * accumulators.shape[0]


@compile_native
def accumulate_rows(kind, adds, accumulators, left, right):
    """D = A B + D, or A B where `adds` is false, of a warp's 16 rows: uint32[n, 32]
    `accumulators`, float64[16, k] `left` and float64[k, n] `right`.
    """
    sums = np.zeros((16, right.shape[1]), np.float64)
    if adds:
        fragment_to_matrix(decode_accumulators(kind >> 8 & 0xF, accumulators), sums)
    accumulate(left, right, sums)
    encode_accumulators(kind, matrix_to_fragment(sums), accumulators)


@compile_native
def read_b(kind, flags, columns, descriptor, shared):
    """The float64[k, columns] matrix B of a wgmma."""
    transposed = flags & TRANSPOSE_B != 0
    addresses = operand_addresses(descriptor, columns, DEPTH_BYTES, transposed)
    sign = -1.0 if flags & NEGATE_B else 1.0
    return read_right(kind >> 4 & 0xF, shared, addresses, columns, transposed, sign)


@compile_for_python
def wgmma_from_shared(
    kind, flags, accumulators, warp, a_descriptor, b_descriptor, shared
):
    """What warp `warp` of its group does of a wgmma.mma_async with A and B in shared
    memory; see `wgmma_from_registers`. The byte at shared address s is `shared[s]`.
    """
    transposed = flags & TRANSPOSE_A != 0
    addresses = addresses_of_rows(a_descriptor, warp, transposed)
    sign = -1.0 if flags & NEGATE_A else 1.0
    left = read_left(kind & 0xF, shared, addresses, transposed, sign)
    columns = count_columns(kind, accumulators)
    right = read_b(kind, flags, columns, b_descriptor, shared)
    accumulate_rows(kind, flags & SCALE_D != 0, accumulators, left, right)


@compile_for_python
def wgmma_from_registers(kind, flags, accumulators, a, b_descriptor, shared):
    """What a warp does of a wgmma.mma_async of m64nNk16 (f16, bf16), k8 (tf32) or k32
    (8-bit types): 16 rows of D.

    `kind` is of `encode_kind`; `flags` are SCALE_D, NEGATE_A, NEGATE_B, TRANSPOSE_A and
    TRANSPOSE_B. `accumulators` is uint32[registers, 32], read (with SCALE_D) and
    written; its registers give n. `a` is uint32[4, 32]. `shared` is uint8[].
    """
    sign = -1.0 if flags & NEGATE_A else 1.0
    left = collect_left(kind & 0xF, a, sign)
    columns = count_columns(kind, accumulators)
    right = read_b(kind, flags, columns, b_descriptor, shared)
    accumulate_rows(kind, flags & SCALE_D != 0, accumulators, left, right)


@compile_native
def read_halfword(shared, address):
    """The 16 bits at a byte address, little-endian, as a uint32."""
    low = np.uint32(shared[address])
    return np.uint32(low | np.uint32(shared[address + 1]) << np.uint32(8))


@compile_native
def write_halfword(shared, address, value):
    """Write the low 16 bits of `value` to a byte address."""
    shared[address] = np.uint8(value & np.uint32(0xFF))
    shared[address + 1] = np.uint8(value >> np.uint32(8) & np.uint32(0xFF))


@compile_for_python
def ldmatrix(shared, addresses, transposed, d):
    """ldmatrix.sync.aligned.m8n8.x1, .x2 or .x4 (.trans) of b16 into uint32[1, 2 or 4,
    32] `d`.

    Row r of matrix i is the 16 bytes at `addresses[8 * i + r]` (integers[32]); the
    other lanes' addresses aren't read. A lane gets the elements 2 * (lane % 4) and the
    next of row lane / 4, or with `transposed` of column lane / 4.
    """
    for i in range(d.shape[0]):
        for lane in range(32):
            line, pair = lane >> 2, 2 * (lane & 3)
            if transposed:
                low = read_halfword(shared, addresses[8 * i + pair] + 2 * line)
                high = read_halfword(shared, addresses[8 * i + pair + 1] + 2 * line)
            else:
                start = addresses[8 * i + line] + 2 * pair
                low = read_halfword(shared, start)
                high = read_halfword(shared, start + 2)
            d[i, lane] = low | high << np.uint32(16)


@compile_for_python
def stmatrix(shared, addresses, transposed, a):
    """stmatrix.sync.aligned.m8n8.x1, .x2 or .x4 (.trans) of b16: the reverse of
    `ldmatrix`, from uint32[1, 2 or 4, 32] `a`.
    """
    for i in range(a.shape[0]):
        for lane in range(32):
            line, pair = lane >> 2, 2 * (lane & 3)
            low, high = a[i, lane], a[i, lane] >> np.uint32(16)
            if transposed:
                write_halfword(shared, addresses[8 * i + pair] + 2 * line, low)
                write_halfword(shared, addresses[8 * i + pair + 1] + 2 * line, high)
            else:
                start = addresses[8 * i + line] + 2 * pair
                write_halfword(shared, start, low)
                write_halfword(shared, start + 2, high)


@compile_for_python
def movmatrix(d, a):
    """movmatrix.sync.aligned.m8n8.trans.b16: uint32[32] `d` is the transpose of the
    matrix in uint32[32] `a`. `d` may not be `a`.
    """
    for lane in range(32):
        line, pair = lane >> 2, 2 * (lane & 3)
        shift = np.uint32(16 * (line & 1))
        low = a[4 * pair + (line >> 1)] >> shift & np.uint32(0xFFFF)
        high = a[4 * (pair + 1) + (line >> 1)] >> shift & np.uint32(0xFFFF)
        d[lane] = low | high << np.uint32(16)
