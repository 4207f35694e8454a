"""Clusters of blocks in emulation: what blocks do in each other's shared memory."""

import numpy as np
import pytest
import torch

import triton
import triton.language as tl
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from batchline import kernels
from batchline.bench.measure.compiled.compiler import why_cannot_compile
from batchline.bench.measure.emulator import execution, tensor_maps
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.launch import KernelLaunch, LaunchRefused
from batchline.bench.measure.emulator.memory import GlobalMemory
from batchline.kernels.op import Variant
from batchline.tests.emulated import (
    SCHEDULES,
    Case,
    buffer,
    faults,
    mbarrier,
    require_clean,
    require_found,
    run,
    text_of,
    twins,
    wait,
    words,
)

SYNC = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
# %r30 is the block's rank, %r31 the other one's; %r32 the thread's own word there, %r33
# and %r34 the other block's `s` and its mbarrier.
PEER = """
mov.u32 %r30, %cluster_ctarank;
xor.b32 %r31, %r30, 1;
mapa.shared::cluster.u32 %r32, %m, %r31;
mapa.shared::cluster.u32 %r33, %s, %r31;
add.u32 %r34, %r33, 8192;
"""
AT = "%s+8192"
MAKE = mbarrier(AT)
INIT_VISIBLE = "fence.mbarrier_init.release.cluster;"
START = f"{MAKE} {SYNC} {PEER}"
ARRIVE = "@%p0 mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r34];"
RUN = (
    "@%p0 cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes"
    " [%r33+1024], [%s], 256, [%r34];"
)
EXPECT = f"@%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [{AT}], 256;"


def case(name, word, body, **changes):
    return Case(name, word, body, grid=2, cluster=2, **changes)


