"""wmma: matrices of a warp whose layout in registers PTX leaves open."""

import numpy as np
import pytest

from batchline.bench.measure.emulator.ptx import UnknownOpcode
from batchline.tests.emulated import Case, buffer, require_clean, require_found, run

SHAPES = {
    "m16n16k16": (16, 16, 16),
    "m32n8k16": (32, 8, 16),
    "m8n32k16": (8, 32, 16),
    "m16n16k8": (16, 16, 8),
}
# Registers of A and of B by type and shape, of C by its type.
INPUTS = {
    ("f16", "m16n16k16"): (8, 8),
    ("f16", "m32n8k16"): (8, 8),
    ("f16", "m8n32k16"): (8, 8),
    ("bf16", "m16n16k16"): (4, 4),
    ("bf16", "m32n8k16"): (8, 2),
    ("bf16", "m8n32k16"): (2, 8),
    ("tf32", "m16n16k8"): (4, 4),
}
SUMS = {"f32": 8, "f16": 4}


def vector(first, count):
    return "{" + ", ".join(f"%r{first + place}" for place in range(count)) + "}"


def product(kind, shape, c_kind, d_kind, layouts, space="", strides=("", "", "", "")):
    """A kernel that adds the product of the matrices in %d0 and %d1 to that in %d2."""
    a, b, c, d = layouts
    a_count, b_count = INPUTS[kind, shape]
    vectors = vector(0, a_count), vector(16, b_count), vector(32, SUMS[c_kind])
    result = vector(48, SUMS[d_kind])
    inputs = "" if kind == "f16" else f".{kind}.{kind}"
    by = [f", {one}" if one else "" for one in strides]
    return f"""
    wmma.load.a.sync.aligned.{a}.{shape}{space}.{kind} {vectors[0]}, [%d0]{by[0]};
    wmma.load.b.sync.aligned.{b}.{shape}{space}.{kind} {vectors[1]}, [%d1]{by[1]};
    wmma.load.c.sync.aligned.{c}.{shape}{space}.{c_kind} {vectors[2]}, [%d2]{by[2]};
    wmma.mma.sync.aligned.{a}.{b}.{shape}.{d_kind}{inputs}.{c_kind}
        {result}, {vectors[0]}, {vectors[1]}, {vectors[2]};
    wmma.store.d.sync.aligned.{d}.{shape}{space}.{d_kind} [%d3], {result}{by[3]};
    """


GLOBAL = "\n".join(f"mov.u64 %d{place}, %a{place};" for place in range(4))


def stored(values, kind, layout, stride=0):
    """The bits of a matrix as they lie in memory, of lines `stride` elements apart."""
    lines = values if layout == "row" else values.T
    padded = np.zeros((len(lines), stride or lines.shape[1]), np.float32)
    padded[:, : lines.shape[1]] = lines
    if kind == "f16":
        return padded.astype(np.float16).reshape(-1).view(np.uint16)
    bits = padded.reshape(-1).view(np.uint32)
    return (bits >> 16).astype(np.uint16) if kind == "bf16" else bits


def drawn(shape, seed):
    """Small whole numbers, which each type holds exactly, and so their products."""
    numbers = np.random.default_rng(seed).integers(-4, 5, shape)
    return numbers.astype(np.float32)


def copied(bits):
    array = buffer(bits.size, bits.dtype)
    array[:] = bits
    return array


@pytest.mark.parametrize(
    "layouts",
    [
        ("row",) * 4,
        ("col",) * 4,
        ("row", "col", "row", "col"),
        ("col", "row", "col", "row"),
    ],
    ids="-".join,
)
@pytest.mark.parametrize(
    "sums", [("f32", "f32"), ("f16", "f16"), ("f16", "f32"), ("f32", "f16")]
)
@pytest.mark.parametrize("kind, shape", INPUTS)
def test_a_product(kind, shape, sums, layouts):
    if kind != "f16" and sums != ("f32", "f32"):
        pytest.skip("accumulated in f32 only")
    m, n, k = SHAPES[shape]
    a, b, c = drawn((m, k), 1), drawn((k, n), 2), drawn((m, n), 3)
    kinds = (kind, kind, sums[0])
    arrays = [
        copied(stored(values, one, layout))
        for values, one, layout in zip((a, b, c), kinds, layouts)
    ]
    wanted = stored(a @ b + c, sums[1], layouts[3])
    result = buffer(wanted.size, wanted.dtype)
    done = run(GLOBAL + product(kind, shape, *sums, layouts), *arrays, result)
    assert not done.findings, [str(one) for one in done.findings]
    np.testing.assert_array_equal(result, wanted)


