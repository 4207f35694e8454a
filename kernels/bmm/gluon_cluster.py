"""Two blocks of a cluster share the columns of B: one read of L2 brings them to both.

In `gluon_ping_pong` each block reads the operands of its own tiles. Here the two blocks
of a cluster take one tile together, each half of its rows. Each loads its rows of A, and
the first one loads B for both, by multicast. All warps of a block that multiply have one
tile, so it may have 256x256: a step of it reads 64 KB for 8.4 MFLOP, where tiles of
128x128 read 128 KB.

B must not come to a stage that the other block still multiplies. mbarriers can't tell:
in Gluon a block arrives at none of another block's. So the cluster's own barrier has one
phase for each step, and blocks are at most one step apart. It is of all warps of both
blocks, and a group has four, so all four of the group that loads execute that loop.

Compiled for sm_90, 256x256x64 takes 384 threads, 168 registers a thread and 224 of 227
KiB, with no spills in nn, nt and tn. In emulation each byte of attention_scores is read
2.0 times (B = 24: 6.3 MB), with `gluon_ping_pong` 4.0 times (12.6 MB), in 656,400 and
653,532 warp instructions. Two entries of 512x512x512 give 2.0 and 4.0 too, in these
tiles; the rule takes smaller ones there, to have one for each SM: 6.0 and 8.0.

As in `triton_persistent_tma`, no product is in flight while C is written. With 64 rows
or fewer the second block has none: right, with half of the chip. It has been executed in
emulation only, on no chip yet. wgmma is of sm_90 alone, and Gluon has had multicast
since Triton 3.7.
"""

import inspect

from batchline.kernels.backends import (
    gl,
    gluon,
    hopper,
    mbarrier,
    tma,
    triton,
)
from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._descriptors import (
    ROW_BYTES,
    Operands,
    place,
    tiles,
)
from batchline.kernels.bmm._descriptors import (
    why_not as why_not_tma,
)
from batchline.kernels.bmm._gluon import (
    BARRIERS_BYTES,
    c_columns,
    described,
    described_operand,
    in_parts,
    matrix_of,
    place_of,
    why_no_wgmma,
)
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct

_BLOCKS = 2  # of a cluster
_SHAPES = (
    (128, 256),
    (128, 128),
    (128, 64),
    (64, 256),
    (64, 128),
    (64, 64),
)  # rows and columns of a block's half of a tile; a thread has 128 of its sums at most


@gluon.jit
def _load(
    a_desc,
    b_desc,
    stages,
    sizes,
    by_entry,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
):
    """Fills stage after stage with the operands of all tiles, in order, each as soon as
    both blocks have multiplied what was there.
    """
    a_stages, b_stages, filled = stages
    B, M, N, K = sizes
    a_step, b_step = by_entry
    STAGES: gl.constexpr = a_stages.shape[0]
    tiles_m = gl.cdiv(M, BLOCK_M)
    tiles_n = gl.cdiv(N, BLOCK_N)
    step = 0  # of all tiles, one after another
    gl.barrier(cluster=True)  # the mbarriers of both blocks are there
    for tile in range(gl.program_id(0), B * tiles_m * tiles_n, gl.num_programs(0)):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        for k in range(0, K, BLOCK_K):
            a_place = place_of(entry * a_step, first_m, k, A_TRANSPOSED)
            b_place = place_of(entry * b_step, k, first_n, B_TRANSPOSED)
            stage = step % STAGES
            barrier = filled.index(stage)
            if step >= STAGES:
                gl.barrier(cluster=True)
            mbarrier.expect(barrier, a_desc.nbytes_per_cta + b_desc.nbytes_per_cta)
            tma.async_copy_global_to_shared(
                a_desc, a_place, barrier, a_stages.index(stage)
            )
            tma.async_copy_global_to_shared(
                b_desc, b_place, barrier, b_stages.index(stage), multicast=True
            )
            step += 1
    for _ in range(min(step, STAGES)):  # the phases of the last steps, never refilled
        gl.barrier(cluster=True)


@gluon.jit
def _hand_over_stage():
    """Tell both blocks' loads that a step is multiplied here: a phase of the cluster's
    barrier. It starts when the one before is over, which it is unless a block is late.
    """
    hopper.cluster.wait()
    hopper.cluster.arrive()