CASES = [
    case(
        "a store to a block that may not have started",
        "block-lifetime",
        f"<||{SYNC}> {PEER} st.shared::cluster.u32 [%r32], %t; {SYNC}",
    ),
    case(
        "a store to a block that may have ended",
        "block-lifetime",
        f"{SYNC} {PEER} st.shared::cluster.u32 [%r32], %t; <||{SYNC}>",
    ),
    case(
        "a load from a block that may have ended",
        "block-lifetime",
        f"""
        st.shared.u32 [%m], %t;
        {SYNC}
        {PEER}
        ld.shared::cluster.u32 %r1, [%r32];
        <||{SYNC}>
        """,
    ),
    case(
        "an arrival in a block that may have ended",
        "block-lifetime",
        f"{START} {ARRIVE} <||{wait(0, at=AT)}>",
    ),
    case(
        "what the other block has stored, read without the cluster's barrier",
        "shared-race",
        f"""
        st.shared.u32 [%m], 0;
        {SYNC}
        {PEER}
        st.shared::cluster.u32 [%r32], %t;
        <bar.sync 0;||{SYNC}>
        ld.shared.u32 %r1, [%m];
        {SYNC}
        """,
    ),
    case(
        "what the other block stores, by a generic address",
        "shared-race",
        f"""
        {SYNC}
        {PEER}
        st.shared.u32 [%m], %t;
        <bar.sync 0;||{SYNC}>
        mov.u64 %d0, s;
        cvta.shared.u64 %d0, %d0;
        add.u64 %d0, %d0, %o;
        mapa.u64 %d1, %d0, %r31;
        ld.u32 %r1, [%d1];
        {SYNC}
        """,
    ),
    case(
        "a relaxed arrival hands on no stores",
        "shared-race",
        f"""
        {SYNC}
        {PEER}
        st.shared.u32 [%m], %t;
        barrier.cluster.arrive<.relaxed||.release>.aligned;
        barrier.cluster.wait.acquire.aligned;
        ld.shared::cluster.u32 %r1, [%r32];
        {SYNC}
        """,
    ),
    case(
        "a relaxed arrival hands on what was before a fence",
        "shared-race",
        f"""
        {MAKE}
        <||{INIT_VISIBLE}>
        barrier.cluster.arrive.relaxed.aligned;
        barrier.cluster.wait.aligned;
        {PEER}
        {ARRIVE}
        {wait(0, at=AT)}
        """,
        block=32,
    ),
    case(
        "no such block",
        "out-of-bounds",
        f"""
        {SYNC}
        {PEER}
        add.u32 %r31, %r31, <2||0>;
        mapa.shared::cluster.u32 %r32, %m, %r31;
        st.shared::cluster.u32 [%r32], %t;
        {SYNC}
        """,
    ),
    case(
        "past the end of the other block's array",
        "out-of-bounds",
        f"{SYNC} {PEER} st.shared::cluster.u32 [%r32+<16384||0>], %t; {SYNC}",
    ),
    case(
        "another block's address as one of the own block",
        "out-of-bounds",
        f"""
        {SYNC}
        {PEER}
        st.shared::<cta||cluster>.u32 [%r32], %t;
        {SYNC}
        """,
    ),
    case(
        "stored behind the arrival that tells of it",
        "shared-race",
        f"""
        {START}
        <{ARRIVE} @%p0 st.shared::cluster.u32 [%r33], 5;
        ||@%p0 st.shared::cluster.u32 [%r33], 5; {ARRIVE}>
        {wait(0, at=AT)}
        ld.shared.u32 %r1, [%s];
        {SYNC}
        """,
    ),
    case(
        "nobody arrives in one of the blocks",
        "deadlock",
        f"""
        {START}
        <or.b32 %r35, %t, %r30;||mov.u32 %r35, %t;>
        setp.eq.u32 %p0, %r35, 0;
        {ARRIVE}
        {wait(0, at=AT)}
        {SYNC}
        """,
    ),
    case(
        "each of two blocks waits for the other",
        "deadlock",
        f"""
        {START}
        setp.eq.u32 %p1, %r30, 0;
        @%p1 bra First;
        <{wait(0, at=AT)} {SYNC}||{SYNC} {wait(0, at=AT)}>
        bra Done;
        First:
        {SYNC}
        {ARRIVE}
        Done:
        {SYNC}
        """,
    ),
    case(
        "arrived twice",
        "divergent-barrier",
        "barrier.cluster.arrive.aligned; <barrier.cluster.arrive.aligned;||>"
        "barrier.cluster.wait.aligned;",
    ),
    case(
        "waited without having arrived",
        "divergent-barrier",
        f"{SYNC} <barrier.cluster.wait.aligned;||>",
    ),
    case(
        "by some lanes of a warp",
        "divergent-barrier",
        "setp.lt.u32 %p1, %l, <16||32>; @%p1 barrier.cluster.arrive.aligned;"
        "barrier.cluster.wait.aligned;",
    ),
    case(
        "a copy between blocks read before it is waited for",
        "missing-wait",
        f"""
        st.shared.u32 [%m], %t;
        fence.proxy.async;
        {START}
        {EXPECT}
        {RUN}
        <||{wait(0, at=AT)}>
        ld.shared.u32 %r1, [%m+1024];
        {SYNC}
        """,
    ),
    case(
        "a copy between blocks of what was stored, without a proxy fence",
        "missing-proxy-fence",
        f"""
        st.shared.u32 [%m], %t;
        <||fence.proxy.async;>
        {START}
        {EXPECT}
        {RUN}
        {wait(0, at=AT)}
        {SYNC}
        """,
    ),
    case(
        "a copy to a block that may end before it comes",
        "block-lifetime",
        f"""
        st.shared.u32 [%m], %t;
        fence.proxy.async;
        {START}
        {EXPECT}
        {RUN}
        <||{wait(0, at=AT)}>
        """,
    ),
    case(
        "a copy to one block that another block's mbarrier counts",
        "mbarrier-misuse",
        f"""
        st.shared.u32 [%m], %t;
        fence.proxy.async;
        {START}
        {EXPECT}
        {RUN.replace("[%r34]", "[<%s+8192||%r34>]")}
        {wait(0, at=AT)}
        {SYNC}
        """,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_a_fault_is_found(case):
    require_found(case)


@pytest.mark.parametrize("case", CASES, ids=lambda one: one.name)
def test_nothing_is_found_in_its_mended_twin(case):
    require_clean(case)


def values_of(special, grid, cluster):
    result = buffer(np.prod(grid))
    body = f"""
    mov.u32 %r0, %ctaid.y;
    mov.u32 %r1, %nctaid.x;
    mov.u32 %r2, %ctaid.x;
    mad.lo.u32 %r0, %r0, %r1, %r2;
    mul.wide.u32 %d0, %r0, 4;
    add.u64 %d0, %d0, %a0;
    mov.u32 %r3, {special};
    st.global.u32 [%d0], %r3;
    """
    done = run(body, result, grid=(*grid, 1), cluster=(*cluster, 1), block=1)
    assert not done.findings
    return result.reshape(grid[::-1]).tolist()


@pytest.mark.parametrize(
    "special, expected",
    [
        ("%clusterid.x", [[0, 0, 1, 1]] * 4),
        ("%clusterid.y", [[0] * 4] * 2 + [[1] * 4] * 2),
        ("%nclusterid.x", [[2] * 4] * 4),
        ("%cluster_ctaid.x", [[0, 1, 0, 1]] * 4),
        ("%cluster_ctaid.y", [[0] * 4, [1] * 4] * 2),
        ("%cluster_nctaid.y", [[2] * 4] * 4),
        ("%cluster_ctarank", [[0, 1, 0, 1], [2, 3, 2, 3]] * 2),
        ("%cluster_nctarank", [[4] * 4] * 4),
    ],
)
def test_where_a_block_is(special, expected):
    assert values_of(special, (4, 4), (2, 2)) == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_blocks_exchange_their_words(schedule):
    result = buffer(4 * 64)
    body = f"""
    mov.u32 %r9, %ctaid.x;
    shl.b32 %r9, %r9, 6;
    add.u32 %r9, %r9, %t;
    st.shared.u32 [%m], %r9;
    {SYNC}
    {PEER}
    ld.shared::cluster.u32 %r1, [%r32];
    mul.wide.u32 %d0, %r9, 4;
    add.u64 %d0, %d0, %a0;
    st.global.u32 [%d0], %r1;
    {SYNC}
    """
    settings = {"grid": 4, "cluster": 2, "block": 64}
    done = run(body, result, schedule=SCHEDULES[schedule], **settings)
    assert not done.findings, [str(one) for one in done.findings]
    numbers = np.arange(4 * 64).reshape(4, 64)
    np.testing.assert_array_equal(result, numbers[[1, 0, 3, 2]].ravel())


def test_atomics_of_all_blocks_on_one_of_them():
    result = buffer(1)
    body = f"""
    setp.eq.u32 %p0, %t, 0;
    @%p0 st.shared.u32 [%s], 0;
    {SYNC}
    mapa.shared::cluster.u32 %r1, %s, 2;
    red.shared::cluster.add.u32 [%r1], 1;
    {SYNC}
    mov.u32 %r2, %cluster_ctarank;
    shl.b32 %r4, %t, 3;
    add.u32 %r2, %r2, %r4;
    setp.eq.u32 %p1, %r2, 2;
    @%p1 ld.shared.u32 %r3, [%s];
    @%p1 st.global.u32 [%a0], %r3;
    """
    done = run(body, result, grid=4, cluster=4, block=64)
    assert not done.findings, [str(one) for one in done.findings]
    assert result[0] == 4 * 64


def test_a_finding_names_the_block_of_the_grid():
    body = """
    mov.u32 %r0, %ctaid.x;
    setp.eq.u32 %p0, %r0, 3;
    @%p0 st.shared.u32 [%m+16384], 0;
    """
    (found,) = run(body, grid=4, cluster=2, block=64).findings
    assert (found.word, found.block, found.warp) == ("out-of-bounds", 3, 0)


def test_the_barrier_of_a_cluster_of_one_block():
    assert not run(SYNC + SYNC, grid=3, block=64).findings


def test_a_block_that_has_ended_is_not_waited_for():
    body = f"mov.u32 %r0, %cluster_ctarank; setp.eq.u32 %p0, %r0, 1; @%p0 ret; {SYNC}"
    assert not run(body, grid=2, cluster=2, block=64).findings


def test_clusters_that_are_not_those_of_the_ptx_are_refused():
    memory = GlobalMemory()
    ptx = text_of("", ()).replace(".entry k()", ".entry k() .reqnctapercluster 2")
    launch = KernelLaunch(
        kernel="k",
        entry="k",
        ptx=ptx,
        architecture=90,
        grid=(4, 1, 1),
        block=(32, 1, 1),
        cluster=(4, 1, 1),
        dynamic_shared_bytes=0,
        arguments=(),
        registers=None,
        config="",
    )
    with pytest.raises(LaunchRefused, match=r"requires \(2, 1, 1\)"):
        execution.execute(launch, memory)


def test_more_warps_than_are_kept_track_of_are_refused():
    with pytest.raises(LaunchRefused, match="clusters of 64 warps"):
        run(SYNC, grid=2, cluster=2, block=1024)


# --- one copy for several blocks ----------------------------------------------------

MULTICAST = f"""
    mov.b64 %d0, p1;
    cvta.param.u64 %d1, %d0;
    {MAKE}
    @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [{AT}], 256;
    <barrier.cluster.arrive.aligned;||{SYNC}>
    mov.u32 %r30, %cluster_ctarank;
    setp.eq.u32 %p1, %r30, 0;
    and.pred %p1, %p1, %p0;
    mov.u16 %h0, 3;
    mov.u32 %r1, 0;
    @%p1 COPY;
    {wait(0, at=AT)}
    ld.shared.u32 %r2, [%m];
    mov.u32 %r3, %ctaid.x;
    shl.b32 %r3, %r3, 8;
    cvt.u64.u32 %d2, %r3;
    add.u64 %d2, %d2, %g2;
    st.global.u32 [%d2], %r2;
"""
COPIES = {
    "tensor": "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::"
    f"bytes.multicast::cluster [%s], [%d1, {{%r1, %r1}}], [{AT}], %h0",
    "run": "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes"
    f".multicast::cluster [%s], [%a0], 256, [{AT}], %h0",
}


def multicast(body, schedule):
    given, result = buffer(64), buffer(128)
    given[:] = np.arange(64) + 1
    tensor_map = tensor_maps.encode(
        given.ctypes.data, tensor_maps.U32, [16, 4], [64], [16, 4]
    )
    settings = {"grid": 2, "cluster": 2, "block": 64, "schedule": schedule}
    return run(body, given, tensor_map, result, **settings), given, result


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_for_both_blocks(kind, schedule):
    _, right = twins(MULTICAST.replace("COPY", COPIES[kind]))
    done, given, result = multicast(right, SCHEDULES[schedule])
    assert not done.findings, [str(one) for one in done.findings]
    np.testing.assert_array_equal(result, np.tile(given, 2))
    if kind == "tensor":  # read once, for both
        assert done.counts.sectors == 8 + 16


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_for_a_block_that_has_not_started(kind):
    wrong, _ = twins(MULTICAST.replace("COPY", COPIES[kind]))
    for schedule in SCHEDULES.values():
        assert faults(multicast(wrong, schedule)[0])


def test_a_copy_for_a_block_that_is_not_there():
    _, right = twins(MULTICAST.replace("COPY", COPIES["run"]))
    done, *_ = multicast(
        right.replace("mov.u16 %h0, 3", "mov.u16 %h0, 7"), execution.LATE
    )
    assert "out-of-bounds" in faults(done)


# --- what compilers make ------------------------------------------------------------

needs_triton = pytest.mark.skipif(
    why_cannot_compile("triton") is not None, reason="needs Triton's compiler"
)


@triton.jit
def _column_sums(x_ptr, out_ptr, M: tl.constexpr, N: tl.constexpr):
    rows, columns = tl.arange(0, M), tl.arange(0, N)
    first = tl.program_id(0) * M * N
    x = tl.load(x_ptr + first + rows[:, None] * N + columns[None, :])
    tl.store(out_ptr + tl.program_id(0) * N + columns, tl.sum(x, axis=0))


@needs_triton
def test_a_kernel_of_triton_on_clusters():
    def launch(x):
        out = torch.empty(3, 32)
        _column_sums[(3,)](x, out, M=64, N=32, num_warps=4, num_ctas=2)
        return out

    x = torch.randn(3, 64, 32)
    variant = Variant(kernels.ops["bmm"], launch, "triton")
    call = emulate_call(variant, (x,), 90, execution.execute)
    ((launched, done),) = call.launches
    assert (launched.grid, launched.cluster) == ((6, 1, 1), (2, 1, 1))
    # Its sum reads words of the other block's half, and uses them for nothing.
    assert words(done) <= {"uninitialised-shared"}
    torch.testing.assert_close(call.returned, x.sum(dim=1))


@gluon.jit
def _product(
    a,
    b,
    c,
    K,
    M: gl.constexpr,
    N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STARTS: gl.constexpr,
    WAITS: gl.constexpr,
):
    """M rows of A lie in two blocks, B goes to both of them by one copy."""
    first = gl.program_id(0) * M
    a_tile = gl.allocate_shared_memory(gl.float16, [M, BLOCK_K], a.layout)
    b_tile = gl.allocate_shared_memory(gl.float16, [BLOCK_K, N], b.layout)
    loaded = hopper.mbarrier.allocate_mbarrier()
    hopper.mbarrier.init(loaded, count=1)
    if STARTS:
        hopper.mbarrier.sync_cluster_init()
    sums = gl.zeros(
        [M, N],
        gl.float32,
        gl.NVMMADistributedLayout(
            version=[3, 0],
            warps_per_cta=[4, 1],
            instr_shape=[16, N, 16],
            cga_layout=[[1, 0]],
        ),
    )
    phase = 0
    for k in range(0, K, BLOCK_K):
        hopper.mbarrier.expect(loaded, a.nbytes_per_cta + b.nbytes_per_cta)
        hopper.tma.async_copy_global_to_shared(a, [first, k], loaded, a_tile)
        hopper.tma.async_copy_global_to_shared(
            b, [k, 0], loaded, b_tile, multicast=True
        )
        hopper.mbarrier.wait(loaded, phase, deps=[a_tile, b_tile])
        phase ^= 1
        sums = hopper.warpgroup_mma(a_tile, b_tile, sums, is_async=True)
        sums = hopper.warpgroup_mma_wait(num_outstanding=0, deps=[sums])
        if WAITS:
            hopper.cluster.arrive()
            hopper.cluster.wait()
    c_tile = gl.allocate_shared_memory(gl.float16, [M, N], c.layout)
    c_tile.store(sums.to(gl.float16))
    hopper.fence_async_shared()
    gl.barrier()
    hopper.tma.async_copy_shared_to_global(c, [first, 0], c_tile)
    hopper.tma.store_wait(0)


def product(a, b, starts=True, waits=True):
    c = torch.empty(len(a), b.shape[1], dtype=torch.float16)
    m, n, block_k = 128, b.shape[1], 64

    def described(tensor, block, cga_layout):
        layout = gl.NVMMASharedLayout.get_default_for(
            block, gl.float16, cga_layout=cga_layout
        )
        return TensorDescriptor.from_tensor(tensor, block, layout)

    _product[(len(a) // m,)](
        described(a, [m, block_k], [[1, 0]]),
        described(b, [block_k, n], [[0, 0]]),
        described(c, [m, n], [[1, 0]]),
        a.shape[1],
        M=m,
        N=n,
        BLOCK_K=block_k,
        STARTS=starts,
        WAITS=waits,
        num_warps=4,
        num_ctas=2,
    )
    return c


def executed_product(schedule, **settings):
    def launch(a, b):
        return product(a, b, **settings)

    def execute(launched, memory):
        assert "multicast::cluster" in launched.ptx
        return execution.execute(launched, memory, schedule)

    torch.manual_seed(0)
    a, b = torch.randn(256, 192).half(), torch.randn(192, 64).half()
    variant = Variant(kernels.ops["bmm"], launch, "triton")
    call = emulate_call(variant, (a, b), 90, execute)
    ((_, done),) = call.launches
    return done, call.returned, a.float() @ b.float()


@needs_triton
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_kernel_of_gluon_with_copies_for_two_blocks(schedule):
    done, result, wanted = executed_product(SCHEDULES[schedule])
    assert not done.findings, [str(one) for one in done.findings]
    torch.testing.assert_close(result.float(), wanted, atol=0.05, rtol=0.01)


@needs_triton
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("left_out", ["starts", "waits"])
def test_a_kernel_of_gluon_that_does_not_wait_for_its_other_block(left_out, schedule):
    done, *_ = executed_product(SCHEDULES[schedule], **{left_out: False})
    found = {one.source.split(":")[0] for one in done.findings if one.is_fault}
    assert "test_emulator_clusters.py" in found