def test_lines_that_are_apart():
    a, b, c = (drawn((16, 16), seed) for seed in (1, 2, 3))
    stride = {"f16": 24, "f32": 20}
    kinds, layouts = ("f16", "f16", "f32"), ("row", "col", "row", "row")
    arrays = [
        copied(stored(values, one, layout, stride[one]))
        for values, one, layout in zip((a, b, c), kinds, layouts)
    ]
    body = product(
        "f16", "m16n16k16", "f32", "f32", layouts, ".global", (24, 24, 20, 20)
    )
    result = buffer(320, np.float32)
    done = run(GLOBAL + body, *arrays, result)
    assert not done.findings
    np.testing.assert_array_equal(result.reshape(16, 20)[:, :16], a @ b + c)
    assert not result.reshape(16, 20)[:, 16:].any()


def test_each_element_of_a_sum_is_in_one_lane():
    body = f"""
    wmma.load.c.sync.aligned.row.m16n16k16.f32 {vector(0, 8)}, [%a0];
    {" ".join(f"mul.f32 %r{one}, %r{one}, 0f40000000;" for one in range(8))}
    wmma.store.d.sync.aligned.row.m16n16k16.f32 [%a1], {vector(0, 8)};
    """
    given, result = buffer(256, np.float32), buffer(256, np.float32)
    given[:] = range(256)
    assert not run(body, given, result).findings
    np.testing.assert_array_equal(result, 2 * given)


def test_what_it_counts():
    given, result = buffer(256, np.float32), buffer(256, np.float32)
    body = f"""
    wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {vector(0, 8)}, [%a0];
    wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%s], {vector(0, 8)};
    """
    counts = run(body, given, result).counts
    assert (counts.sectors, counts.sectors_needed, counts.read_bytes) == (32, 32, 1024)
    assert (counts.passes, counts.requests) == (8, 8)


LOAD = f"wmma.load.c.sync.aligned.row.m16n16k16.shared.f32 {vector(0, 8)}, [%s];"
STORE = f"wmma.store.d.sync.aligned.row.m16n16k16.shared.f32 [%s], {vector(0, 8)};"
FILL = "\n".join(f"st.shared.u32 [%m+{128 * place}], 0;" for place in range(8))
CASES = [
    Case(
        "a load that the lanes have not waited for",
        "shared-race",
        f"{FILL} <||bar.warp.sync -1;> {LOAD}",
        block=32,
    ),
    Case(
        "a store that another warp reads",
        "shared-race",
        f"""
        setp.lt.u32 %p0, %t, 32;
        @!%p0 bra Other;
        {STORE}
        Other:
        <||bar.sync 0;>
        ld.shared.u32 %r9, [%m];
        """,
    ),
    Case(
        "uninitialised",
        "uninitialised-shared",
        f"<||{STORE}> bar.sync 0; {LOAD}",
        block=32,
    ),
    Case(
        "a last line outside",
        "out-of-bounds",
        f"wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {vector(0, 8)}, [%a0], <20||16>;",
        block=32,
    ),
    Case(
        "misaligned",
        "misaligned",
        f"wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {vector(0, 8)}, [%a0+<16||0>];",
        block=32,
    ),
    Case(
        "lines that are misaligned",
        "misaligned",
        f"wmma.load.c.sync.aligned.row.m16n16k16.global.f32 {vector(0, 8)}, [%a0], <17||16>;",
        block=32,
        size=512,
    ),
    Case(
        "by some of its lanes",
        "divergent-barrier",
        f"setp.lt.u32 %p0, %t, <31||32>; @%p0 {LOAD.replace('shared', 'global').replace('%s', '%a0')}",
        block=32,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_a_fault_is_found(case):
    require_found(case)


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_nothing_is_found_in_its_mended_twin(case):
    require_clean(case)


@pytest.mark.parametrize(
    "opcode",
    [
        "wmma.load.a.sync.aligned.row.m16n16k16.s8",
        "wmma.load.a.sync.aligned.row.m8n8k4.f64",
        "wmma.load.a.sync.aligned.row.m16n16k16.tf32",
    ],
)
def test_other_types_are_refused(opcode):
    with pytest.raises(UnknownOpcode, match=opcode):
        run(f"{opcode} {vector(0, 2)}, [%s];")


def test_another_number_of_registers_is_refused():
    with pytest.raises(UnknownOpcode, match="with 3 registers"):
        run(f"wmma.load.c.sync.aligned.row.m16n16k16.f32 {vector(0, 3)}, [%s];")
