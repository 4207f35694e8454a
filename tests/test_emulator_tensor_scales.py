"""Block-scaled products of sm_100 in emulation: scales by the PTX ISA's tables and in
NumPy, their way to tensor memory, and for each check a kernel that is wrong and its
mended twin.
"""

import dataclasses
import math

import numpy as np
import pytest

from batchline.bench.measure.emulator import tensor_products, tensor_scales
from batchline.bench.measure.emulator.number_formats import decode_e8m0
from batchline.bench.measure.emulator.ptx import UnknownOpcode
from batchline.tests.emulated import SCHEDULES, buffer, faults, run, twins, wait
from batchline.tests.test_emulator_matrix import SharedMatrix, draw
from batchline.tests.test_emulator_tcgen05 import (
    CODES,
    COMMIT,
    COMMITTED,
    COLUMNS,
    LANES,
    TAKEN,
    described,
)

A_SCALES, B_SCALES = 300, 310  # columns
D = 32


def instruction_of(a, b, n, a_byte=0, b_byte=0, transposed=0):
    """The descriptor of a scaled product of 128 rows, its fields by the table of the
    PTX ISA.
    """
    fields = {4: b_byte, 7: CODES[a], 10: CODES[b], 15: transposed, 17: n // 8}
    fields |= {23: 1, 27: 1, 29: a_byte}
    return sum(value << low for low, value in fields.items())


def with_scales(values, column, codes, byte):
    """Write a scale for each line to tensor memory, the same in all four parts."""
    for line, code in enumerate(codes):
        for part in range(4):
            place = (column + line // 32) * LANES + 32 * part + line % 32
            others = int(values[place]) & ~(0xFF << 8 * byte)
            values[place] = others | int(code) << 8 * byte


def product(left, right, a_codes, b_codes, name="e4m3", bytes_=(0, 0), adds=None):
    """float32[128, n] that is in tensor memory after a scaled product."""
    first = SharedMatrix(left, name, 128, True)
    second = SharedMatrix(right.T, name, 128, True)
    offset = -(-len(first.bytes) // 1024) * 1024
    memory = np.full(offset + len(second.bytes), 0xEE, np.uint8)
    memory[: len(first.bytes)] = first.bytes
    memory[offset:] = second.bytes
    values = np.full(COLUMNS * LANES, 0xFFFFFFFF, np.uint32)
    with_scales(values, A_SCALES, a_codes, bytes_[0])
    with_scales(values, B_SCALES, b_codes, bytes_[1])
    n = right.shape[1]
    places = (D + np.arange(n)) * LANES + np.arange(128)[:, None]
    if adds is not None:
        values[places] = adds.astype(np.float32).view(np.uint32)
    tensor_products.multiply_scaled(
        instruction_of(name, name, n, *bytes_),
        adds is not None,
        described(first),
        described(second) + (offset >> 4),
        A_SCALES,
        B_SCALES,
        memory,
        values,
        D,
    )
    return values[places].view(np.float32)


def of(codes):
    return np.array([math.ldexp(1.0, int(code) - 127) for code in codes])


def test_a_scale_is_a_power_of_two_and_255_is_nan():
    assert decode_e8m0(127) == 1 and decode_e8m0(0) == 2.0**-127
    assert decode_e8m0(254) == 2.0**127 and decode_e8m0(0x17F) == 1
    assert math.isnan(decode_e8m0(255))


@pytest.mark.parametrize("bytes_", [(0, 0), (1, 2), (3, 1), (2, 3)])
@pytest.mark.parametrize("n, name", [(16, "e4m3"), (40, "e5m2"), (256, "e4m3")])
def test_rows_and_columns_are_scaled(n, name, bytes_):
    """In each byte of 32 bits, whatever the other three hold."""
    random = np.random.default_rng(n)
    left, right = draw(random, name, 128, 32), draw(random, name, 32, n)
    a_codes, b_codes = random.integers(120, 135, 128), random.integers(120, 135, n)
    adds = draw(random, "f32", 128, n)
    found = product(left, right, a_codes, b_codes, name, bytes_, adds)
    exact = (left * of(a_codes)[:, None]) @ (right * of(b_codes)) + adds
    np.testing.assert_array_equal(found, exact.astype(np.float32))


def test_scales_at_both_ends_and_nan():
    left, right = np.ones((128, 32)), np.ones((32, 16))
    a_codes, b_codes = np.zeros(128, int), np.full(16, 254)
    a_codes[3], b_codes[5] = 255, 255
    found = product(left, right, a_codes, b_codes)
    assert np.isnan(found[3]).all() and np.isnan(found[:, 5]).all()
    others = np.delete(np.delete(found, 3, axis=0), 5, axis=1)
    assert (others == 32).all()


def test_descriptors_of_the_instruction():
    why = tensor_scales.why_instruction_invalid
    good = instruction_of("e4m3", "e4m3", 128)
    assert why(good) == why(instruction_of("e5m2", "e4m3", 8, 3, 2, 1)) == 0
    assert why(instruction_of("e4m3", "e5m2", 256)) == 0
    invalid, not_known = tensor_scales.INVALID, tensor_scales.NOT_KNOWN
    for bit in (0, 1, 3, 6, 24, 25, 26, 31):  # reserved
        assert why(good | 1 << bit) == invalid, bit
    assert why(good ^ 1 << 23) == invalid  # scales in another format
    assert why(good ^ 3 << 27) == invalid  # M of 256, of two blocks
    assert why(good ^ 1 << 27) == invalid  # and of 0
    assert why(instruction_of("e4m3", "e4m3", 264)) == invalid
    assert why(good | 1 << 2) == not_known  # sparse
    assert why(good | 3 << 7) == not_known  # e2m3
    assert why(good | 2 << 10) == invalid  # no type


# --- kernels ------------------------------------------------------------------------

# In shared memory, all of one warp's four: A of 128 rows of 32 ones from 0 to 4096 and B
# of 16 columns behind it, as in test_emulator_tcgen05; A's scales from 5120 on and B's
# from 5632, of which thread t writes word t: lines 32 (t % 4) + t / 4. An mbarrier is at
# 8192 and the address of 64 columns at 8200: D is in the first 16 of them, A's scales
# are in the 32nd and on, B's in the 36th and on. Scale b of A's row i is 2^(b - 2 + i /
# 32), of B's columns 2^(b + 1).
ONES = """
    mov.u32 %r1, 0x38383838;
    shl.b32 %r0, %t, 4;
    add.u32 %r0, %r0, %s;
    st.shared.v4.u32 [%r0], {%r1, %r1, %r1, %r1};
    st.shared.v4.u32 [%r0+2048], {%r1, %r1, %r1, %r1};
    setp.lt.u32 %p0, %t, 32;
    @%p0 st.shared.v4.u32 [%r0+4096], {%r1, %r1, %r1, %r1};
"""
SCALES = """
    and.b32 %r6, %t, 3;
    mad.lo.u32 %r6, %r6, 0x01010101, 0x807f7e7d;
    st.shared.u32 [%m+5120], %r6;
    mov.u32 %r7, 0x83828180;
    st.shared.u32 [%m+5632], %r7;
"""
START = """
    setp.eq.u32 %p1, %t, 0;
    @%p1 mbarrier.init.shared::cta.b64 [%s+8192], 1;
    @%p0 tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [%s+8200], 64;
    @%p0 tcgen05.relinquish_alloc_permit.cta_group::1.sync.aligned;
"""
DESCRIBED = """
    shr.u32 %r2, %s, 4;
    cvt.u64.u32 %d0, %r2;
    or.b64 %d1, %d0, 0x0000400800100000;
    or.b64 %d2, %d0, 0x0000400800000000;
    or.b64 %d0, %d0, 0x0000400800800000;
    add.s64 %d1, %d1, 256;
    add.s64 %d3, %d2, 352;
    add.s64 %d2, %d2, 320;
    mov.u32 %r5, 0x08840000;
    add.u32 %r10, %r3, 32;
    add.u32 %r11, %r3, 36;
    setp.ne.u32 %p2, %t, %t;
    setp.eq.u32 %p3, %t, %t;
"""
READY = f"{ONES} {SCALES} {START} fence.proxy.async; {TAKEN} {DESCRIBED}"
COPY = "@%p1 tcgen05.cp.cta_group::1.warpx4.32x128b "
COPY_A, COPY_B = f"{COPY} [%r10], %d2;", f"{COPY} [%r11], %d3;"
KIND = "kind::mxf8f6f4.block_scale.scale_vec::1X"
MMA = f"@%p1 tcgen05.mma.cta_group::1.{KIND} [%r3], %d0, %d1, %r5, [%r10], [%r11], "
LOAD = "tcgen05.ld.sync.aligned.32x32b.x1.b32 {%r47}, [%r4+15];"
LOADED = "tcgen05.wait::ld.sync.aligned;"
OUT = "mov.b32 %f0, %r47; cvt.rni.u32.f32 %r9, %f0; st.global.u32 [%g1], %r9;"
FREED = """
    bar.sync 0;
    @%p0 tcgen05.dealloc.cta_group::1.sync.aligned.b32 %r3, 64;
"""
MULTIPLIED = f"{MMA} %p2; {COMMIT} {COMMITTED}"
AGAIN = f"{COMMIT} {wait(1, at='%s+8192')}"
GIVEN = (
    "add.u32 %r12, %r4, 32; "
    "tcgen05.st.sync.aligned.32x32b.x2.b32 [%r12], {%r7, %r7};"
    "tcgen05.st.sync.aligned.32x32b.x2.b32 [%r12+2], {%r7, %r7};"
    "tcgen05.st.sync.aligned.32x32b.x1.b32 [%r12+4], {%r7};"
    "tcgen05.wait::st.sync.aligned; bar.sync 0;"
)


def executed(body, schedule, result=None):
    result = buffer(128) if result is None else result
    return run(
        body, buffer(128), result, block=128, architecture=100, schedule=schedule
    )


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("a_byte, b_byte", [(0, 0), (1, 3), (3, 2)])
def test_a_product_takes_the_scales_that_were_copied(schedule, a_byte, b_byte):
    result = buffer(128)
    instruction = instruction_of("e4m3", "e4m3", 16, a_byte, b_byte)
    done = executed(
        f"{READY} mov.u32 %r5, {instruction}; {COPY_A} {COPY_B} {MMA} %p2; {MMA} %p3;"
        f"{COMMIT} {COMMITTED} {LOAD} {LOADED} {OUT} {FREED}",
        schedule,
        result,
    )
    exponents = a_byte - 2 + np.arange(128) // 32 + b_byte + 1
    assert done.findings == ()
    assert result.tolist() == (2 * 32 * 2.0**exponents).tolist()
    assert done.counts.matrix_flops == {"e4m3": 2 * 2 * 128 * 16 * 32}
    assert done.counts.by_class["asynchronous"] == 2 * 4  # of four warps


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    word: str
    body: str


CASES = [
    Case(
        "A's scales are not copied",
        "uninitialised-tensor",
        f"{READY} <||{COPY_A}> {COPY_B} {MULTIPLIED} {FREED}",
    ),
    Case(
        "B's are not",
        "uninitialised-tensor",
        f"{READY} {COPY_A} <||{COPY_B}> {MULTIPLIED} {FREED}",
    ),
    Case(
        "a product before the copy",
        "uninitialised-tensor",
        f"{READY} {COPY_A} <{MMA} %p2; {COPY_B}||{COPY_B} {MMA} %p2;> {COMMIT}"
        f"{COMMITTED} {FREED}",
    ),
    Case(
        "a copy over scales that a product may still read",
        "missing-wait",
        f"{READY} {COPY_A} {COPY_B} {MMA} %p2; <||{COMMIT} {COMMITTED} bar.sync 0;>"
        f"{COPY_A} {MMA} %p3; <{COMMIT} {COMMITTED}||{AGAIN}> {FREED}",
    ),
    Case(
        "sums over scales that are read",
        "missing-wait",
        f"{READY} {COPY_A} {COPY_B} <mov.u32 %r10, %r3;||> "
        f"<{COPY_A}||> {MULTIPLIED} {FREED}",
    ),
    Case(
        "loaded before the copy is over",
        "missing-wait",
        f"{READY} {COPY_A} <||{COMMIT} {COMMITTED}> "
        f"add.u32 %r4, %r4, 17; {LOAD} {LOADED} <{COMMIT} {COMMITTED}||> {FREED}",
    ),
    Case(
        "scales overwritten in shared memory before the copy is over",
        "missing-wait",
        f"{READY} {COPY_A} {COPY_B} {MMA} %p2; {COMMIT} <||{COMMITTED}>"
        f"st.shared.u32 [%m+5120], %t; <{COMMITTED}||> {FREED}",
    ),
    Case(
        "no proxy fence behind the stores of scales",
        "missing-proxy-fence",
        f"{ONES} {START} fence.proxy.async; {SCALES} <||fence.proxy.async;> {TAKEN}"
        f"{DESCRIBED} {COPY_A} {COPY_B} {MULTIPLIED} {FREED}",
    ),
    Case(
        "scales in shared memory that nothing has written",
        "uninitialised-shared",
        f"{READY} <add.s64 %d2, %d2, 64;||> {COPY_A} {COPY_B} {MULTIPLIED} {FREED}",
    ),
    Case(
        "a copy from behind shared memory",
        "out-of-bounds",
        f"{READY} <add.s64 %d2, %d2, 900;||> {COPY_A} {COPY_B} {COMMIT} {COMMITTED}"
        f"{FREED}",
    ),
    Case(
        "a copy behind the allocation",
        "out-of-bounds",
        f"{READY} {COPY_A} add.u32 %r11, %r11, <25||24>; {COPY_B} {COMMIT} {COMMITTED}"
        f"{FREED}",
    ),
    Case(
        "scales behind the allocation",
        "out-of-bounds",
        f"{READY} {COPY_A} {COPY_B} <add.u32 %r10, %r10, 29;||> {MULTIPLIED} {FREED}",
    ),
    Case(
        "a copy to other lanes",
        "out-of-bounds",
        f"{READY} add.u32 %r10, %r10, <0x200000||0>; {COPY_A} {COMMIT} {COMMITTED}"
        f"{FREED}",
    ),
    Case(
        "scales of another format",
        "bad-descriptor",
        f"{READY} {COPY_A} {COPY_B} mov.u32 %r5, <0x08040000||0x08840000>;"
        f"{MULTIPLIED} {FREED}",
    ),
    Case(
        "a copy by a descriptor of wgmma",
        "bad-descriptor",
        f"{READY} <xor.b64 %d2, %d2, 0x400000000000;||> {COPY_A} {COMMIT} {COMMITTED}"
        f"{FREED}",
    ),
    Case(
        "freed before the copy is over",
        "missing-wait",
        f"{READY} {COPY_A} <||{COMMIT} {COMMITTED}> {FREED} <{COMMIT} {COMMITTED}||>",
    ),
    Case(
        "scales that differ from part to part",
        "unsupported",
        f"{READY} mov.u32 %r7, 0x7f7f7f7f; <add.u32 %r7, %r7, %w;||> {GIVEN}"
        f"{MULTIPLIED} {FREED}",
    ),
]


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


@pytest.mark.parametrize(
    "instruction",
    [
        "tcgen05.cp.cta_group::1.64x128b.warpx2::02_13 [%r3], %d0;",
        "tcgen05.cp.cta_group::2.32x128b.warpx4 [%r3], %d0;",
        "tcgen05.cp.cta_group::1.32x128b.warpx4.b8x16.b4x16_p64 [%r3], %d0;",
        "tcgen05.mma.cta_group::1.kind::mxf8f6f4 [%r3], %d0, %d1, %r5, %p2;",
        "tcgen05.mma.cta_group::1.kind::mxf8f6f4.block_scale.scale_vec::2X "
        "[%r3], %d0, %d1, %r5, [%r4], [%r4], %p2;",
        "tcgen05.mma.cta_group::1.kind::mxf4.block_scale.scale_vec::2X "
        "[%r3], %d0, %d1, %r5, [%r4], [%r4], %p2;",
    ],
)
def test_what_is_not_known_is_refused_by_its_name(instruction):
    with pytest.raises(UnknownOpcode, match=instruction.split(" ")[0]):
        run(instruction, buffer(8), architecture=100)