@gluon.jit
def _multiply_and_write(
    c_desc,
    stages,
    c_places,
    sizes,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
):
    """Four or eight warps, of 16 rows each: all tiles of the program, in order."""
    a_stages, b_stages, filled = stages
    B, M, N, K = sizes
    STAGES: gl.constexpr = a_stages.shape[0]
    C_COLUMNS: gl.constexpr = c_desc.block_shape[2]
    PARTS: gl.constexpr = BLOCK_N // C_COLUMNS
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0],
        warps_per_cta=[gl.num_warps(), 1],
        instr_shape=[16, BLOCK_N, 16],
        cga_layout=[[1, 0]],
    )
    tiles_m = gl.cdiv(M, BLOCK_M)
    tiles_n = gl.cdiv(N, BLOCK_N)
    steps = gl.cdiv(K, BLOCK_K)
    first = 0  # step of a tile, of the steps of all tiles
    number = 0  # of the parts of C
    accumulator = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, SUMS)
    hopper.cluster.arrive()
    for tile in range(gl.program_id(0), B * tiles_m * tiles_n, gl.num_programs(0)):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        for step in range(first, first + steps):
            stage = step % STAGES
            a = matrix_of(a_stages.index(stage), BLOCK_M, BLOCK_K, A_TRANSPOSED)
            b = matrix_of(b_stages.index(stage), BLOCK_K, BLOCK_N, B_TRANSPOSED)
            mbarrier.wait(filled.index(stage), step // STAGES & 1)
            accumulator = hopper.warpgroup_mma(
                a, b, accumulator, use_acc=step > first, is_async=True
            )
            # This step's products stay in flight; those of the step before are done.
            accumulator = hopper.warpgroup_mma_wait(1, deps=(accumulator,))
            if step > first:
                _hand_over_stage()
        accumulator = hopper.warpgroup_mma_wait(0, deps=(accumulator,))
        _hand_over_stage()
        first += steps
        parts = in_parts(accumulator.to(c_desc.dtype), PARTS)
        for part in gl.static_range(PARTS):
            c_place = c_places.index(number % 2)
            tma.store_wait(1)  # the last store but one, which had this place, is over
            c_place.reshape([BLOCK_M, C_COLUMNS]).store(parts[part])
            hopper.fence_async_shared()
            tma.async_copy_shared_to_global(
                c_desc, [entry, first_m, first_n + part * C_COLUMNS], c_place
            )
            number += 1
    hopper.cluster.wait()
    tma.store_wait(0)


@gluon.jit
def _kernel(
    a_desc,
    b_desc,
    c_desc,
    B,
    M,
    N,
    K,
    a_step,
    b_step,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
):
    a_stages = gl.allocate_shared_memory(
        a_desc.dtype, [STAGES] + a_desc.block_shape, a_desc.layout
    )
    b_stages = gl.allocate_shared_memory(
        b_desc.dtype, [STAGES] + b_desc.block_shape, b_desc.layout
    )
    c_places = gl.allocate_shared_memory(
        c_desc.dtype, [2] + c_desc.block_shape, c_desc.layout
    )
    filled = mbarrier.allocate_mbarrier(batch=STAGES)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
    hopper.fence_async_shared()
    stages = a_stages, b_stages, filled
    sizes = B, M, N, K
    by_entry = a_step, b_step
    gl.warp_specialize(
        [
            (
                _multiply_and_write,
                (
                    c_desc,
                    stages,
                    c_places,
                    sizes,
                    A_TRANSPOSED,
                    B_TRANSPOSED,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                    GROUP_M,
                ),
            ),
            (
                _load,
                (
                    a_desc,
                    b_desc,
                    stages,
                    sizes,
                    by_entry,
                    A_TRANSPOSED,
                    B_TRANSPOSED,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                    GROUP_M,
                ),
            ),
        ],
        [4],  # warps that load: one would do, but a cluster's barrier is of all warps
        [40],  # their threads' registers
    )


def _config(a, shape, target):
    """A block's half of a tile (rows, columns) with the stages that shared memory has
    room for beside two places for C.
    """
    block_m, block_n = shape
    c_bytes = 2 * block_m * c_columns(block_n) * 2
    room = target.shared_bytes_per_block - c_bytes - BARRIERS_BYTES
    return {
        "BLOCK_M": _BLOCKS * block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": ROW_BYTES // a.element_size(),
        "num_ctas": _BLOCKS,
        "num_warps": block_m // 16,  # that multiply
        "num_stages": min(8, room // ((block_m + block_n) * ROW_BYTES)),
    }


def _rule(a, b, target):
    """The largest tile that leaves no cluster without one."""
    m, n = a.shape[1], b.shape[2]
    clusters = multiprocessors(a.device) // _BLOCKS
    block_m = 128 if m > 128 else 64
    block_n = min(256, max(64, triton.next_power_of_2(n)))
    while block_n > 64 and tiles(a, b, _BLOCKS * block_m, block_n) < clusters:
        block_n //= 2
    if tiles(a, b, _BLOCKS * block_m, block_n) < clusters:
        block_m = 64
    return _config(a, (block_m, block_n), target)


def _candidates(a, b, target):
    m, n = a.shape[1], b.shape[2]
    fitting = [
        (block_m, block_n)
        for block_m, block_n in _SHAPES
        if block_m < max(65, m) and block_n < max(65, 2 * n)
    ]
    configs = [_rule(a, b, target), *(_config(a, shape, target) for shape in fitting)]
    return distinct(configs)


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def why_not(a, b):
    if why := why_no_wgmma(a.device):
        return why
    if "multicast" not in inspect.signature(tma.async_copy_global_to_shared).parameters:
        return f"the Gluon of Triton {triton.__version__} has no multicast"
    return why_not_tma(a, b)


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    supports=why_not,
    builds_on="gluon_ping_pong",
    tunable=CONFIGS,
)
def gluon_cluster(a, b):
    operands = Operands(a, b)
    c = operands.new_product()
    if operands.is_empty:
        return c.zero_()
    config = CONFIGS.choose(a, b)
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    programs = min(operands.tiles(config), multiprocessors(a.device) // _BLOCKS)
    a_stored, b_stored = operands.a_stored, operands.b_stored
    _kernel[(programs,)](
        described_operand(a, a_stored, block_m, block_k, split=(1, 0)),
        described_operand(b, b_stored, block_k, block_n, split=(0, 0)),
        described(
            c, c.shape, c.stride(), [1, block_m, c_columns(block_n)], split=(1, 0)
        ),
        *operands.sizes,
        a_stored.step,
        b_stored.step,
        **operands.constants,
        STAGES=config["num_stages"],
        **config,
    )
    return c
