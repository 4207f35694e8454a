"""What the rungs in Gluon share: where they run, descriptors with a layout, operands as
they lie and how they are brought, and C in parts.
"""

from batchline.kernels.architectures import TCGEN05, WGMMA
from batchline.kernels.backends import (
    GluonDescriptor,
    gl,
    gluon,
    interpreted,
    mbarrier,
    tma,
)
from batchline.kernels.bmm._descriptors import place
from batchline.kernels.target import target_of

BARRIERS_BYTES = 256  # of shared memory


def why_no_wgmma(device):
    """Why no kernel in Gluon that multiplies by wgmma runs there, or None."""
    target = target_of(device)
    if target.tensor_cores != WGMMA:
        return f"wgmma is of sm_90 alone, and this is {target}"
    return "Gluon has no interpreter" if interpreted("triton") else None


def why_no_tcgen05(device):
    """Why no kernel in Gluon that multiplies by tcgen05 runs there, or None."""
    target = target_of(device)
    if target.tensor_cores != TCGEN05:
        return f"tcgen05 is of compute capability 10.x alone, and this is {target}"
    return "Gluon has no interpreter" if interpreted("triton") else None


def c_columns(block_n):
    """Columns of C that leave at once: up to the 128 bytes that TMA swizzles."""
    return min(block_n, 64)


def described_operand(operand, lies, rows, columns, split=None):
    """The descriptor of tiles [rows, columns] of an operand that lies as `stored` says;
    see `described`.
    """
    block = [1, columns, rows] if lies.transposed else [1, rows, columns]
    if split is not None and lies.transposed:
        split = split[::-1]
    return described(operand, lies.shape, lies.strides, block, split)


def described(tensor, shape, strides, block, split=None):
    """A descriptor for TMA of a tensor with three dimensions, in blocks of this shape.

    split: for two blocks of a cluster, which of the last two dimensions lies half in
    each, with 1 for it and 0 for the other. With (0, 0) each has the whole.
    """
    dtype = {1: gl.int8, 2: gl.float16, 4: gl.float32}[tensor.element_size()]
    by_block = None if split is None else [[0, *split]]
    layout = gl.NVMMASharedLayout.get_default_for(block, dtype, cga_layout=by_block)
    return GluonDescriptor(tensor, list(shape), list(strides), block, layout)


@gluon.jit
def place_of(entry, row, column, TRANSPOSED: gl.constexpr):
    """Where a tile of a matrix begins in its memory."""
    if TRANSPOSED:
        begins = (entry, column, row)
    else:
        begins = (entry, row, column)
    return begins


@gluon.jit
def matrix_of(
    stage, ROWS: gl.constexpr, COLUMNS: gl.constexpr, TRANSPOSED: gl.constexpr
):
    """The tile [ROWS, COLUMNS] that TMA has brought to a stage as it lay in memory."""
    if TRANSPOSED:
        tile = stage.reshape([COLUMNS, ROWS]).permute((1, 0))
    else:
        tile = stage.reshape([ROWS, COLUMNS])
    return tile


@gluon.jit
def load_operands(
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
    """Fills stage after stage with the operands of all of a program's tiles, in order.

    stages: of A and of B, and of each stage an mbarrier that is told when it is filled
    and one that is told when it is multiplied.
    """
    a_stages, b_stages, filled, emptied = stages
    B, M, N, K = sizes
    a_step, b_step = by_entry
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
                barrier, a_desc.block_type.nbytes + b_desc.block_type.nbytes
            )
            tma.async_copy_global_to_shared(
                a_desc, a_place, barrier, a_stages.index(stage)
            )
            tma.async_copy_global_to_shared(
                b_desc, b_place, barrier, b_stages.index(stage)
            )
            step += 1


@gluon.jit
def in_parts(c, PARTS: gl.constexpr):
    """The columns of C [M, N] as a tuple of `PARTS` tensors, from left to right. A
    thread has columns of each, so to split them moves nothing.
    """
    if PARTS == 1:
        return (c,)
    else:
        HALF_N: gl.constexpr = c.shape[1] // 2
        halves = c.reshape([c.shape[0], 2, HALF_N]).permute((0, 2, 1))
        left, right = halves.split()
        return in_parts(left, PARTS // 2) + in_parts(right, PARTS // 2)
