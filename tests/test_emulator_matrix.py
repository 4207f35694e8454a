"""The tensor cores' arithmetic against products in NumPy: fragments are filled by PTX
ISA's own formulas, and shared memory by the layouts and the swizzle tables that it
shows, both written out here once more.
"""

import math

import numpy as np
import pytest
import torch

from batchline.bench.measure.emulator import matrix

TORCH_TYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "tf32": torch.float32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "s8": torch.int8,
    "u8": torch.uint8,
    "f32": torch.float32,
    "s32": torch.int32,
    "f64": torch.float64,
}
BYTES = {name: dtype.itemsize for name, dtype in TORCH_TYPES.items()}

# PTX ISA "Swizzling Modes": which 16-byte chunk of a line of 128 bytes lies where
SWIZZLE_TABLES = {
    0: ((0, 1, 2, 3, 4, 5, 6, 7),),
    32: ((0, 1, 2, 3, 4, 5, 6, 7), (1, 0, 3, 2, 5, 4, 7, 6)),
    64: (
        (0, 1, 2, 3, 4, 5, 6, 7),
        (1, 0, 3, 2, 5, 4, 7, 6),
        (2, 3, 0, 1, 6, 7, 4, 5),
        (3, 2, 1, 0, 7, 6, 5, 4),
    ),
    128: (
        (0, 1, 2, 3, 4, 5, 6, 7),
        (1, 0, 3, 2, 5, 4, 7, 6),
        (2, 3, 0, 1, 6, 7, 4, 5),
        (3, 2, 1, 0, 7, 6, 5, 4),
        (4, 5, 6, 7, 0, 1, 2, 3),
        (5, 4, 7, 6, 1, 0, 3, 2),
        (6, 7, 4, 5, 2, 3, 0, 1),
        (7, 6, 5, 4, 3, 2, 1, 0),
    ),
}
SWIZZLE_MODES = {0: 0, 128: 1, 64: 2, 32: 3}


def draw(random, name, *shape):
    """Numbers that every format but u8 has, few enough bits that sums are exact."""
    if name == "u8":
        return random.integers(0, 256, shape).astype(np.float64)
    if name in ("s8", "s32"):
        return random.integers(-128, 128, shape).astype(np.float64)
    return random.integers(-8, 9, shape) / 4


def to_bytes(values, name):
    """The little-endian bytes of numbers in a format: uint8[..., bytes]."""
    encoded = torch.from_numpy(np.ascontiguousarray(values)).to(TORCH_TYPES[name])
    raw = encoded.contiguous().view(torch.uint8).numpy()
    return raw.reshape(*np.shape(values), BYTES[name])


def pack(elements, name):
    """uint32[...] registers of float64[..., elements of a register]."""
    raw = to_bytes(elements, name)
    return raw.reshape(*raw.shape[:-2], 4).view(np.uint32)[..., 0].copy()


def unpack(registers, name):
    """float64[..., elements of a register] of uint32[...] registers."""
    raw = torch.from_numpy(registers[..., None].view(np.uint8).copy())
    return raw.view(TORCH_TYPES[name]).to(torch.float64).numpy()


def a_places(name, k):
    """Row and column of element i of register r of a lane, int[registers, 32, i] each.

    Typed in from the figures "MMA .m16n8kK fragment layout for matrix A".
    """
    count, per_register = {
        ("f16", 8): (2, 2),
        ("f16", 16): (4, 2),
        ("tf32", 4): (2, 1),
        ("tf32", 8): (4, 1),
        ("s8", 16): (2, 4),
        ("s8", 32): (4, 4),
    }[shape_class(name), k]
    r, lane, i = np.ogrid[:count, :32, :per_register]
    group, thread = lane // 4, lane % 4
    rows = np.where(r % 2 == 0, group, group + 8)
    if name == "tf32":
        columns = np.where(r < 2, thread, thread + 4)
    elif per_register == 2:
        columns = thread * 2 + i + np.where(r < 2, 0, 8)
    else:
        columns = thread * 4 + i + np.where(r < 2, 0, 16)
    return np.broadcast_arrays(rows + 0 * i, columns)


