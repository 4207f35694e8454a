"""Both blocks of a cluster share each product: of B each brings half of the columns.

In `gluon_tcgen05` a block brings all that its tile of 128x256 multiplies. On sm_100 the
tensor cores of two blocks can work on one product (cta_group::2). Here each block of the
pair keeps its 128 rows of A and of C, and brings 128 of B's 256 columns, which both
multiply. One thread of the leading block issues the products of both. The copies of both
blocks tell its mbarriers when operands are there, and a commit tells those of both blocks
when products are over.

A step of the pair's 256x256 brings 64 KB for 8.4 MFLOP: two thirds of the bytes for each
operation, from L2 and from shared memory. A stage takes 32 KB of a block, so there are
six of them, where there were four.

In Gluon a block arrives at no mbarrier of another block, so the leading one can't be told
by those that the other one has read its sums. The cluster's own barrier has a phase for
each tile, and nothing goes on before the sums of the last tile but one are read: loads run
two tiles ahead of C at most, which tells where K is short. It is of all warps of both
blocks, so none may be idle, and two load and two issue products. The compiler's own phase
of it, before columns of tensor memory are freed, is of the four warps alone that write:
the others arrive at it before they end.

Compiled for sm_100, 256x256x64 takes in each block 256 threads, 224 of 227 KiB and 512
columns of tensor memory, with no spills in nn, nt and tn. In emulation each byte of 24
entries of attention_scores is read 2.0 times in 569,016 warp instructions, by
`gluon_tcgen05` 3.0 times in 533,628.

With 128 rows or fewer the second block has none: right, with half of the chip. fp8 is the
same code. It has been executed in emulation only, on no chip yet. tcgen05 is of compute
capability 10.x alone. Of other versions of Triton than 3.7 it is not known where they put
the cluster's barrier.
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
    matrix_of,
    place_of,
    why_no_tcgen05,
)
from batchline.kernels.op import FP8
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct

blackwell = gl.nvidia.blackwell

_TRITON = "3.7."  # whose compiler's own use of the cluster's barrier is known
_BLOCKS = 2  # of a cluster
_BLOCK_M = 256  # rows of the pair: each block has 128 lanes of tensor memory
_COLUMNS = (256, 128, 64, 32)  # of a tile: a pair's are multiples of 32


# The phases of the cluster's barrier: in phase 0 both blocks have started, and phase 2 + t
# is over when the sums of the program's tile t are read.


@gluon.jit
def _next_phase():
    """Wait until a phase is over, and arrive in the next one."""
    hopper.cluster.wait()
    hopper.cluster.arrive()


@gluon.jit
def _leave():
    """Of warps that do not write: the phases up to the one in which the kernel ends."""
    _next_phase()
    _next_phase()


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
    """Two warps of each block: fill stage after stage with its part of the operands of
    all tiles, in order.
    """
    a_stages, b_stages, filled, emptied = stages
    B, M, N, K = sizes
    a_step, b_step = by_entry
    STAGES: gl.constexpr = a_stages.shape[0]
    tiles_m = gl.cdiv(M, BLOCK_M)
    tiles_n = gl.cdiv(N, BLOCK_N)
    step = 0  # of all tiles, one after another
    hopper.cluster.arrive()
    for tile in range(gl.program_id(0), B * tiles_m * tiles_n, gl.num_programs(0)):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        _next_phase()
        for k in range(0, K, BLOCK_K):
            a_place = place_of(entry * a_step, first_m, k, A_TRANSPOSED)
            b_place = place_of(entry * b_step, k, first_n, B_TRANSPOSED)
            stage = step % STAGES
            barrier = filled.index(stage)
            # Of a barrier that is new, the phase before the first counts as complete.
            mbarrier.wait(emptied.index(stage), (step // STAGES & 1) ^ 1)
            mbarrier.expect(barrier, a_desc.nbytes_per_cta + b_desc.nbytes_per_cta)
            tma.async_copy_global_to_shared(
                a_desc, a_place, barrier, a_stages.index(stage)
            )
            tma.async_copy_global_to_shared(
                b_desc, b_place, barrier, b_stages.index(stage)
            )
            step += 1
    _leave()


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
    """Two warps of each block, those of the leading one: issue the products of all tiles,
    into the two places for sums in turns.
    """
    a_stages, b_stages, filled, emptied = stages
    accumulators, summed = sums
    B, M, N, K = sizes
    STAGES: gl.constexpr = a_stages.shape[0]
    tiles_of_all = B * gl.cdiv(M, BLOCK_M) * gl.cdiv(N, BLOCK_N)
    step = 0  # of all tiles, one after another
    number = 0  # of the program's tiles
    hopper.cluster.arrive()
    for _ in range(gl.program_id(0), tiles_of_all, gl.num_programs(0)):
        place_of_sums = number % 2
        _next_phase()  # both blocks have read the sums of the last tile but one
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
    _leave()


@gluon.jit
def _write(
    c_desc,
    c_places,
    sums,
    sizes,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    GROUP_M: gl.constexpr,
):
    """Four warps of each block: its half of C of all tiles, a part of its columns at a
    time.
    """
    accumulators, summed = sums
    B, M, N, K = sizes
    C_COLUMNS: gl.constexpr = c_desc.block_shape[2]
    PARTS: gl.constexpr = BLOCK_N // C_COLUMNS
    SUMS: gl.constexpr = blackwell.TensorMemoryLayout(
        [BLOCK_M // 2, C_COLUMNS], col_stride=1, cta_split_num=(2, 1), two_ctas=True
    )
    ROWS: gl.constexpr = blackwell.get_tmem_reg_layout(
        gl.float32, (BLOCK_M, C_COLUMNS), SUMS, gl.num_warps(), cga_layout=[[1, 0]]
    )
    tiles_m = gl.cdiv(M, BLOCK_M)
    tiles_n = gl.cdiv(N, BLOCK_N)
    number = 0  # of the program's tiles
    hopper.cluster.arrive()
    _next_phase()
    for tile in range(gl.program_id(0), B * tiles_m * tiles_n, gl.num_programs(0)):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        place_of_sums = number % 2
        mbarrier.wait(summed.index(place_of_sums), number // 2 & 1)
        accumulator = accumulators.index(place_of_sums)
        for part in gl.static_range(PARTS):
            c = accumulator.slice(part * C_COLUMNS, C_COLUMNS).load(ROWS)
            if part == PARTS - 1:
                _next_phase()  # the block's sums are read
            c_place = c_places.index((number * PARTS + part) % 2)
            tma.store_wait(1)  # the last store but one, which had this place, is over
            c_place.reshape([BLOCK_M, C_COLUMNS]).store(c.to(c_desc.dtype))
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
    SUMS: gl.constexpr = blackwell.TensorMemoryLayout(
        [BLOCK_M // 2, BLOCK_N], col_stride=1, cta_split_num=(2, 1), two_ctas=True
    )
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
    filled = mbarrier.allocate_mbarrier(batch=STAGES, two_ctas=True)
    emptied = mbarrier.allocate_mbarrier(batch=STAGES)
    summed = mbarrier.allocate_mbarrier(batch=2)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(emptied.index(stage), count=1)
    for number in gl.static_range(2):
        mbarrier.init(summed.index(number), count=1)
    mbarrier.fence_init_release_cluster()
    stages = a_stages, b_stages, filled, emptied
    sums = accumulators, summed
    sizes = B, M, N, K
    by_entry = a_step, b_step
    gl.warp_specialize(
        [
            (
                _write,
                (c_desc, c_places, sums, sizes, BLOCK_M, BLOCK_N, GROUP_M),
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
        [
            2,
            2,
        ],  # warps that load and that issue products: a cluster's barrier is of all
        [40, 40],  # their threads' registers
    )


def _config(a, block_n, target):
    """A tile of so many columns, with the stages that shared memory has room for beside
    two places for C.
    """
    rows = _BLOCK_M // _BLOCKS
    c_bytes = 2 * rows * c_columns(block_n) * 2
    room = target.shared_bytes_per_block - c_bytes - BARRIERS_BYTES
    return {
        "BLOCK_M": _BLOCK_M,
        "BLOCK_N": block_n,
        "BLOCK_K": ROW_BYTES // a.element_size(),
        "num_ctas": _BLOCKS,
        "num_warps": 4,  # that write, each its 32 lanes of tensor memory
        "num_stages": min(8, room // ((rows + block_n // _BLOCKS) * ROW_BYTES)),
    }


def _rule(a, b, target):
    """The widest tile that leaves no pair without one."""
    pairs = multiprocessors(a.device) // _BLOCKS
    block_n = min(256, max(32, triton.next_power_of_2(b.shape[2])))
    while block_n > 64 and tiles(a, b, _BLOCK_M, block_n) < pairs:
        block_n //= 2
    return _config(a, block_n, target)


def _candidates(a, b, target):
    n = b.shape[2]
    fitting = [
        block_n for block_n in _COLUMNS if min(n, 256) <= 4 * block_n < max(129, 8 * n)
    ]
    return distinct(
        [_rule(a, b, target), *(_config(a, one, target) for one in fitting)]
    )


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def why_not(a, b):
    if why := why_no_tcgen05(a.device):
        return why
    if not triton.__version__.startswith(_TRITON):
        return f"it is for Triton {_TRITON}x, and this is {triton.__version__}"
    return why_not_tma(a, b)


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", FP8),
    needs="cuda",
    architectures=(100,),
    supports=why_not,
    builds_on="gluon_tcgen05",
    tunable=CONFIGS,
)
def gluon_pair(a, b):
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
        described_operand(b, b_stored, block_k, block_n, split=(0, 1)),
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
