"""What the rungs in Gluon share: where they run, descriptors with a layout, operands as
they lie, and C in parts.
"""

from batchline.kernels.architectures import WGMMA
from batchline.kernels.backends import GluonDescriptor, gl, gluon, interpreted
from batchline.kernels.target import target_of

BARRIERS_BYTES = 256  # of shared memory


def why_no_wgmma(device):
    """Why no kernel in Gluon that multiplies by wgmma runs there, or None."""
    target = target_of(device)
    if target.tensor_cores != WGMMA:
        return f"wgmma is of sm_90 alone, and this is {target}"
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
