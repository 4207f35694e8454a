"""Two groups of warps take turns: while one multiplies its half of a tile of the
gradient, the other squares its own.

In `triton_fused` all warps square at once, and meanwhile no product is in flight. Here
a program has three kinds of warps, by hand, in Gluon. One warp loads the steps of all
samples by TMA, seven ahead. Two groups of four warps have 64 of a tile's 128 rows each.
A stage goes from the loads to the first group, from there to the second, and back: so
the second is a step behind, and multiplies while the first squares. Each warp adds up
its own rows, so that a group's warps need not meet for a sum. The rest is as in the
rung below: the splits, the order of sums, no atomics, and the second product for d.

Compiled for sm_90, 128x128x64 takes 384 threads, 168 registers a thread and 224 of 227
KiB, with no spills; setmaxnreg then moves registers from the warp that loads to those
that multiply. By `batchline emulate wgrad_stats/gluon_fused/linear_512_T128/bfloat16/B16
--arch 90` its launches execute 2,597,096 warp instructions, against 3,408,050.

By the same counts it reads 4.30 bytes for each distinct one, against 2.82: that bounds
it next. So does one token, of which a step's other 15 are 0. fp32 is declined: tf32 is
all that wgmma has for it. It has been executed in emulation only, on no chip yet. wgmma
is of sm_90 alone.
"""

from batchline.kernels.backends import (
    gl,
    gluon,
    hopper,
    mbarrier,
    tma,
    triton,
)
from batchline.kernels.bmm._descriptors import ROW_BYTES, stored
from batchline.kernels.bmm._gluon import (
    BARRIERS_BYTES,
    described_operand,
    in_parts,
    matrix_of,
    place_of,
    why_no_wgmma,
)
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct
from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._gradient_tiles import least_splits
from batchline.kernels.wgrad_stats._two_products import multiply_twice

_GROUPS, _GROUP_WARPS, _GROUP_M = 2, 4, 64
_BLOCK_M = _GROUPS * _GROUP_M
_WAVES = (1, 2, 3, 4, 6, 8)
_MEAN_STEPS = 4  # what a tile of sums takes to be written, or read, in steps


@gluon.jit
def _walk(item, sizes, BLOCK_M: gl.constexpr, BLOCK_N: gl.constexpr):
    """First row, first column, first sample and the one past the last of an item: a tile
    of one split of the batch. All tiles of a split are neighbours, so that they read its samples from L2 at
    about the same time.
    """
    B, M, N, T, share = sizes
    tiles_n = gl.cdiv(N, BLOCK_N)
    tiles = gl.cdiv(M, BLOCK_M) * tiles_n
    tile = item % tiles
    first_b = item // tiles * share
    last_b = min(first_b + share, B)
    return tile // tiles_n * BLOCK_M, tile % tiles_n * BLOCK_N, first_b, last_b


@gluon.jit
def _next(stage, phase, STAGES: gl.constexpr):
    """The stage after this one, and the phase of its barriers."""
    is_last = stage == STAGES - 1
    return gl.where(is_last, 0, stage + 1), gl.where(is_last, phase ^ 1, phase)


@gluon.jit
def _before(stage, STAGES: gl.constexpr):
    """The stage before this one. (Kept in a variable it would be lost: Triton takes a
    name for unchanged in a loop whose body sets it to what it held before.)
    """
    return gl.where(stage == 0, STAGES - 1, stage - 1)


