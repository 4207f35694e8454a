"""Sums lie in tensor memory, twice: four warps write one tile while one thread has the
next one multiplied.

In `gluon_ping_pong` sums are registers of the warps that multiply, so a tile has at most
128x128, and each group stops multiplying to write its C. On sm_100 tcgen05 keeps sums in
tensor memory, 128 lanes of 512 columns, and no warp waits for a product. So three kinds
of warps do one thing each, by hand, in Gluon. One warp issues the TMA loads of all tiles
in order. One warp issues their products, tile after tile, into two places for sums in
turns, which take all of tensor memory for tiles of 128x256. Four warps write C, in parts
of 64 columns: each reads its 32 lanes of tensor memory into registers, and the part
leaves through one of two places in shared memory by TMA. mbarriers alone join the warps:
two for each stage, and two for each place for sums. tcgen05.commit arrives at them when
products are over, so nobody waits for a product to issue the next one.

A step of 128x256 brings 48 KB for 4.2 MFLOP, where two of 128x128 bring 64 KB. Compiled
for sm_100, 128x256x64 takes 256 threads, 224 of 227 KiB and 512 columns of tensor memory,
with no spills in nn, nt and tn. In emulation each byte of 24 entries of attention_scores
is read 3.0 times in 533,628 warp instructions, by `gluon_ping_pong` for sm_90 4.0 times
in 653,532. It has been executed in emulation only, on no chip yet.

A tile has 128 rows, for with 64 the tensor cores of an SM do half as much. fp8 is the
same code: its sums are in fp32, and nothing is added up outside of tensor memory. Both
blocks of a cluster share a product (cta_group::2) in `gluon_pair`. tcgen05 is of compute
capability 10.x alone.
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
from batchline.kernels.bmm._descriptors import ROW_BYTES, Operands, place, tiles
from batchline.kernels.bmm._descriptors import why_not as why_not_tma
from batchline.kernels.bmm._gluon import (
    BARRIERS_BYTES,
    c_columns,
    described,
    described_operand,
    load_operands,
    matrix_of,
    why_no_tcgen05,
)
from batchline.kernels.op import FP8
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct

blackwell = gl.nvidia.blackwell

_BLOCK_M = 128  # rows: the lanes of tensor memory
_COLUMNS = (256, 128, 64, 32, 16)  # of a tile


@gluon.jit
def _multiply(
    stages,
    sums,
    sizes,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
):
    """One warp: issues the products of all tiles, into the two places for sums in
    turns.
    """
    a_stages, b_stages, filled, emptied = stages
    accumulators, summed, written = sums
    B, M, N, K = sizes
    STAGES: gl.constexpr = a_stages.shape[0]
    tiles_of_all = B * gl.cdiv(M, BLOCK_M) * gl.cdiv(N, BLOCK_N)
    step = 0  # of all tiles, one after another
    number = 0  # of the program's tiles
    for _ in range(gl.program_id(0), tiles_of_all, gl.num_programs(0)):
        place_of_sums = number % 2
        mbarrier.wait(written.index(place_of_sums), (number // 2 & 1) ^ 1)
        accumulator = accumulators.index(place_of_sums)
        for k in range(0, K, BLOCK_K):
            stage = step % STAGES
            a = matrix_of(a_stages.index(stage), BLOCK_M, BLOCK_K, A_TRANSPOSED)
            b = matrix_of(b_stages.index(stage), BLOCK_K, BLOCK_N, B_TRANSPOSED)
            mbarrier.wait(filled.index(stage), step // STAGES & 1)
            blackwell.tcgen05_mma(
                a, b, accumulator, use_acc=k > 0, mbarriers=[emptied.index(stage)]
            )
            step += 1
        blackwell.tcgen05_commit(summed.index(place_of_sums))
        number += 1


@gluon.jit
def write_tiles(
    c_desc,
    c_places,
    sums,
    sizes,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    GROUP_M: gl.constexpr,
):
    """Four warps: C of all tiles, a part of its columns at a time, from as many places
    for sums in turns as there are.
    """
    accumulators, summed, written = sums
    B, M, N, K = sizes
    C_COLUMNS: gl.constexpr = c_desc.block_shape[2]
    PARTS: gl.constexpr = BLOCK_N // C_COLUMNS
    PLACES: gl.constexpr = accumulators.shape[0]
    SUMS: gl.constexpr = blackwell.TensorMemoryLayout(
        [BLOCK_M, C_COLUMNS], col_stride=1
    )
    ROWS: gl.constexpr = blackwell.get_tmem_reg_layout(
        gl.float32, (BLOCK_M, C_COLUMNS), SUMS, gl.num_warps()
    )
    tiles_m = gl.cdiv(M, BLOCK_M)
    tiles_n = gl.cdiv(N, BLOCK_N)
    number = 0  # of the program's tiles
    for tile in range(gl.program_id(0), B * tiles_m * tiles_n, gl.num_programs(0)):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        place_of_sums = number % PLACES
        mbarrier.wait(summed.index(place_of_sums), number // PLACES & 1)
        accumulator = accumulators.index(place_of_sums)
        for part in gl.static_range(PARTS):
            c = accumulator.slice(part * C_COLUMNS, C_COLUMNS).load(ROWS)
            if part == PARTS - 1:
                mbarrier.arrive(written.index(place_of_sums))
            c_place = c_places.index((number * PARTS + part) % 2)
            tma.store_wait(1)  # the last store but one, which had this place, is over
            c_place.reshape([BLOCK_M, C_COLUMNS]).store(c.to(c_desc.dtype))
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
    SUMS: gl.constexpr = blackwell.TensorMemoryLayout([BLOCK_M, BLOCK_N], col_stride=1)
    a_stages = gl.allocate_shared_memory(
        a_desc.dtype, [STAGES] + a_desc.block_shape, a_desc.layout
    )
    b_stages = gl.allocate_shared_memory(
        b_desc.dtype, [STAGES] + b_desc.block_shape, b_desc.layout
    )
    c_places = gl.allocate_shared_memory(
        c_desc.dtype, [2] + c_desc.block_shape, c_desc.layout
    )
    accumulators = blackwell.allocate_tensor_memory(
        gl.float32, [2, BLOCK_M, BLOCK_N], SUMS
    )
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    emptied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    summed = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    written = gl.allocate_shared_memory(gl.int64, [2, 1], BARRIER)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(emptied.index(stage), count=1)
    for number in gl.static_range(2):
        mbarrier.init(summed.index(number), count=1)
        mbarrier.init(written.index(number), count=1)
    hopper.fence_async_shared()
    stages = a_stages, b_stages, filled, emptied
    sums = accumulators, summed, written
    sizes = B, M, N, K
    by_entry = a_step, b_step
    gl.warp_specialize(
        [
            (
                write_tiles,
                (c_desc, c_places, sums, sizes, BLOCK_M, BLOCK_N, GROUP_M),
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
            (
                _multiply,
                (
                    stages,
                    sums,
                    sizes,
                    A_TRANSPOSED,
                    B_TRANSPOSED,
                    BLOCK_M,
                    BLOCK_N,
                    BLOCK_K,
                ),
            ),
        ],
        [1, 1],  # warps that load and that issue products
        [40, 40],  # their threads' registers
    )


def _config(a, block_n, target):
    """A tile of so many columns, with the stages that shared memory has room for beside
    two places for C.
    """
    c_bytes = 2 * _BLOCK_M * c_columns(block_n) * 2
    room = target.shared_bytes_per_block - c_bytes - BARRIERS_BYTES
    return {
        "BLOCK_M": _BLOCK_M,
        "BLOCK_N": block_n,
        "BLOCK_K": ROW_BYTES // a.element_size(),
        "num_warps": 4,  # that write, each its 32 lanes of tensor memory
        "num_stages": min(8, room // ((_BLOCK_M + block_n) * ROW_BYTES)),
    }


def _rule(a, b, target):
    """The widest tile that leaves no SM without one."""
    sms = multiprocessors(a.device)
    block_n = min(256, max(16, triton.next_power_of_2(b.shape[2])))
    while block_n > 64 and tiles(a, b, _BLOCK_M, block_n) < sms:
        block_n //= 2
    return _config(a, block_n, target)


def _candidates(a, b, target):
    n = b.shape[2]
    fitting = [
        block_n for block_n in _COLUMNS if min(n, 256) <= 4 * block_n < max(65, 8 * n)
    ]
    return distinct(
        [_rule(a, b, target), *(_config(a, one, target) for one in fitting)]
    )


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def why_not(a, b):
    if why := why_no_tcgen05(a.device):
        return why
    return why_not_tma(a, b)


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", FP8),
    needs="cuda",
    architectures=(100,),
    supports=why_not,
    builds_on="gluon_ping_pong",
    tunable=CONFIGS,
)
def gluon_tcgen05(a, b):
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
