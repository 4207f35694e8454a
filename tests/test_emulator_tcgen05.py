"""sm_100's tensor cores and tensor memory in emulation: products against NumPy, in
layouts written out once more; and for each check a kernel that is wrong and its mended
twin.
"""

import dataclasses

import numpy as np
import pytest

from batchline.bench.measure.emulator import tensor_products
from batchline.bench.measure.emulator.ptx import UnknownOpcode
from batchline.tests.emulated import SCHEDULES, buffer, faults, run, twins, wait
from batchline.tests.test_emulator_matrix import BYTES, LAYOUTS, SharedMatrix, draw

KIND_OF = {"f16": "f16", "bf16": "f16", "tf32": "tf32", "e4m3": "f8f6f4"}
KIND_OF |= {"e5m2": "f8f6f4"}
CODES = {"f16": 0, "bf16": 1, "tf32": 2, "e4m3": 0, "e5m2": 1}
MODES = {0: 0, 128: 2, 64: 4, 32: 6}
COLUMNS, LANES = 512, 128


def kind_of(name):
    return tensor_products.KINDS.index(KIND_OF[name])


def instruction_of(a, b, m, n, a_k_major=True, b_k_major=True, negate=0):
    """An instruction descriptor with sums in f32."""
    transposed = (not a_k_major) << 15 | (not b_k_major) << 16
    types = 1 << 4 | CODES[a] << 7 | CODES[b] << 10
    return types | negate << 13 | transposed | n // 8 << 17 | m // 16 << 24


def signed(bits):
    """64 bits as the machine holds them."""
    return bits - (bits >> 63 << 64)


def described(operand, k_byte=0):
    """The tcgen05 descriptor of a SharedMatrix."""
    fields = int(operand.describe(k_byte)) & ((1 << 62) - 1)
    return signed(fields | 1 << 46 | MODES[operand.span] << 61)