def b_places(name, k):
    """Row and column of the elements of B's registers, likewise."""
    count, per_register = {
        ("f16", 8): (1, 2),
        ("f16", 16): (2, 2),
        ("tf32", 4): (1, 1),
        ("tf32", 8): (2, 1),
        ("s8", 16): (1, 4),
        ("s8", 32): (2, 4),
    }[shape_class(name), k]
    r, lane, i = np.ogrid[:count, :32, :per_register]
    group, thread = lane // 4, lane % 4
    if name == "tf32":
        rows = thread + 4 * r
    elif per_register == 2:
        rows = thread * 2 + i + 8 * r
    else:
        rows = thread * 4 + i + 16 * r
    return np.broadcast_arrays(rows, group + 0 * rows)


def shape_class(name):
    """The type whose fragments are laid out like those of `name`."""
    if name in ("f16", "bf16"):
        return "f16"
    return "tf32" if name == "tf32" else "s8"


def c_places(name, columns):
    """Row and column of the elements of C's and D's registers, for a matrix with 16
    rows.
    """
    per_register = 2 if name == "f16" else 1
    count = columns // 2 // per_register
    r, lane, i = np.ogrid[:count, :32, :per_register]
    index = r * per_register + i
    rows = lane // 4 + 8 * (index % 4 // 2)
    columns = 8 * (index // 4) + lane % 4 * 2 + index % 2
    return np.broadcast_arrays(rows, columns)


MMA_SHAPES = (
    ("f32", "f16", "f16", 16),
    ("f32", "f16", "f16", 8),
    ("f16", "f16", "f16", 16),
    ("f16", "f16", "f16", 8),
    ("f32", "bf16", "bf16", 16),
    ("f32", "bf16", "bf16", 8),
    ("f32", "tf32", "tf32", 4),
    ("f32", "tf32", "tf32", 8),
    ("f32", "e4m3", "e4m3", 32),
    ("f32", "e5m2", "e4m3", 32),
    ("f16", "e4m3", "e5m2", 16),
    ("s32", "s8", "s8", 16),
    ("s32", "s8", "u8", 32),
    ("s32", "u8", "u8", 32),
)


@pytest.mark.parametrize("d_type,a_type,b_type,k", MMA_SHAPES)
def test_mma_is_the_product_in_the_fragments_of_the_isa(d_type, a_type, b_type, k):
    random = np.random.default_rng(k)
    left, right = draw(random, a_type, 16, k), draw(random, b_type, k, 8)
    start = draw(random, d_type, 16, 8)
    c_rows, c_columns = c_places(d_type, 8)
    c = pack(start[c_rows, c_columns], d_type)
    d = np.zeros_like(c)
    matrix.mma(
        matrix.encode_kind(d_type, a_type, b_type),
        d,
        pack(left[a_places(a_type, k)], a_type),
        pack(right[b_places(b_type, k)], b_type),
        c,
    )
    expected = left @ right + start
    np.testing.assert_array_equal(unpack(d, d_type), expected[c_rows, c_columns])


def test_mma_rounds_once():
    random = np.random.default_rng(0)
    left, right = random.standard_normal((2, 16, 16))
    left, right = (
        torch.from_numpy(x).to(torch.float16).double().numpy() for x in (left, right)
    )
    right = right[:, :8]
    rows, columns = c_places("f32", 8)
    c = random.standard_normal((16, 8)).astype(np.float32)
    d = pack(c[rows, columns], "f32")
    a = pack(left[a_places("f16", 16)], "f16")
    b = pack(right[b_places("f16", 16)], "f16")
    matrix.mma(matrix.encode_kind("f32", "f16", "f16"), d, a, b, d)
    expected = [
        [
            math.fsum([c[row, column], *(left[row] * right[:, column])])
            for column in range(8)
        ]
        for row in range(16)
    ]
    expected = np.array(expected).astype(np.float32)
    np.testing.assert_array_equal(unpack(d, "f32"), expected[rows, columns])


@pytest.mark.parametrize("saturate", (False, True))
def test_integer_sums_wrap_or_clamp(saturate):
    a = np.full((4, 32), 0x7F7F7F7F, np.uint32)
    b = np.full((2, 32), 0x80808080, np.uint32)
    c = np.full((4, 32), 0x80000000, np.uint32)
    kind = matrix.encode_kind("s32", "s8", "s8", saturate)
    matrix.mma(kind, c, a, b, c)
    exact = -(2**31) - 32 * 127 * 128
    assert (c == (0x80000000 if saturate else exact & 0xFFFFFFFF)).all()


def test_mma_ignores_the_low_bits_of_tf32_and_makes_canonical_nans():
    a = np.full((4, 32), 0x3F801FFF, np.uint32)
    b = np.full((2, 32), 0x3F801FFF, np.uint32)
    c = np.zeros((4, 32), np.uint32)
    kind = matrix.encode_kind("f32", "tf32", "tf32")
    matrix.mma(kind, c, a, b, c)
    assert (c.view(np.float32) == 8).all()
    a[:] = 0xFFC00001
    matrix.mma(kind, c, a, b, c)
    assert (c == 0x7FFFFFFF).all()


@pytest.mark.parametrize("m,k", ((8, 4), (16, 4), (16, 8), (16, 16)))
def test_f64_mma(m, k):
    random = np.random.default_rng(k)
    left, right = draw(random, "f64", m, k), draw(random, "f64", k, 8)
    start = draw(random, "f64", m, 8)
    i, lane = np.ogrid[: m * k // 32, :32]
    a = left[lane // 4 + 8 * (i % (m // 8)), lane % 4 + 4 * (i // (m // 8))]
    i, lane = np.ogrid[: k // 4, :32]
    b = right[lane % 4 + 4 * i, lane // 4 + 0 * i]
    i, lane = np.ogrid[: m // 4, :32]
    rows, columns = lane // 4 + 8 * (i // 2), lane % 4 * 2 + i % 2
    d = np.empty((m // 4, 32))
    matrix.mma_f64(d, a, b, start[rows, columns])
    np.testing.assert_array_equal(d, (left @ right + start)[rows, columns])


class SharedMatrix:
    """A matrix with `rows` and `k` in shared memory, in one of PTX ISA's canonical
    layouts, made of swizzle atoms of 8 lines of `span` bytes (16 if not swizzled).

    A line is a row of K-major and a k of MN-major matrices. Atoms lie `across` bytes
    apart along a line's direction and `along` bytes apart from 8 lines to the next.
    """

    def __init__(self, values, name, span, k_major, start=1024, gap=0):
        lines = values if k_major else values.T
        line_bytes = to_bytes(lines, name).reshape(len(lines), -1)
        self.name, self.span, self.k_major, self.start = name, span, k_major, start
        self.width = span or 16
        atoms = -(-line_bytes.shape[1] // self.width)
        repeat = 8 * self.width
        self.across = repeat + gap
        self.along = atoms * self.across + gap
        size = start + (len(lines) // 8 + 1) * self.along + 1024
        self.bytes = np.full(size, 0xEE, np.uint8)
        for line, row in enumerate(line_bytes):
            for chunk in range(0, len(row), 16):
                piece = row[chunk : chunk + 16]
                address = self.place(line, chunk)
                self.bytes[address : address + len(piece)] = piece

    def place(self, line, byte):
        """Where the chunk at `byte` of a line is."""
        atom = self.start + line // 8 * self.along + byte // self.width * self.across
        inside = line % 8 * self.width + byte % self.width
        base = self.start // 128
        address = atom + inside
        table = SWIZZLE_TABLES[self.span]
        order = table[(address // 128 - base) % len(table)]
        return address // 128 * 128 + 16 * order.index(address // 16 % 8)

    def describe(self, k_byte=0, base_offset=None):
        """The descriptor of the part from `k_byte` of every row (K-major), or from that
        many lines times 16 bytes of elements (MN-major), on.
        """
        start, leading, stride = self.start, self.across, self.along
        if not self.k_major:
            start += k_byte // BYTES[self.name] // 8 * self.along
            if not self.span:
                leading, stride = stride, leading
        else:
            start += k_byte // self.width * self.across + k_byte % self.width
            leading = leading if not self.span else 16
        if base_offset is None:
            base_offset = self.start // 128 % 8 if self.span else 0
        return np.uint64(
            (start & 0x3FFFF) >> 4
            | leading >> 4 << 16
            | stride >> 4 << 32
            | base_offset << 49
            | SWIZZLE_MODES[self.span] << 62
        )


def group_registers(values, name):
    """uint32[4, registers, 32] accumulators of a warp group, of float64[64, n]."""
    rows, columns = c_places(name, values.shape[1])
    return np.stack([pack(values[16 * w + rows, columns], name) for w in range(4)])


def group_matrix(registers, name, columns):
    """The float64[64, n] matrix in a warp group's accumulators."""
    values = np.empty((64, columns))
    rows, places = c_places(name, columns)
    for warp in range(4):
        values[16 * warp + rows, places] = unpack(registers[warp], name)
    return values


def multiply_group(kind, left, right, start, flags):
    """D of a wgmma on SharedMatrix or register operands: float64[64, n]."""
    d_type = kind[0]
    registers = group_registers(start, d_type)
    code = matrix.encode_kind(*kind)
    if isinstance(left, np.ndarray):
        memory, b = right[0].bytes, right[0].describe(right[1])
        for warp in range(4):
            matrix.wgmma_from_registers(
                code, flags, registers[warp], left[warp], b, memory
            )
    else:
        offset = 4096 * 16
        memory = np.full(offset + len(right[0].bytes), 0xEE, np.uint8)
        memory[: len(left[0].bytes)] = left[0].bytes
        assert len(left[0].bytes) <= offset
        memory[offset:] = right[0].bytes
        a, b = left[0].describe(left[1]), right[0].describe(right[1])
        b += np.uint64(offset >> 4)
        for warp in range(4):
            matrix.wgmma_from_shared(code, flags, registers[warp], warp, a, b, memory)
    return group_matrix(registers, d_type, start.shape[1])


def depth_of(name):
    return 32 // BYTES[name]


LAYOUTS = [
    pytest.param(span, k_major, id=f"{span}-{'K' if k_major else 'MN'}")
    for span in (0, 32, 64, 128)
    for k_major in (True, False)
]


@pytest.mark.parametrize("a_span,a_k_major", LAYOUTS)
@pytest.mark.parametrize("b_span,b_k_major", LAYOUTS)
def test_wgmma_reads_every_pair_of_layouts(a_span, a_k_major, b_span, b_k_major):
    random = np.random.default_rng(a_span + b_span)
    left, right = draw(random, "bf16", 64, 16), draw(random, "bf16", 16, 64)
    start = draw(random, "f32", 64, 64)
    flags = matrix.SCALE_D
    flags |= 0 if a_k_major else matrix.TRANSPOSE_A
    flags |= 0 if b_k_major else matrix.TRANSPOSE_B
    found = multiply_group(
        ("f32", "bf16", "bf16"),
        (SharedMatrix(left, "bf16", a_span, a_k_major, gap=1024), 0),
        (SharedMatrix(right.T, "bf16", b_span, b_k_major), 0),
        start,
        flags,
    )
    np.testing.assert_array_equal(found, left @ right + start)


@pytest.mark.parametrize("span,k_major", LAYOUTS)
@pytest.mark.parametrize("step", range(4))
def test_wgmma_steps_along_k_inside_a_swizzle_atom(span, k_major, step):
    random = np.random.default_rng(step)
    left, right = draw(random, "f16", 64, 64), draw(random, "f16", 64, 32)
    flags = 0 if k_major else matrix.TRANSPOSE_A | matrix.TRANSPOSE_B
    found = multiply_group(
        ("f32", "f16", "f16"),
        (SharedMatrix(left, "f16", span, k_major), 32 * step),
        (SharedMatrix(right.T, "f16", span, k_major), 32 * step),
        np.full((64, 32), np.nan),
        flags,
    )
    part = slice(16 * step, 16 * step + 16)
    np.testing.assert_array_equal(found, left[:, part] @ right[part])


@pytest.mark.parametrize("n", (8, 16, 24, 40, 64, 104, 128, 256))
@pytest.mark.parametrize("k_major", (True, False), ids=("K", "MN"))
@pytest.mark.parametrize("d_type", ("f32", "f16"))
def test_wgmma_of_every_width(n, k_major, d_type):
    random = np.random.default_rng(n)
    left, right = draw(random, "f16", 64, 16), draw(random, "f16", 16, n)
    start = draw(random, d_type, 64, n)
    flags = matrix.SCALE_D | (0 if k_major else matrix.TRANSPOSE_B)
    found = multiply_group(
        (d_type, "f16", "f16"),
        (SharedMatrix(left, "f16", 128, True), 0),
        (SharedMatrix(right.T, "f16", 128, k_major), 0),
        start,
        flags,
    )
    np.testing.assert_array_equal(found, left @ right + start)


@pytest.mark.parametrize(
    "kind",
    (
        ("f32", "f16", "f16"),
        ("f16", "f16", "f16"),
        ("f32", "bf16", "bf16"),
        ("f32", "tf32", "tf32"),
        ("f32", "e4m3", "e5m2"),
        ("f16", "e5m2", "e4m3"),
        ("s32", "s8", "u8"),
        ("s32", "u8", "s8"),
    ),
    ids="-".join,
)
@pytest.mark.parametrize("from_registers", (False, True))
def test_wgmma_of_every_type(kind, from_registers):
    random = np.random.default_rng(3)
    depth = depth_of(kind[1])
    left, right = draw(random, kind[1], 64, depth), draw(random, kind[2], depth, 24)
    start = draw(random, kind[0], 64, 24)
    operand = SharedMatrix(left, kind[1], 32, True), 0
    if from_registers:
        rows, columns = a_places(kind[1], depth)
        operand = np.stack(
            [pack(left[16 * w + rows, columns], kind[1]) for w in range(4)]
        )
    shared_b = SharedMatrix(right.T, kind[2], 64, True), 0
    found = multiply_group(kind, operand, shared_b, start, matrix.SCALE_D)
    np.testing.assert_array_equal(found, left @ right + start)


def test_wgmma_scales():
    random = np.random.default_rng(4)
    left, right = draw(random, "f16", 64, 16), draw(random, "f16", 16, 8)
    start = draw(random, "f32", 64, 8)
    a = SharedMatrix(left, "f16", 128, True), 0
    b = SharedMatrix(right.T, "f16", 128, True), 0
    kind = ("f32", "f16", "f16")
    for flags, sign in (
        (matrix.NEGATE_A, -1),
        (matrix.NEGATE_B, -1),
        (matrix.NEGATE_A | matrix.NEGATE_B, 1),
    ):
        found = multiply_group(kind, a, b, start, flags | matrix.SCALE_D)
        np.testing.assert_array_equal(found, sign * (left @ right) + start)


def test_a_pattern_that_starts_elsewhere_is_found_by_its_base_offset():
    random = np.random.default_rng(5)
    left, right = draw(random, "f16", 64, 16), draw(random, "f16", 16, 16)
    a = SharedMatrix(left, "f16", 128, True, start=1024 + 3 * 128)
    b = SharedMatrix(right.T, "f16", 64, True, start=2048 + 128)
    found = multiply_group(("f32", "f16", "f16"), (a, 0), (b, 0), np.zeros((64, 16)), 0)
    np.testing.assert_array_equal(found, left @ right)
    assert matrix.why_descriptor_invalid(a.describe()) == matrix.VALID
    without = a.describe(base_offset=0)
    assert matrix.why_descriptor_invalid(without) == matrix.MISALIGNED_START


def test_invalid_descriptors():
    good = SharedMatrix(np.zeros((64, 64)), "f16", 128, True).describe
    for k_byte in (0, 32, 64, 96):
        assert matrix.why_descriptor_invalid(good(k_byte)) == matrix.VALID
    for bit in (14, 15, 30, 31, 46, 47, 48, 52, 61):
        assert (
            matrix.why_descriptor_invalid(good() | np.uint64(1 << bit))
            == matrix.RESERVED_BITS
        )
    assert (
        matrix.why_descriptor_invalid(good() + np.uint64(8)) == matrix.MISALIGNED_START
    )
    assert matrix.why_descriptor_invalid(np.uint64(0)) == matrix.VALID


@pytest.mark.parametrize("span,k_major", LAYOUTS)
def test_operand_addresses_are_the_pieces_that_hold_the_operand(span, k_major):
    operand = SharedMatrix(np.zeros((64, 16)), "f16", span, k_major, gap=1024)
    addresses = matrix.operand_addresses(operand.describe(), 64, 32, not k_major)
    lines, line_bytes = (64, 32) if k_major else (16, 128)
    expected = [
        operand.place(line, byte)
        for line in range(lines)
        for byte in range(0, line_bytes, 16)
    ]
    assert addresses.dtype == np.int32
    assert addresses.tolist() == expected
    assert len(set(expected)) == 128


@pytest.mark.parametrize("count", (1, 2, 4))
@pytest.mark.parametrize("transposed", (False, True))
def test_ldmatrix_and_stmatrix(count, transposed):
    random = np.random.default_rng(count)
    shared = random.integers(0, 256, 2048, dtype=np.uint8)
    addresses = np.full(32, 1 << 30, np.int64)
    addresses[: 8 * count] = random.permutation(2048 // 16)[: 8 * count] * 16
    tiles = np.array(
        [shared[start : start + 16].view(np.uint16) for start in addresses[: 8 * count]]
    ).reshape(count, 8, 8)
    seen = tiles.transpose(0, 2, 1) if transposed else tiles
    lane = np.arange(32)
    low, high = (seen[:, lane // 4, lane % 4 * 2 + i].astype(int) for i in (0, 1))
    registers = np.zeros((count, 32), np.uint32)
    matrix.ldmatrix(shared, addresses, transposed, registers)
    np.testing.assert_array_equal(registers, low | high << 16)

    stored = np.zeros_like(shared)
    matrix.stmatrix(stored, addresses, transposed, registers)
    for i, start in enumerate(addresses[: 8 * count]):
        row = stored[start : start + 16].view(np.uint16)
        np.testing.assert_array_equal(row, tiles[i // 8, i % 8])
    assert np.count_nonzero(stored) <= 128 * count


def test_movmatrix():
    tile = np.random.default_rng(6).integers(0, 1 << 16, (8, 8))
    lane = np.arange(32)

    def fragment(values):
        low = values[lane // 4, lane % 4 * 2]
        return (low | values[lane // 4, lane % 4 * 2 + 1] << 16).astype(np.uint32)

    d = np.zeros(32, np.uint32)
    matrix.movmatrix(d, fragment(tile))
    np.testing.assert_array_equal(d, fragment(tile.T))