@gluon.jit
def _sum_of_each_warp(values):
    """[M, N] → [4]: four warps have a fourth of the rows each, so no barrier joins
    them. A thread adds up its columns in four parts at once, for an addition waits for
    the one before it.
    """
    ROWS: gl.constexpr = values.shape[0] // 4
    PARTS: gl.constexpr = min(4, values.shape[1] // 8)
    parts = in_parts(values, PARTS)
    total = parts[0]
    for part in gl.static_range(1, PARTS):
        total += parts[part]
    return gl.sum(total.reshape([4, ROWS * values.shape[1] // PARTS]), axis=1)


@gluon.jit
def _load(
    descriptors,
    stages,
    barriers,
    sizes,
    items,
    by_entry,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    GROUP_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_T: gl.constexpr,
):
    """One warp: fills stage after stage with the operands of all samples, in order."""
    a_desc, b_desc = descriptors
    a_stages, b_stages = stages
    filled, emptied = barriers
    a_step, b_step = by_entry
    STAGES: gl.constexpr = b_stages.shape[0]
    stage = 0
    phase = 0
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        first_m, first_n, first_b, last_b = _walk(item, sizes, 2 * GROUP_M, BLOCK_N)
        for sample in range(first_b, last_b):
            for t in range(0, sizes[3], BLOCK_T):
                barrier = filled.index(stage)
                # Of a barrier that is new, the phase before the first counts as complete.
                mbarrier.wait(emptied.index(stage), phase ^ 1)
                mbarrier.expect(
                    barrier, 2 * a_desc.block_type.nbytes + b_desc.block_type.nbytes
                )
                for group in gl.static_range(2):
                    row = first_m + group * GROUP_M
                    a_place = place_of(sample * a_step, row, t, A_TRANSPOSED)
                    tma.async_copy_global_to_shared(
                        a_desc, a_place, barrier, a_stages.index(2 * stage + group)
                    )
                b_place = place_of(sample * b_step, t, first_n, B_TRANSPOSED)
                tma.async_copy_global_to_shared(
                    b_desc, b_place, barrier, b_stages.index(stage)
                )
                stage, phase = _next(stage, phase, STAGES)


@gluon.jit
def _multiply_and_square(
    mean_ptr,
    dot_ptr,
    stages,
    barriers,
    sizes,
    items,
    scale,
    strides,
    GROUP: gl.constexpr,
    ALONG_MEAN: gl.constexpr,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    GROUP_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_T: gl.constexpr,
):
    """Four warps: half of the rows of each tile. The turn to multiply is handed on when
    the first products of a sample are issued.
    """
    a_stages, b_stages = stages
    ready, done = barriers
    B, M, N, T, share = sizes
    stride_cs, stride_cm, stride_cn, stride_d = strides
    STAGES: gl.constexpr = b_stages.shape[0]
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    tiles_n = gl.cdiv(N, BLOCK_N)
    tiles = gl.cdiv(M, 2 * GROUP_M) * tiles_n
    steps = gl.cdiv(T, BLOCK_T)
    rows = GROUP * GROUP_M + gl.arange(0, GROUP_M, gl.SliceLayout(1, SUMS))
    columns = gl.arange(0, BLOCK_N, gl.SliceLayout(0, SUMS))
    stage = 0
    phase = 0
    gradient = gl.zeros([GROUP_M, BLOCK_N], gl.float32, SUMS)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        first_m, first_n, first_b, last_b = _walk(item, sizes, 2 * GROUP_M, BLOCK_N)
        split = (item // tiles).to(gl.int64)
        tile = item % tiles
        in_m = rows < M - first_m
        in_n = columns < N - first_n
        mean_ptrs = (
            mean_ptr
            + split * stride_cs
            + ((first_m + rows).to(gl.int64) * stride_cm)[:, None]
            + ((first_n + columns).to(gl.int64) * stride_cn)[None, :]
        )
        inside = in_m[:, None] & in_n[None, :]
        if ALONG_MEAN:
            mean = gl.load(mean_ptrs, mask=inside, other=0.0)
        else:
            mean = gl.zeros([GROUP_M, BLOCK_N], gl.float32, SUMS)
        for sample in range(first_b, last_b):
            for step in range(steps):
                a_place = a_stages.index(2 * stage + GROUP)
                a = matrix_of(a_place, GROUP_M, BLOCK_T, A_TRANSPOSED)
                b = matrix_of(b_stages.index(stage), BLOCK_T, BLOCK_N, B_TRANSPOSED)
                mbarrier.wait(ready.index(stage), phase)
                gradient = hopper.warpgroup_mma(
                    a, b, gradient, use_acc=step > 0, is_async=True
                )
                # This step's products stay in flight; those of the step before are done.
                gradient = hopper.warpgroup_mma_wait(1, deps=(gradient,))
                mbarrier.arrive(done.index(_before(stage, STAGES)), pred=step > 0)
                stage, phase = _next(stage, phase, STAGES)
            gradient = hopper.warpgroup_mma_wait(0, deps=(gradient,))
            mbarrier.arrive(done.index(_before(stage, STAGES)))
            if ALONG_MEAN:
                products = gradient * mean
            else:
                products = gradient * gradient
                mean += gradient
            dots = _sum_of_each_warp(products)
            warps = (tile * 2 + GROUP) * 4 + gl.arange(0, 4, dots.type.layout)
            gl.store(dot_ptr + warps.to(gl.int64) * stride_d + sample, dots)
        if not ALONG_MEAN:
            gl.store(mean_ptrs, mean * scale, mask=inside)


@gluon.jit(do_not_specialize=["T"])  # unrolled for T = 1, a wgmma has no fence
def _kernel(
    a_desc,
    b_desc,
    mean_ptr,
    dot_ptr,
    B,
    M,
    N,
    T,
    share,
    items,
    scale,
    a_step,
    b_step,
    stride_cs,
    stride_cm,
    stride_cn,
    stride_d,
    ALONG_MEAN: gl.constexpr,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    GROUP_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_T: gl.constexpr,
    STAGES: gl.constexpr,
):
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    a_stages = gl.allocate_shared_memory(
        a_desc.dtype, [2 * STAGES] + a_desc.block_shape, a_desc.layout
    )
    b_stages = gl.allocate_shared_memory(
        b_desc.dtype, [STAGES] + b_desc.block_shape, b_desc.layout
    )
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    passed = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    emptied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(passed.index(stage), count=1)
        mbarrier.init(emptied.index(stage), count=1)
    hopper.fence_async_shared()
    stages = a_stages, b_stages
    sizes = B, M, N, T, share
    strides = stride_cs, stride_cm, stride_cn, stride_d
    gl.warp_specialize(
        [
            (
                _multiply_and_square,
                (
                    mean_ptr,
                    dot_ptr,
                    stages,
                    (filled, passed),
                    sizes,
                    items,
                    scale,
                    strides,
                    0,
                    ALONG_MEAN,
                    A_TRANSPOSED,
                    B_TRANSPOSED,
                    GROUP_M,
                    BLOCK_N,
                    BLOCK_T,
                ),
            ),
            (
                _multiply_and_square,
                (
                    mean_ptr,
                    dot_ptr,
                    stages,
                    (passed, emptied),
                    sizes,
                    items,
                    scale,
                    strides,
                    1,
                    ALONG_MEAN,
                    A_TRANSPOSED,
                    B_TRANSPOSED,
                    GROUP_M,
                    BLOCK_N,
                    BLOCK_T,
                ),
            ),
            (
                _load,
                (
                    (a_desc, b_desc),
                    stages,
                    (filled, emptied),
                    sizes,
                    items,
                    (a_step, b_step),
                    A_TRANSPOSED,
                    B_TRANSPOSED,
                    GROUP_M,
                    BLOCK_N,
                    BLOCK_T,
                ),
            ),
        ],
        [4, 1],  # warps of the second group and of the one that loads
        [232, 40],  # their threads' registers
    )


def _reduce(x, dy, means, dots, config, scale=None):
    """One of the two launches, as _two_products.multiply_twice asks for them."""
    a, b, c = dy.mT, x, means
    if (
        x.shape[2] > dy.shape[2]
    ):  # a tile has 128 rows, and columns as few as are wanted
        a, b, c = x.mT, dy, means.mT
    (batch, m, t), n = a.shape, b.shape[2]
    block_n, block_t = config["BLOCK_N"], config["BLOCK_T"]
    items = len(means) * len(dots) // (_GROUPS * _GROUP_WARPS)
    a_stored, b_stored = stored(a), stored(b)
    _kernel[(min(items, multiprocessors(x.device)),)](
        described_operand(a, a_stored, _GROUP_M, block_t),
        described_operand(b, b_stored, block_t, block_n),
        c,
        dots,
        batch,
        m,
        n,
        t,
        triton.cdiv(batch, len(means)),
        items,
        scale or 0.0,
        a_stored.step,
        b_stored.step,
        *c.stride(),
        dots.stride(0),
        ALONG_MEAN=scale is None,
        A_TRANSPOSED=a_stored.transposed,
        B_TRANSPOSED=b_stored.transposed,
        GROUP_M=_GROUP_M,
        BLOCK_N=block_n,
        BLOCK_T=block_t,
        STAGES=config["num_stages"],
        num_warps=_GROUP_WARPS,
        num_stages=config["num_stages"],
    )


def _tiles(x, dy, block_n):
    """How many tiles a sample's gradient has."""
    sides = x.shape[2], dy.shape[2]
    return triton.cdiv(max(sides), _BLOCK_M) * triton.cdiv(min(sides), block_n)


def _parts(x, dy, config):
    """How many parts n of a sample is added up of: one for each warp of each tile."""
    return _tiles(x, dy, config["BLOCK_N"]) * _GROUPS * _GROUP_WARPS


def _candidates(x, dy, target):
    """Tiles that the shorter side fills to more than a half, each with the splits of
    the batch that may help, in order of estimated time.
    """
    batch, tokens, _ = x.shape
    shorter = min(x.shape[2], dy.shape[2])
    block_t = min(ROW_BYTES // 2, max(16, triton.next_power_of_2(tokens)))
    room = target.shared_bytes_per_block - BARRIERS_BYTES
    configs = []
    for block_n in (128, 64, 32, 16):
        if block_n >= max(17, 2 * shorter):
            continue
        for waves in _WAVES:
            wanted = waves * multiprocessors(x.device) // _tiles(x, dy, block_n)
            splits = max(1, min(batch, wanted), least_splits(batch))
            configs.append(
                {
                    "BLOCK_N": block_n,
                    "BLOCK_T": block_t,
                    "SPLITS": triton.cdiv(batch, triton.cdiv(batch, splits)),
                    "num_warps": _GROUP_WARPS,
                    "num_stages": min(8, room // ((_BLOCK_M + block_n) * block_t * 2)),
                }
            )
    return sorted(distinct(configs), key=lambda config: _steps(x, dy, config))


def _steps(x, dy, config):
    """What the busiest multiprocessor reads from L2, in steps of 128x128."""
    batch, tokens, _ = x.shape
    block_n, splits = config["BLOCK_N"], config["SPLITS"]
    items = splits * _tiles(x, dy, block_n)
    share = triton.cdiv(batch, splits) * triton.cdiv(tokens, config["BLOCK_T"])
    of_mean = _MEAN_STEPS * block_n / 128 * (1 if splits == 1 else 2)
    of_samples = share * (_BLOCK_M + block_n) / 256
    return triton.cdiv(items, multiprocessors(x.device)) * (of_samples + of_mean)


CONFIGS = Tunable(
    rule=lambda x, dy, target: _candidates(x, dy, target)[0], candidates=_candidates
)


def why_not(x, dy):
    if why := why_no_wgmma(x.device):
        return why
    if x.numel() == 0 or dy.numel() == 0:
        return None  # nothing is launched
    for name, operand in (("X", x), ("dY", dy)):
        if stored(operand) is None:
            return (
                f"TMA wants {name} with contiguous features or tokens, its base and "
                "other strides multiples of 16 bytes"
            )
    if max(*x.shape, *dy.shape) >= 1 << 31:
        return "a coordinate would pass 32 bits"
    return None


@wgrad_stats.variant(
    backend="triton",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    supports=why_not,
    builds_on="triton_fused",
    tunable=CONFIGS,
)
def gluon_fused(x, dy):
    return multiply_twice(x, dy, CONFIGS, _parts, _reduce)
