"""Scales lie in tensor memory beside the sums: the tensor cores multiply by them, and no
warp sees one.

`bmm/gluon_tcgen05` multiplies fp8 without scales, and `torch_scaled_mm` is a launch for
each entry. Here a launch takes all entries. TMA brings the blocks of scales of a stage
with its operands, as they lie: what quantises has arranged them, so nothing is
rearranged in the time that is measured, here or by the library. The warp that issues
products has them copied by tcgen05.cp to columns of tensor memory that are the stage's
own. Each of the four products of a stage then names one of the four bytes of a column.
No warp waits in between: tcgen05 executes a copy before the products behind it. The
other way round the PTX ISA promises nothing, so columns are written again only after
the products that read them are over, which the stage's mbarriers say anyway.

Scales add 1.5 KB to the 48 KB of a step of 128x256x128. Two places for sums of 128x256
take all 512 columns, and a stage's scales take 12 more. So a tile of 256 columns has one
place, and writing C holds up the next tile. One of 128 has two places, and reads 16 KB
more for the same products. C leaves in parts of 32 columns, which leaves room for a
fourth stage. Compiled for sm_100 it has 256 threads and no spills. In emulation, tile
for tile of two entries of 512x512x512, it reads 3.1% more bytes than `bmm/gluon_tcgen05`
does without scales, in 9 to 10% more warp instructions. It has been executed in
emulation only, on no chip yet.
"""

from batchline.kernels.backends import (
    GluonDescriptor,
    gl,
    gluon,
    hopper,
    mbarrier,
    tma,
)
from batchline.kernels.bmm._descriptors import ROW_BYTES, Operands, place, tiles
from batchline.kernels.bmm._gluon import (
    BARRIERS_BYTES,
    described,
    described_operand,
    matrix_of,
    place_of,
)
from batchline.kernels.bmm.gluon_tcgen05 import why_not as why_not_tcgen05
from batchline.kernels.bmm.gluon_tcgen05 import write_tiles
from batchline.kernels.bmm_mxfp8 import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    BLOCK_SCALES,
    bmm_mxfp8,
    in_bytes,
    why_not_arranged,
)
from batchline.kernels.op import FP8
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct

blackwell = gl.nvidia.blackwell

_BLOCK_M = 128  # rows: the lanes of tensor memory
_C_COLUMNS = 32  # that leave at once
_WIDE, _NARROW = 256, 128  # columns of a tile
# A wide tile's C, 64 KB, is written while nothing is multiplied, and for each 128 of K it
# saves 16 KB: up to here no more than that.
_SHORT_K = 512


