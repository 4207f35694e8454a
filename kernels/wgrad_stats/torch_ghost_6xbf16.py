"""Ghost norms of fp32 inputs with every product from six bf16 products of parts, within
2⁻²⁴ of |a||b|.

Against `torch_ghost_3xbf16`, whose sums of few tokens are far from what the op asks:
one rounding of fp32 more than `torch_ghost`. By an H200's datasheet six products reach
165 TFLOP/s, FMAs 67.
"""

import functools

from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._bf16_parts import LEFT_OUT, ghost_of_parts
from batchline.kernels.wgrad_stats._bounds import ghost_parts_tolerance


@wgrad_stats.variant(
    backend="torch",
    dtypes=("float32",),
    needs="cuda",
    builds_on="torch_ghost_3xbf16",
    tolerance=functools.partial(ghost_parts_tolerance, left_out=LEFT_OUT[6]),
    detail=True,
)
def torch_ghost_6xbf16(x, dy):
    return ghost_of_parts(x, dy, products=6)