def product(left, right, a, b, layouts, start, adds=True, k_byte=0, negate=0):
    """float32[m, n] that is in tensor memory after a product, from column 32 on."""
    (a_span, a_k_major), (b_span, b_k_major) = layouts
    first = SharedMatrix(left, a, a_span, a_k_major)
    second = SharedMatrix(right.T, b, b_span, b_k_major)
    offset = -(-len(first.bytes) // 1024) * 1024
    memory = np.full(offset + len(second.bytes), 0xEE, np.uint8)
    memory[: len(first.bytes)] = first.bytes
    memory[offset:] = second.bytes
    m, n = start.shape
    values = np.full(COLUMNS * LANES, 0xFFFFFFFF, np.uint32)
    lanes = np.arange(m) if m == 128 else np.arange(m) // 16 * 32 + np.arange(m) % 16
    places = (32 + np.arange(n)) * LANES + lanes[:, None]
    values[places] = start.astype(np.float32).view(np.uint32)
    tensor_products.multiply(
        kind_of(a),
        instruction_of(a, b, m, n, a_k_major, b_k_major, negate),
        adds,
        described(first, k_byte),
        described(second, k_byte) + (offset >> 4),
        memory,
        values,
        32,
    )
    others = np.ones(values.shape, bool)
    others[places] = False
    assert (values[others] == 0xFFFFFFFF).all()
    return values[places].view(np.float32)


@pytest.mark.parametrize("a_layout", [one.values for one in LAYOUTS])
@pytest.mark.parametrize("b_layout", [one.values for one in LAYOUTS])
@pytest.mark.parametrize("name", ("bf16", "e4m3"))
def test_every_pair_of_layouts_is_read(name, a_layout, b_layout):
    random = np.random.default_rng(a_layout[0] + b_layout[0])
    depth = 32 // BYTES[name]
    left, right = draw(random, name, 128, depth), draw(random, name, depth, 128)
    start = draw(random, "f32", 128, 128)
    found = product(left, right, name, name, (a_layout, b_layout), start)
    np.testing.assert_array_equal(found, left @ right + start)


@pytest.mark.parametrize(
    "m, n", [(128, 16), (128, 48), (128, 256), (64, 8), (64, 24), (64, 256)]
)
@pytest.mark.parametrize(
    "a, b", [("f16", "f16"), ("bf16", "bf16"), ("tf32", "tf32"), ("e5m2", "e4m3")]
)
def test_every_size_and_type(m, n, a, b):
    random = np.random.default_rng(n)
    depth = 32 // BYTES[a]
    left, right = draw(random, a, m, depth), draw(random, b, depth, n)
    start = np.full((m, n), np.nan)
    layouts = ((128, True), (128, True))
    found = product(left, right, a, b, layouts, start, adds=False)
    np.testing.assert_array_equal(found, left @ right)


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("name", ("f16", "e4m3"))
@pytest.mark.parametrize("k_major", (True, False))
def test_a_step_along_k_inside_a_swizzle_atom(name, k_major, step):
    random = np.random.default_rng(step)
    depth = 32 // BYTES[name]
    left, right = draw(random, name, 128, 4 * depth), draw(random, name, 4 * depth, 128)
    part = slice(step * depth, (step + 1) * depth)
    layouts = ((128, k_major), (128, k_major))
    start = np.zeros((128, 128))
    found = product(left, right, name, name, layouts, start, k_byte=32 * step)
    np.testing.assert_array_equal(found, left[:, part] @ right[part])


@pytest.mark.parametrize("negate, sign", [(0, 1), (1, -1), (2, -1), (3, 1)])
def test_operands_are_negated(negate, sign):
    random = np.random.default_rng(0)
    left, right = draw(random, "f16", 128, 16), draw(random, "f16", 16, 16)
    layouts, start = ((32, True), (32, True)), np.ones((128, 16))
    found = product(left, right, "f16", "f16", layouts, start, negate=negate)
    np.testing.assert_array_equal(found, sign * left @ right + 1)


def test_descriptors_of_the_instruction():
    def why(instruction, kind="f16"):
        number = tensor_products.KINDS.index(kind)
        return tensor_products.why_instruction_invalid(number, instruction)

    good = instruction_of("bf16", "bf16", 128, 256)
    assert why(good) == why(instruction_of("f16", "f16", 64, 8)) == 0
    assert why(instruction_of("e4m3", "e5m2", 128, 16), "f8f6f4") == 0
    assert why(instruction_of("tf32", "tf32", 128, 16), "tf32") == 0
    invalid = tensor_products.INVALID
    for m, n in ((128, 8), (64, 4), (96, 64), (256, 64), (128, 264), (128, 0)):
        assert why(instruction_of("f16", "f16", m, n)) == invalid, (m, n)
    for bit in (3, 6, 23, 29):  # of integers, and reserved
        assert why(good | 1 << bit) == invalid, bit
    assert why(instruction_of("tf32", "tf32", 128, 16), "f16") == invalid
    assert why(good | 1 << 5) == invalid  # sums of s32
    not_known = tensor_products.NOT_KNOWN
    assert why(good & ~(1 << 4)) == not_known  # sums of f16
    assert why(good | 1 << 2) == not_known  # sparse
    assert why(good & ~(7 << 7) | 3 << 7, "f8f6f4") == not_known  # e2m3


def test_descriptors_of_a_matrix():
    why = tensor_products.why_matrix_invalid
    for span in MODES:
        good = described(SharedMatrix(np.zeros((64, 16)), "f16", span, True))
        assert why(good) == 0
        for change in (1 << 46, 1 << 47, 1 << 48, 1 << 14, 1 << 53):
            assert why(good ^ change) == tensor_products.INVALID, (span, change)
        assert why(good | 1 << 52) == tensor_products.NOT_KNOWN
    assert why(1 << 46 | 1 << 61) == tensor_products.NOT_KNOWN  # pieces of 32 bytes
    for mode in (3, 5, 7):
        assert why(signed(1 << 46 | mode << 61)) == tensor_products.INVALID
    swizzled = described(SharedMatrix(np.zeros((64, 16)), "f16", 128, True))
    assert why(swizzled + 8) == tensor_products.INVALID  # it starts in another row


# --- kernels ------------------------------------------------------------------------

# In shared memory: A from 0 to 4096 (128 rows of 16, not swizzled: 8 rows are 128 bytes
# and the other half of K is 2048 bytes on), B of 16 columns behind it up to 4608, an
# mbarrier at 8192 and the address of the columns at 8200.
ONES = """
    mov.u32 %r1, 0x3c003c00;
    shl.b32 %r0, %t, 4;
    add.u32 %r0, %r0, %s;
    st.shared.v4.u32 [%r0], {%r1, %r1, %r1, %r1};
    st.shared.v4.u32 [%r0+2048], {%r1, %r1, %r1, %r1};
    setp.lt.u32 %p0, %t, 32;
    @%p0 st.shared.v4.u32 [%r0+4096], {%r1, %r1, %r1, %r1};
"""
BARRIER = """
    setp.eq.u32 %p1, %t, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%s+8192], 1;
"""
ALLOC = (
    "@%p0 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%s+8200], {count};"
)
TAKEN = """
    bar.sync 0;
    ld.shared.u32 %r3, [%s+8200];
    bar.sync 0;
    shl.b32 %r4, %w, 21;
    add.u32 %r4, %r4, %r3;
"""
DESCRIBED = """
    shr.u32 %r2, %s, 4;
    cvt.u64.u32 %d0, %r2;
    or.b64 %d1, %d0, 0x0000400800100000;
    or.b64 %d0, %d0, 0x0000400800800000;
    add.s64 %d1, %d1, 256;
    mov.u32 %r5, 0x08040010;
    setp.ne.u32 %p2, %t, %t;
    setp.eq.u32 %p3, %t, %t;
"""
FREED = """
    bar.sync 0;
    @%p0 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r3, 32;
"""
RELINQUISHED = "@%p0 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;"
START = f"{ONES} {BARRIER} {ALLOC.format(count=32)} {RELINQUISHED}"
READY = f"{START} fence.proxy.async; {TAKEN} {DESCRIBED}"
MMA = "@%p1 tcgen05.mma.cta_group::1.kind::f16 [%r3], %d0, %d1, %r5, "
COMMIT = (
    "@%p1 tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 "
    "[%s+8192];"
)
SUMS = ", ".join(f"%r{number}" for number in range(32, 48))
LOAD = f"tcgen05.ld.sync.aligned.32x32b.x16.b32 {{{SUMS}}}, [%r4];"
STORE = f"tcgen05.st.sync.aligned.32x32b.x16.b32 [%r4], {{{SUMS}}};"
LOADED, STORED = "tcgen05.wait::ld.sync.aligned;", "tcgen05.wait::st.sync.aligned;"
COMMITTED = wait(0, at="%s+8192")
OUT = "cvt.rni.u32.f32 %r9, %f0; st.global.u32 [%g1], %r9;"
RESULT = f"mov.b32 %f0, %r47; {OUT}"
MULTIPLIED = f"{MMA} %p2; {MMA} %p3; {COMMIT}"
GIVEN = "".join(f"mov.u32 %r{number}, {number};" for number in range(32, 48))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_two_products_of_ones(schedule):
    result = buffer(128)
    done = run(
        f"{READY} {MULTIPLIED} {COMMITTED} {LOAD} {LOADED} {RESULT} {FREED}",
        buffer(128),
        result,
        block=128,
        architecture=100,
        schedule=schedule,
    )
    assert done.findings == ()
    assert result.tolist() == [32] * 128
    assert done.counts.matrix_flops == {"f16": 2 * 2 * 128 * 16 * 16}
    assert done.counts.operand_bytes == 2 * (128 + 16) * 32


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_what_is_stored_is_loaded(schedule):
    result = buffer(128)
    done = run(
        f"{READY} {GIVEN} add.u32 %r47, %r47, %t; {STORE} {STORED} mov.u32 %r47, 0;"
        f"{LOAD} {LOADED} add.u32 %r9, %r47, %r32; st.global.u32 [%g1], %r9; {FREED}",
        buffer(128),
        result,
        block=128,
        architecture=100,
        schedule=schedule,
    )
    assert done.findings == ()
    assert result.tolist() == [47 + 32 + thread for thread in range(128)]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("upper", (0, 16))
def test_threads_16_to_31_have_columns_further_on_of_16_lanes(schedule, upper):
    """Stored by 32x32b, whose register is a column, and loaded by 16x32bx2: column 3 of
    the 16 lower or upper lanes, and column 3 + 8 of the same ones.
    """
    result = buffer(128)
    done = run(
        f"{READY} {''.join(f'mad.lo.u32 %r{32 + i}, %t, 100, {i};' for i in range(16))}"
        f"{STORE} {STORED} add.u32 %r4, %r4, {upper << 16};"
        "tcgen05.ld.sync.aligned.16x32bx2.x4.b32 {%r32, %r33, %r34, %r35}, [%r4], 8;"
        f"{LOADED} st.global.u32 [%g1], %r35; {FREED}",
        buffer(128),
        result,
        block=128,
        architecture=100,
        schedule=schedule,
    )
    thread = np.arange(128)
    lane = thread // 32 * 32 + thread % 16 + upper
    assert done.findings == ()
    assert result.tolist() == (100 * lane + 3 + 8 * (thread % 32 >= 16)).tolist()


def test_a_product_of_64_rows_is_loaded_by_halves():
    result = buffer(128)
    registers = ", ".join(f"%r{number}" for number in range(32, 40))
    done = run(
        f"{READY} mov.u32 %r5, 0x04040010; {MULTIPLIED} {COMMITTED}"
        f"tcgen05.ld.sync.aligned.16x32bx2.x8.b32 {{{registers}}}, [%r4], 8; {LOADED}"
        f"mov.b32 %f0, %r39; {OUT} {FREED}",
        buffer(128),
        result,
        block=128,
        architecture=100,
    )
    assert done.findings == () and result.tolist() == [32] * 128


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    word: str
    body: str


CASES = [
    Case(
        "sums read before the wait for their commit",
        "missing-wait",
        f"{READY} {MULTIPLIED} <||{COMMITTED}> {LOAD} {LOADED} {RESULT}"
        f"<{COMMITTED}||> {FREED}",
    ),
    Case(
        "a product after the commit that is waited for",
        "missing-wait",
        f"{READY} {MMA} %p2; <{COMMIT} {MMA} %p3;||{MMA} %p3; {COMMIT}>"
        f"{COMMITTED} {LOAD} {LOADED} {RESULT} {FREED}",
    ),
    Case(
        "registers used before tcgen05.wait::ld",
        "missing-wait",
        f"{READY} {MULTIPLIED} {COMMITTED} {LOAD} <||{LOADED}> {RESULT}"
        f"<{LOADED}||> {FREED}",
    ),
    Case(
        "loaded before tcgen05.wait::st",
        "missing-wait",
        f"{READY} {GIVEN} {STORE} <||{STORED}> {LOAD} {LOADED} {FREED} <{STORED}||>",
    ),
    Case(
        "sums added to what nothing has written",
        "uninitialised-tensor",
        f"{READY} {MMA} <%p3||%p2>; {COMMIT} {COMMITTED} {FREED}",
    ),
    Case(
        "loaded and never written",
        "uninitialised-tensor",
        f"{READY} {GIVEN} <||{STORE} {STORED}> {LOAD} {LOADED} {FREED}",
    ),
    Case(
        "lanes that a product of 64 rows does not write",
        "uninitialised-tensor",
        f"{READY} mov.u32 %r5, <0x04040010||0x08040010>; {MULTIPLIED} {COMMITTED}"
        f"{LOAD} {LOADED} {FREED}",
    ),
    Case(
        "a column behind the allocation",
        "out-of-bounds",
        f"{READY} {MULTIPLIED} {COMMITTED} add.u32 %r4, %r4, <17||0>;"
        f"{LOAD} {LOADED} {FREED}",
    ),
    Case(
        "lanes of another warp",
        "out-of-bounds",
        f"{READY} {MULTIPLIED} {COMMITTED} <xor.b32 %r4, %r4, 0x200000;||>"
        f"{LOAD} {LOADED} {FREED}",
    ),
    Case(
        "a product behind the allocation",
        "out-of-bounds",
        f"{READY} add.u32 %r3, %r3, <17||0>; {MULTIPLIED} {COMMITTED}"
        f"sub.u32 %r3, %r3, <17||0>; {FREED}",
    ),
    Case(
        "A's bytes behind shared memory",
        "out-of-bounds",
        f"{READY} add.s64 %d0, %d0, <900||0>; {MULTIPLIED} {COMMITTED} {FREED}",
    ),
    Case(
        "operands overwritten before the commit's wait",
        "missing-wait",
        f"{READY} {MULTIPLIED} <||{COMMITTED}> st.shared.u32 [%m], %t;"
        f"<{COMMITTED}||> {FREED}",
    ),
    Case(
        "no proxy fence behind the stores",
        "missing-proxy-fence",
        f"{START} <||fence.proxy.async;> {TAKEN} {DESCRIBED} {MULTIPLIED}"
        f"{COMMITTED} {FREED}",
    ),
    Case(
        "sums overwritten while a warp reads them",
        "tensor-race",
        f"{READY} {MULTIPLIED} {COMMITTED} {LOAD} {LOADED} {RESULT} <||bar.sync 0;>"
        f"{MMA} %p2; {COMMIT} {wait(1, at='%s+8192')} {FREED}",
    ),
    Case(
        "no tcgen05.wait::ld before the barrier",
        "tensor-race",
        f"{READY} {MULTIPLIED} {COMMITTED} {LOAD} <||{LOADED}> bar.sync 0;"
        f"{MMA} %p2; {COMMIT} {wait(1, at='%s+8192')} <{LOADED}||> {FREED}",
    ),
    Case(
        "not freed",
        "tensor-allocation",
        f"{READY} {MULTIPLIED} {COMMITTED} <||{FREED}>",
    ),
    Case(
        "freed by another count",
        "tensor-allocation",
        f"{READY} bar.sync 0; <@%p0 tcgen05.dealloc.cta_group::1.sync.aligned.b32 "
        "%r3, 64;||> @%p0 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r3, 32;",
    ),
    Case(
        "freed while a product writes it",
        "missing-wait",
        f"{READY} {MULTIPLIED} <||{COMMITTED}> {FREED} <{COMMITTED}||>",
    ),
    Case(
        "48 columns",
        "tensor-allocation",
        f"{ONES} {ALLOC.format(count='<48||32>')} {TAKEN} <||{FREED}>",
    ),
    Case(
        "allocated after the permit is given back",
        "tensor-allocation",
        f"{START} {TAKEN} <{ALLOC.format(count=32)}||> {FREED}",
    ),
    Case(
        "M of 96",
        "bad-descriptor",
        f"{READY} mov.u32 %r5, <0x06040010||0x08040010>; {MULTIPLIED} {COMMITTED}"
        f"{FREED}",
    ),
    Case(
        "a matrix descriptor of wgmma",
        "bad-descriptor",
        f"{READY} <xor.b64 %d1, %d1, 0x400000000000;||> {MULTIPLIED} {COMMITTED}"
        f"{FREED}",
    ),
    Case(
        "a load by half a warp",
        "divergent-barrier",
        f"{READY} {MULTIPLIED} {COMMITTED} setp.lt.u32 %p4, %l, <16||32>;"
        f"@%p4 {LOAD} {LOADED} {FREED}",
    ),
    Case(
        "a commit to no mbarrier",
        "mbarrier-misuse",
        f"{READY} {MULTIPLIED} <{COMMIT.replace('8192', '8208')}||> {COMMITTED}"
        f"{FREED}",
    ),
    Case(
        "never committed",
        "deadlock",
        f"{READY} {MMA} %p2; <||{COMMIT}> {COMMITTED} {FREED}",
    ),
]


def executed(body, schedule):
    return run(
        body, buffer(128), buffer(128), block=128, architecture=100, schedule=schedule
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_wrong_is_found(case):
    wrong, _ = twins(case.body)
    found = [faults(executed(wrong, schedule)) for schedule in SCHEDULES.values()]
    assert all(found), found
    assert any(case.word in one for one in found), found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_its_mended_twin_is_clean(case):
    _, right = twins(case.body)
    for schedule in SCHEDULES.values():
        findings = executed(right, schedule).findings
        assert not findings, [str(one) for one in findings]


def test_columns_are_another_blocks_in_the_next_block():
    """Nothing is kept: what the first block leaves there the second has not written."""
    body = f"mov.u32 %r7, %ctaid.x; setp.ne.u32 %p5, %r7, 0; {READY} {GIVEN}"
    body += f"@!%p5 bra W; bra R; W: {STORE} {STORED} R: {LOAD} {LOADED} {FREED}"
    done = run(body, buffer(256), block=128, grid=2, architecture=100)
    assert faults(done) == {"uninitialised-tensor"}
    assert {found.block for found in done.findings} == {1}


@pytest.mark.parametrize(
    "instruction",
    [
        "tcgen05.cp.cta_group::1.128x256b [%r3], %d0;",
        "tcgen05.shift.cta_group::1.down [%r3];",
        "tcgen05.ld.sync.aligned.16x64b.x1.b32 {%r32}, [%r3];",
        "tcgen05.ld.sync.aligned.32x32b.x2.pack::16b.b32 {%r32, %r33}, [%r3];",
        "tcgen05.mma.cta_group::1.kind::i8 [%r3], %d0, %d1, %r5, %p2;",
        "tcgen05.mma.cta_group::1.kind::f16 [%r3], [%r4], %d1, %r5, %p2;",
        "tcgen05.mma.ws.cta_group::1.kind::f16 [%r3], %d0, %d1, %r5, %p2;",
    ],
)
def test_what_is_not_known_is_refused_by_its_name(instruction):
    with pytest.raises(UnknownOpcode, match=instruction.split(" ")[0]):
        run(instruction, buffer(8), architecture=100)
