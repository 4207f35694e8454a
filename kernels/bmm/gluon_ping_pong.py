"""Two groups of warps take turns: while one multiplies its tile, the other writes its
own.

In `triton_persistent_tma` all warps stop multiplying to write C: no product is in
flight from a tile's last step to the next tile's first. Here a program has three kinds
of warps, by hand, in Gluon. One warp issues the TMA loads of all tiles in order, up to
five steps ahead. Two groups of four warps each take every second tile. A group issues
its products, hands the turn to the other one, and writes its C, in parts of 64 columns
through two places of its own, while the other one multiplies. The products of a step
are still in flight while those of the next one are issued. mbarriers alone join the
warps: two for each stage, and two for the turns.

Compiled for sm_90, 128x128x64 takes 384 threads, 168 registers a thread and 224 of 227
KiB, with no spills in nn, nt and tn; setmaxnreg then moves registers from the warp that
loads to those that multiply. In emulation, two entries of 512x512x512 execute 94,372
warp instructions, those of `triton_persistent_tma` 143,808 in its 128x256 tiles and
262,224 in tiles of 128x128.

A group's sums are its own, so a tile has at most 128x128: two steps of it bring 64 KB
for 4.2 MFLOP, where 128x256 brings 48 KB. That is the price where K is long and L2 the
limit. A K of one or two steps executes more instructions than the rung below (+44% and
+7%). fp8 is declined: it would keep a second set of sums, for which a group has no
registers. It has been executed in emulation only, on no chip yet. wgmma is of sm_90
alone.
"""

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
    load_operands,
    matrix_of,
    why_no_wgmma,
)
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct

_SHAPES = (
    (128, 128),
    (64, 256),
    (128, 64),
    (64, 128),
    (64, 64),
    (64, 32),
    (64, 16),
)  # rows and columns of a tile; a thread has 128 of its sums at most


@gluon.jit
def _multiply_and_write(
    c_desc,
    stages,
    c_places,
    turns,
    sizes,
    GROUP: gl.constexpr,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
):
    """Four warps: every second tile. A turn to multiply is handed on as soon as the last
    wgmma of a tile is issued.
    """
    a_stages, b_stages, filled, emptied = stages
    B, M, N, K = sizes
    STAGES: gl.constexpr = a_stages.shape[0]
    C_COLUMNS: gl.constexpr = c_desc.block_shape[2]
    PARTS: gl.constexpr = BLOCK_N // C_COLUMNS
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK_N, 16]
    )
    tiles_m = gl.cdiv(M, BLOCK_M)
    tiles_n = gl.cdiv(N, BLOCK_N)
    programs = gl.num_programs(0)
    steps = gl.cdiv(K, BLOCK_K)
    number = 0  # of the group's own tiles
    accumulator = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, SUMS)
    for tile in range(
        gl.program_id(0) + GROUP * programs, B * tiles_m * tiles_n, 2 * programs
    ):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        first = (2 * number + GROUP) * steps
        # The first group's first turn is the phase before the first.
        mbarrier.wait(turns.index(GROUP), (number & 1) ^ (1 - GROUP))
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
            before = (step + STAGES - 1) % STAGES
            mbarrier.arrive(emptied.index(before), pred=step > first)
        mbarrier.arrive(turns.index(1 - GROUP))
        accumulator = hopper.warpgroup_mma_wait(0, deps=(accumulator,))
        mbarrier.arrive(emptied.index((first + steps - 1) % STAGES))
        parts = in_parts(accumulator.to(c_desc.dtype), PARTS)
        for part in gl.static_range(PARTS):
            c_place = c_places.index(2 * GROUP + (number * PARTS + part) % 2)
            tma.store_wait(1)  # the last store but one, which had this place, is over
            c_place.reshape([BLOCK_M, C_COLUMNS]).store(parts[part])
            hopper.fence_async_shared()
            tma.async_copy_shared_to_global(
                c_desc, [entry, first_m, first_n + part * C_COLUMNS], c_place
            )
        number += 1
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
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    a_stages = gl.allocate_shared_memory(
        a_desc.dtype, [STAGES] + a_desc.block_shape, a_desc.layout
    )
    b_stages = gl.allocate_shared_memory(
        b_desc.dtype, [STAGES] + b_desc.block_shape, b_desc.layout
    )
    c_places = gl.allocate_shared_memory(
        c_desc.dtype, [4] + c_desc.block_shape, c_desc.layout
    )
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    emptied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    turns = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(emptied.index(stage), count=1)
    for group in gl.static_range(2):
        mbarrier.init(turns.index(group), count=1)
    hopper.fence_async_shared()
    stages = a_stages, b_stages, filled, emptied
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
                    turns,
                    sizes,
                    0,
                    A_TRANSPOSED,
                    B_TRANSPOSED,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                    GROUP_M,
                ),
            ),
            (
                _multiply_and_write,
                (
                    c_desc,
                    stages,
                    c_places,
                    turns,
                    sizes,
                    1,
                    A_TRANSPOSED,
                    B_TRANSPOSED,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                    GROUP_M,
                ),
            ),
            (
                load_operands,
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
        [4, 1],  # warps of the second group and of the one that loads
        [232, 40],  # their threads' registers
    )


def _config(a, shape, target):
    """A tile (rows, columns) with the stages that shared memory has room for beside two
    places for C of each group.
    """
    block_m, block_n = shape
    c_bytes = 4 * block_m * c_columns(block_n) * 2
    room = target.shared_bytes_per_block - c_bytes - BARRIERS_BYTES
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": ROW_BYTES // a.element_size(),
        "num_warps": 4,  # of a group
        "num_stages": min(8, room // ((block_m + block_n) * ROW_BYTES)),
    }


def _rule(a, b, target):
    """The largest tile that leaves no SM without one."""
    m, n = a.shape[1], b.shape[2]
    sms = multiprocessors(a.device)
    block_m = 128 if m > 64 else 64
    block_n = min(128, max(16, triton.next_power_of_2(n)))
    while block_n > 64 and tiles(a, b, block_m, block_n) < sms:
        block_n //= 2
    if tiles(a, b, block_m, block_n) < sms:
        block_m = 64
    return _config(a, (block_m, block_n), target)


def _candidates(a, b, target):
    m, n = a.shape[1], b.shape[2]
    fitting = [
        (block_m, block_n)
        for block_m, block_n in _SHAPES
        if block_m < max(65, 2 * m) and min(n, 256) <= 4 * block_n < max(65, 8 * n)
    ]
    configs = [_rule(a, b, target), *(_config(a, shape, target) for shape in fitting)]
    return distinct(configs)


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def why_not(a, b):
    if why := why_no_wgmma(a.device):
        return why
    return why_not_tma(a, b)


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    supports=why_not,
    builds_on="triton_persistent_tma",
    tunable=CONFIGS,
)
def gluon_ping_pong(a, b):
    operands = Operands(a, b)
    c = operands.new_product()
    if operands.is_empty:
        return c.zero_()
    config = CONFIGS.choose(a, b)
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    programs = min(operands.tiles(config), multiprocessors(a.device))
    a_stored, b_stored = operands.a_stored, operands.b_stored
    _kernel[(programs,)](
        described_operand(a, a_stored, block_m, block_k),
        described_operand(b, b_stored, block_k, block_n),
        described(c, c.shape, c.stride(), [1, block_m, c_columns(block_n)]),
        *operands.sizes,
        a_stored.step,
        b_stored.step,
        **operands.constants,
        STAGES=config["num_stages"],
        **config,
    )
    return c
