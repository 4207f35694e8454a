"""Pairs of blocks on sm_100 in emulation: products that both share, against NumPy; and
for each check a kernel that is wrong and its mended twin.
"""

import dataclasses

import numpy as np
import pytest

from batchline.bench.measure.emulator import tensor_maps, tensor_pairs
from batchline.bench.measure.emulator.launch import LaunchRefused
from batchline.tests.emulated import SCHEDULES, buffer, faults, run, twins, wait
from batchline.tests.test_emulator_matrix import BYTES, SharedMatrix, draw
from batchline.tests.test_emulator_tcgen05 import (
    COLUMNS,
    LANES,
    described,
    instruction_of,
    kind_of,
)

ROWS = 128  # of a block


def memory_of(a_rows, b_columns, a, b, layouts):
    """What a block has in shared memory: its rows of A, and its columns of B behind."""
    (a_span, a_k_major), (b_span, b_k_major) = layouts
    left = SharedMatrix(a_rows, a, a_span, a_k_major)
    right = SharedMatrix(b_columns.T, b, b_span, b_k_major)
    offset = -(-len(left.bytes) // 1024) * 1024
    memory = np.full(offset + len(right.bytes), 0xEE, np.uint8)
    memory[: len(left.bytes)] = left.bytes
    memory[offset:] = right.bytes
    return memory, described(left), described(right) + (offset >> 4)


def product(left, right, a, b, layouts, start, adds=True):
    """float32[256, n] that both blocks have in tensor memory, from column 32 on."""
    n = right.shape[1]
    blocks = [
        memory_of(
            left[block * ROWS : (block + 1) * ROWS],
            right[:, block * n // 2 : (block + 1) * n // 2],
            a,
            b,
            layouts,
        )
        for block in range(2)
    ]
    places = (32 + np.arange(n)) * LANES + np.arange(ROWS)[:, None]
    values = [np.full(COLUMNS * LANES, 0xFFFFFFFF, np.uint32) for _ in range(2)]
    for block in range(2):
        own = start[block * ROWS : (block + 1) * ROWS].astype(np.float32)
        values[block][places] = own.view(np.uint32)
    _, a_descriptor, b_descriptor = blocks[0]
    assert blocks[1][1:] == blocks[0][1:]
    (_, a_k_major), (_, b_k_major) = layouts
    tensor_pairs.multiply(
        kind_of(a),
        instruction_of(a, b, 256, n, a_k_major, b_k_major),
        adds,
        a_descriptor,
        b_descriptor,
        (blocks[0][0], blocks[1][0]),
        tuple(values),
        32,
    )
    return np.concatenate([own[places].view(np.float32) for own in values])


@pytest.mark.parametrize("n", (32, 96, 256))
@pytest.mark.parametrize(
    "a, b", [("f16", "f16"), ("bf16", "bf16"), ("tf32", "tf32"), ("e5m2", "e4m3")]
)
def test_each_block_has_its_rows_and_half_of_the_columns_of_b(n, a, b):
    random = np.random.default_rng(n)
    depth = 32 // BYTES[a]
    left, right = draw(random, a, 256, depth), draw(random, b, depth, n)
    start = draw(random, "f32", 256, n)
    layouts = ((128, True), (128, True))
    found = product(left, right, a, b, layouts, start)
    np.testing.assert_array_equal(found, (left @ right + start).astype(np.float32))
    found = product(left, right, a, b, layouts, np.full((256, n), np.nan), adds=False)
    np.testing.assert_array_equal(found, left @ right)


@pytest.mark.parametrize("spans", [(128, 32), (64, 0), (0, 32)])
@pytest.mark.parametrize("name", ("bf16", "e4m3"))
def test_operands_lie_in_either_order(name, spans):
    random = np.random.default_rng(sum(spans))
    depth = 32 // BYTES[name]
    left, right = draw(random, name, 256, depth), draw(random, name, depth, 64)
    layouts = ((spans[0], False), (spans[1], False))
    start = np.zeros((256, 64))
    found = product(left, right, name, name, layouts, start)
    np.testing.assert_array_equal(found, left @ right)


def test_descriptors_of_the_instruction():
    def why(m, n, kind="f16", change=0):
        instruction = instruction_of("f16", "f16", m, n) ^ change
        return tensor_pairs.why_pair_invalid(kind_of(kind), instruction)

    assert why(256, 32) == why(256, 96) == why(256, 256) == tensor_pairs.VALID
    for m, n in ((256, 16), (256, 48), (256, 0), (64, 64), (256, 288), (512, 64)):
        assert why(m, n) == tensor_pairs.INVALID, (m, n)
    assert why(128, 64) == tensor_pairs.NOT_KNOWN  # a block has half of the columns
    assert why(256, 64, "tf32") == why(256, 64, change=1 << 3) == tensor_pairs.INVALID
    assert why(256, 64, change=1 << 4) == tensor_pairs.NOT_KNOWN  # sums of f16


# --- kernels ------------------------------------------------------------------------

# Of two blocks. As in test_emulator_tcgen05 each has in shared memory A (128 rows of 16)
# up to 4096, its 16 columns of B up to 4608, an mbarrier at 8192 and the address of the
# columns at 8200. The leading block's elements are 1, those of the other one 2.
SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
RANK = "mov.u32 %r30, %cluster_ctarank; setp.eq.u32 %p7, %r30, 0;"
MULTIPLIES = "setp.eq.u32 %p1, %t, 0; and.pred %p5, %p1, %p7;"
FILLED = f"""
    {RANK} {MULTIPLIES}
    setp.lt.u32 %p0, %t, 32;
    selp.b32 %r1, 0x3c003c00, 0x40004000, %p7;
    shl.b32 %r0, %t, 4;
    add.u32 %r0, %r0, %s;
    st.shared.v4.u32 [%r0], {{%r1, %r1, %r1, %r1}};
    st.shared.v4.u32 [%r0+2048], {{%r1, %r1, %r1, %r1}};
    @%p0 st.shared.v4.u32 [%r0+4096], {{%r1, %r1, %r1, %r1}};
    fence.proxy.async;
    @%p1 mbarrier.init.shared::cta.b64 [%s+8192], 1;
    @%p1 fence.mbarrier_init.release.cluster;
"""
ALLOC = "tcgen05.alloc.cta_group::2.sync.aligned.shared::cta.b32 [%s+8200], {count};"
RELINQUISHED = "@%p0 tcgen05.relinquish_alloc_permit.cta_group::2.sync.aligned;"
TAKEN = """
    bar.sync 0;
    ld.shared.u32 %r3, [%s+8200];
    bar.sync 0;
    shl.b32 %r4, %w, 21;
    add.u32 %r4, %r4, %r3;
"""
DESCRIBED = """
    bfe.u32 %r2, %s, 4, 14;
    cvt.u64.u32 %d0, %r2;
    or.b64 %d1, %d0, 0x0000400800100000;
    or.b64 %d0, %d0, 0x0000400800800000;
    add.s64 %d1, %d1, 256;
    mov.u32 %r5, 0x10080010;
    setp.ne.u32 %p2, %t, %t;
    setp.eq.u32 %p3, %t, %t;
    mov.b16 %h0, 3;
"""
ALLOCATED = f"@%p0 {ALLOC.format(count=32)} {RELINQUISHED} {TAKEN} {DESCRIBED}"
READY = f"{FILLED} {ALLOCATED} {SYNC}"
MMA = "@%p5 tcgen05.mma.cta_group::2.kind::f16 [%r3], %d0, %d1, %r5, "
COMMIT = (
    "@%p5 tcgen05.commit.cta_group::2.mbarrier::arrive::one.shared::cluster"
    ".multicast::cluster.b64 [%s+8192], %h0;"
)
MULTIPLIED = f"{MMA} %p2; {MMA} %p3; {COMMIT}"
COMMITTED = wait(0, at="%s+8192")
SUMS = ", ".join(f"%r{number}" for number in range(32, 64))
LOADED = f"""
    tcgen05.ld.sync.aligned.32x32b.x32.b32 {{{SUMS}}}, [%r4];
    tcgen05.wait::ld.sync.aligned;
"""
RESULT = """
    mov.b32 %f0, %r32; cvt.rni.u32.f32 %r9, %f0;
    mov.b32 %f1, %r63; cvt.rni.u32.f32 %r10, %f1;
    mad.lo.u32 %r9, %r10, 1000, %r9;
    mad.lo.u32 %r11, %r30, 512, 0;
    cvt.u64.u32 %d2, %r11;
    add.s64 %d2, %d2, %g1;
    st.global.u32 [%d2], %r9;
"""
DEALLOC = "@{who} tcgen05.dealloc.cta_group::2.sync.aligned.b32 %r3, 32;"
FREED = f"bar.sync 0; {DEALLOC.format(who='%p0')}"
LEFT = f"{SYNC} {FREED}"


def paired(body, schedule, *more):
    result = buffer(256)
    settings = {"block": 128, "grid": 2, "cluster": 2, "architecture": 100}
    done = run(body, buffer(256), result, *more, schedule=schedule, **settings)
    return done, result.reshape(2, 128)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_two_products_of_a_pair(schedule):
    body = f"{READY} {MULTIPLIED} {COMMITTED} {LOADED} {RESULT} {LEFT}"
    done, result = paired(body, schedule)
    assert done.findings == ()
    leading, other = 2 * 16 * np.array([[1, 2], [2, 4]])  # by the columns' halves
    assert (result[0] == leading[0] + 1000 * leading[1]).all()
    assert (result[1] == other[0] + 1000 * other[1]).all()
    assert done.counts.matrix_flops == {"f16": 2 * 2 * 256 * 32 * 16}
    assert done.counts.operand_bytes == 2 * (256 + 32) * 32


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_each_of_two_pairs_in_a_cluster_has_its_own_product(schedule):
    pair = "and.b32 %r31, %r30, 1; setp.eq.u32 %p7, %r31, 0;"
    blocks = "and.b32 %r31, %r30, 2; mov.u32 %r20, 3; shl.b32 %r20, %r20, %r31;"
    body = READY.replace(RANK, f"{RANK} {pair}") + f"{blocks} cvt.u16.u32 %h0, %r20;"
    body += f"{MULTIPLIED} {COMMITTED} {LOADED} {RESULT} {LEFT}"
    result = buffer(512)
    settings = {"block": 128, "grid": 4, "cluster": 4, "architecture": 100}
    done = run(body, buffer(256), result, schedule=schedule, **settings)
    assert done.findings == ()
    expected = np.repeat([32 + 64_000, 64 + 128_000], 128)
    assert (result.reshape(2, 256) == expected).all()


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    word: str
    body: str


CASES = [
    Case(
        "a commit that only the leading block hears of",
        "deadlock",
        f"{READY} mov.b16 %h0, <1||3>; {MULTIPLIED} {COMMITTED} {LEFT}",
    ),
    Case(
        "a commit that the leading block does not hear of",
        "deadlock",
        f"{READY} mov.b16 %h0, <2||3>; {MULTIPLIED} {COMMITTED} {LEFT}",
    ),
    Case(
        "a commit for a block that is not there",
        "out-of-bounds",
        f"{READY} mov.b16 %h0, <7||3>; {MULTIPLIED} {COMMITTED} {LEFT}",
    ),
    Case(
        "a product before the other block is ready",
        "tensor-race",
        f"{FILLED} {ALLOCATED} <||{SYNC}> {MULTIPLIED} {COMMITTED} {LEFT}",
    ),
    Case(
        "the other block reads its sums before it hears of the commit",
        "missing-wait",
        f"{READY} {MULTIPLIED} <@%p7||> bra.uni W; <bra.uni R;||> W: {COMMITTED}"
        f"R: {LOADED} {RESULT} {LEFT}",
    ),
    Case(
        "the other block's sums are overwritten while it reads them",
        "tensor-race",
        f"{READY} {MULTIPLIED} {COMMITTED} {LOADED} {RESULT} <bar.sync 0;||{SYNC}>"
        f"{MMA} %p2; {COMMIT} {wait(1, at='%s+8192')} {LEFT}",
    ),
    Case(
        "the other block overwrites its operands before it hears of the commit",
        "missing-wait",
        f"{READY} {MULTIPLIED} <@!%p7 st.shared.u32 [%m], %t;||> {COMMITTED}"
        f"<||@!%p7 st.shared.u32 [%m], %t;> {LEFT}",
    ),
    Case(
        "the other block leaves early",
        "missing-wait",
        f"{READY} {MULTIPLIED} <@!%p7 bra.uni L;||> {COMMITTED} L: {FREED}",
    ),
    Case(
        "freed by the leading block alone",
        "tensor-allocation",
        f"{READY} {MULTIPLIED} {COMMITTED} {SYNC} and.pred %p6, %p0, %p7;"
        f"{DEALLOC.format(who='<%p6||%p0>')}",
    ),
    Case(
        "taken by the leading block alone",
        "tensor-allocation",
        f"{FILLED} and.pred %p6, %p0, %p7; <@%p6||@%p0> {ALLOC.format(count=32)}"
        f"{TAKEN} {SYNC} {DEALLOC.format(who='<%p6||%p0>')}",
    ),
    Case(
        "more columns taken by one block",
        "tensor-allocation",
        f"{FILLED} selp.b32 %r20, 32, <64||32>, %p7; @%p0 "
        f"{ALLOC.format(count='%r20')} {TAKEN} {SYNC} bar.sync 0; @%p0"
        " tcgen05.dealloc.cta_group::2.sync.aligned.b32 %r3, %r20;",
    ),
    Case(
        "N of 48",
        "bad-descriptor",
        f"{READY} mov.u32 %r5, <0x100c0010||0x10080010>; {MULTIPLIED} {COMMITTED}"
        f"{LEFT}",
    ),
    Case(
        "both blocks issue the product",
        "missing-wait",
        f"{READY} <mov.pred %p5, %p1;||> {MULTIPLIED} {COMMITTED} {LEFT}",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_wrong_is_found_and_its_mended_twin_is_clean(case):
    wrong, right = twins(case.body)
    found = [faults(paired(wrong, schedule)[0]) for schedule in SCHEDULES.values()]
    assert all(found), found
    assert any(case.word in one for one in found), found
    for schedule in SCHEDULES.values():
        findings = paired(right, schedule)[0].findings
        assert not findings, [str(one) for one in findings]


# Each block copies a box of 256 bytes, and the leading block's mbarrier hears of both:
# with bit 24 cleared the address of a block's own is that of the leading one.


def told(clears, is_of_pair):
    """Each block copies a box of 256 bytes, and the leading block's mbarrier hears of
    both: with bit 24 cleared the address of a block's own is that of the leading one.
    """
    copy = (
        f"cp.async.bulk.tensor.2d{'.cta_group::2' if is_of_pair else ''}"
        ".shared::cluster.global.mbarrier::complete_tx::bytes"
    )
    return f"""
        {RANK} {MULTIPLIES}
        @%p1 mbarrier.init.shared::cta.b64 [%s+512], 1;
        @%p1 fence.mbarrier_init.release.cluster;
        {SYNC}
        mov.u32 %r1, 0;
        mov.u64 %d1, p2;
        @%p5 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%s+512], 512;
        add.u32 %r2, %s, 512;
        {"and.b32 %r2, %r2, 0xfeffffff;" if clears else ""}
        @%p1 {copy} [%s], [%d1, {{%r1, %r1}}], [%r2];
        @!%p7 bra.uni E;
        {wait(0, at='%s+512')}
        E: {SYNC}
    """


def copied(body, schedule):
    given = buffer(64)
    given[:] = np.arange(64) + 1
    tensor_map = tensor_maps.encode(
        given.ctypes.data, tensor_maps.U32, [16, 4], [64], [16, 4]
    )
    settings = {"block": 64, "grid": 2, "cluster": 2, "architecture": 100}
    return run(body, given, buffer(8), tensor_map, schedule=schedule, **settings)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_leading_block_hears_of_the_copies_of_both(schedule):
    assert not copied(told(True, True), schedule).findings
    # Its own copy alone: the other block's told another mbarrier.
    assert "deadlock" in faults(copied(told(False, True), schedule))


def test_a_copy_of_one_block_can_t_tell_another_block_s_mbarrier():
    for schedule in SCHEDULES.values():
        assert "mbarrier-misuse" in faults(copied(told(True, False), schedule))


@pytest.mark.parametrize(
    "cluster, body, why",
    [
        (1, RELINQUISHED, "clusters of 1 are no pairs"),
        (2, f"{RELINQUISHED} {RELINQUISHED.replace('::2', '::1')}", "undefined"),
    ],
)
def test_what_no_pair_can_execute_is_refused(cluster, body, why):
    with pytest.raises(LaunchRefused, match=why):
        run(body, buffer(8), grid=2, cluster=cluster, block=32, architecture=100)


def test_tcgen05_in_clusters_of_too_many_warps_is_refused():
    body = "tcgen05.wait::ld.sync.aligned;"
    with pytest.raises(LaunchRefused, match="clusters of 40 warps"):
        run(body, buffer(8), grid=2, cluster=2, block=640, architecture=100)