@gluon.jit
def _load(
    descs,
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
    """One warp: fills stage after stage with the operands of all tiles and their scales,
    in order.
    """
    a_desc, b_desc, a_scales_desc, b_scales_desc = descs
    a_stages, b_stages, a_scales_stages, b_scales_stages, filled, emptied = stages
    B, M, N, K = sizes
    a_step, b_step, a_scales_step, b_scales_step = by_entry
    STAGES: gl.constexpr = a_stages.shape[0]
    tiles_m = gl.cdiv(M, BLOCK_M)
    tiles_n = gl.cdiv(N, BLOCK_N)
    step = 0  # of all tiles, one after another
    for tile in range(gl.program_id(0), B * tiles_m * tiles_n, gl.num_programs(0)):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        for k in range(0, K, BLOCK_K):
            a_place = place_of(entry * a_step, first_m, k, A_TRANSPOSED)
            b_place = place_of(entry * b_step, k, first_n, B_TRANSPOSED)
            stage = step % STAGES
            barrier = filled.index(stage)
            # Of a barrier that is new, the phase before the first counts as complete.
            mbarrier.wait(emptied.index(stage), (step // STAGES & 1) ^ 1)
            mbarrier.expect(
                barrier,
                a_desc.block_type.nbytes
                + b_desc.block_type.nbytes
                + a_scales_desc.block_type.nbytes
                + b_scales_desc.block_type.nbytes,
            )
            tma.async_copy_global_to_shared(
                a_desc, a_place, barrier, a_stages.index(stage)
            )
            tma.async_copy_global_to_shared(
                b_desc, b_place, barrier, b_stages.index(stage)
            )
            tma.async_copy_global_to_shared(
                a_scales_desc,
                [entry * a_scales_step, first_m // 128, k // 128, 0, 0],
                barrier,
                a_scales_stages.index(stage),
            )
            tma.async_copy_global_to_shared(
                b_scales_desc,
                [entry * b_scales_step, first_n // 128, k // 128, 0, 0],
                barrier,
                b_scales_stages.index(stage),
            )
            step += 1


@gluon.jit
def _columns_for_scales(STAGES: gl.constexpr, LINES: gl.constexpr):
    """Tensor memory for the scales of each stage. Gluon has no scales in stages, so
    these are columns of 32 bits, each for 32 lines by 4 scales.
    """
    COLUMNS: gl.constexpr = LINES // 32
    LAYOUT: gl.constexpr = blackwell.TensorMemoryLayout([128, COLUMNS], col_stride=1)
    return blackwell.allocate_tensor_memory(gl.int32, [STAGES, 128, COLUMNS], LAYOUT)


@gluon.jit
def _copy_scales(stage, columns):
    """Have a stage's blocks of scales copied to its columns; the scales there."""
    BLOCKS: gl.constexpr = stage.shape[1]
    LAYOUT: gl.constexpr = blackwell.TensorMemoryScalesLayout()
    in_blocks = stage.reshape([BLOCKS, 32, 4, 4]).permute((0, 2, 1, 3))
    scales = columns._reinterpret(gl.uint8, [BLOCKS * 128, 4], LAYOUT)
    blackwell.tcgen05_copy(in_blocks.reshape([BLOCKS * 128, 4]), scales)
    return scales


@gluon.jit
def _multiply(
    stages,
    scales,
    sums,
    sizes,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
):
    """One warp: issues the copies of scales and the products of all tiles, into the
    places for sums in turns.
    """
    a_stages, b_stages, a_scales_stages, b_scales_stages, filled, emptied = stages
    a_scales, b_scales = scales
    accumulators, summed, written = sums
    B, M, N, K = sizes
    STAGES: gl.constexpr = a_stages.shape[0]
    PLACES: gl.constexpr = accumulators.shape[0]
    tiles_of_all = B * gl.cdiv(M, BLOCK_M) * gl.cdiv(N, BLOCK_N)
    step = 0  # of all tiles, one after another
    number = 0  # of the program's tiles
    for _ in range(gl.program_id(0), tiles_of_all, gl.num_programs(0)):
        place_of_sums = number % PLACES
        mbarrier.wait(written.index(place_of_sums), (number // PLACES & 1) ^ 1)
        accumulator = accumulators.index(place_of_sums)
        for k in range(0, K, BLOCK_K):
            stage = step % STAGES
            a = matrix_of(a_stages.index(stage), BLOCK_M, BLOCK_K, A_TRANSPOSED)
            b = matrix_of(b_stages.index(stage), BLOCK_K, BLOCK_N, B_TRANSPOSED)
            mbarrier.wait(filled.index(stage), step // STAGES & 1)
            a_scale = _copy_scales(a_scales_stages.index(stage), a_scales.index(stage))
            b_scale = _copy_scales(b_scales_stages.index(stage), b_scales.index(stage))
            blackwell.tcgen05_mma_scaled(
                a,
                b,
                accumulator,
                a_scale,
                b_scale,
                "e4m3",
                "e4m3",
                use_acc=k > 0,
                mbarriers=[emptied.index(stage)],
            )
            step += 1
        blackwell.tcgen05_commit(summed.index(place_of_sums))
        number += 1


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
    """Four warps: C of all tiles. Triton takes the lines of what a group of warps begins
    with for lines of the kernel's file, so it begins here.
    """
    write_tiles(c_desc, c_places, sums, sizes, BLOCK_M, BLOCK_N, GROUP_M)


@gluon.jit
def _kernel(
    a_desc,
    b_desc,
    a_scales_desc,
    b_scales_desc,
    c_desc,
    B,
    M,
    N,
    K,
    a_step,
    b_step,
    a_scales_step,
    b_scales_step,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
    PLACES: gl.constexpr,
):
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    SUMS: gl.constexpr = blackwell.TensorMemoryLayout([BLOCK_M, BLOCK_N], col_stride=1)
    a_stages = gl.allocate_shared_memory(
        a_desc.dtype, [STAGES] + a_desc.block_shape, a_desc.layout
    )
    b_stages = gl.allocate_shared_memory(
        b_desc.dtype, [STAGES] + b_desc.block_shape, b_desc.layout
    )
    a_scales_stages = gl.allocate_shared_memory(
        gl.uint8, [STAGES] + a_scales_desc.block_shape, a_scales_desc.layout
    )
    b_scales_stages = gl.allocate_shared_memory(
        gl.uint8, [STAGES] + b_scales_desc.block_shape, b_scales_desc.layout
    )
    c_places = gl.allocate_shared_memory(
        c_desc.dtype, [2] + c_desc.block_shape, c_desc.layout
    )
    accumulators = blackwell.allocate_tensor_memory(
        gl.float32, [PLACES, BLOCK_M, BLOCK_N], SUMS
    )
    a_scales = _columns_for_scales(STAGES, BLOCK_M)
    b_scales = _columns_for_scales(STAGES, BLOCK_N)
    filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    emptied = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    summed = gl.allocate_shared_memory(gl.int64, [PLACES, 1], BARRIER)
    written = gl.allocate_shared_memory(gl.int64, [PLACES, 1], BARRIER)
    for stage in gl.static_range(STAGES):
        mbarrier.init(filled.index(stage), count=1)
        mbarrier.init(emptied.index(stage), count=1)
    for number in gl.static_range(PLACES):
        mbarrier.init(summed.index(number), count=1)
        mbarrier.init(written.index(number), count=1)
    hopper.fence_async_shared()
    descs = a_desc, b_desc, a_scales_desc, b_scales_desc
    stages = a_stages, b_stages, a_scales_stages, b_scales_stages, filled, emptied
    sums = accumulators, summed, written
    scales = a_scales, b_scales
    sizes = B, M, N, K
    by_entry = a_step, b_step, a_scales_step, b_scales_step
    gl.warp_specialize(
        [
            (
                _write,
                (c_desc, c_places, sums, sizes, BLOCK_M, BLOCK_N, GROUP_M),
            ),
            (
                _load,
                (
                    descs,
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
                    scales,
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


def _described_scales(blocks, rows):
    """The descriptor of the scales of so many rows, and the step from an entry to the
    next: 0 where all share theirs.
    """
    codes = in_bytes(blocks).unflatten(
        3, (2, BLOCK_BYTES // 2)
    )  # TMA takes 256 at once
    step = int(len(codes) > 1 and codes.stride(0) != 0)
    codes = codes if step else codes[:1]
    box = [1, rows // BLOCK_ROWS, 1, *codes.shape[3:]]
    strides = [max(codes.stride(0), codes[0].numel()), *codes.stride()[1:]]
    layout = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=8, rank=5)
    return GluonDescriptor(codes, list(codes.shape), strides, box, layout), step


def _config(block_n, target):
    """A tile of so many columns, with the stages that shared memory has room for beside
    two places for a part of C.
    """
    c_bytes = 2 * _BLOCK_M * _C_COLUMNS * 2
    stage_bytes = (_BLOCK_M + block_n) * (ROW_BYTES + BLOCK_SCALES)
    room = target.shared_bytes_per_block - c_bytes - BARRIERS_BYTES
    return {
        "BLOCK_M": _BLOCK_M,
        "BLOCK_N": block_n,
        "BLOCK_K": ROW_BYTES,
        "PLACES": 1 if block_n == _WIDE else 2,  # for sums
        "num_warps": 4,  # that write, each its 32 lanes of tensor memory
        "num_stages": room // stage_bytes,
    }


def _rule(a, b, a_scales, b_scales, target):
    """A wide tile where K is deep and no SM is left without one."""
    is_deep = a.shape[2] > _SHORT_K
    wide_tiles = tiles(a, b, _BLOCK_M, _WIDE)
    is_wide = is_deep and wide_tiles >= multiprocessors(a.device)
    return _config(_WIDE if is_wide else _NARROW, target)


def _candidates(a, b, a_scales, b_scales, target):
    rule = _rule(a, b, a_scales, b_scales, target)
    return distinct([rule, _config(_WIDE, target), _config(_NARROW, target)])


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def why_not(a, b, a_scales, b_scales):
    return why_not_tcgen05(a, b) or why_not_arranged(a, b, a_scales, b_scales)


@bmm_mxfp8.variant(
    backend="triton",
    dtypes=(FP8,),
    needs="cuda",
    supports=why_not,
    builds_on="torch_scaled_mm",
    tunable=CONFIGS,
    architectures=(100,),
)
def gluon_block_scaled(a, b, a_scales, b_scales):
    operands = Operands(a, b)
    c = operands.new_product()
    if operands.is_empty:
        return c.zero_()
    config = CONFIGS.choose(a, b, a_scales, b_scales)
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    programs = min(operands.tiles(config), multiprocessors(a.device))
    a_stored, b_stored = operands.a_stored, operands.b_stored
    described_a_scales, a_scales_step = _described_scales(a_scales, block_m)
    described_b_scales, b_scales_step = _described_scales(b_scales, block_n)
    _kernel[(programs,)](
        described_operand(a, a_stored, block_m, block_k),
        described_operand(b, b_stored, block_k, block_n),
        described_a_scales,
        described_b_scales,
        described(c, c.shape, c.stride(), [1, block_m, _C_COLUMNS]),
        *operands.sizes,
        a_stored.step,
        b_stored.step,
        a_scales_step,
        b_scales_step,
        **operands.constants,
        STAGES=config["num_stages"],
        **config,
    )
    return c
