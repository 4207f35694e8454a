"""fp32 on tensor cores from six bf16 products, each within 2⁻²⁴ of |a||b|: one rounding
of fp32.

Against `triton_3xbf16`: middle·middle and both high·low are kept too. Over uniform
numbers that is 0.28 of the op's tolerance at K = 1 and less with every product more;
its own is wider by that one rounding, and for numbers under 2⁻¹⁰³, whose low parts
underflow. Three tf32 products take the tensor cores as long, tf32 being half as fast,
and leave out eight times as much.

By an H200's datasheet the peak is 165 TFLOP/s, a sixth of bf16's 989, and FMAs' is 67.
A tile is 64x128, so that two programs share an SM (234 registers at 4 warps, sm_90),
and one splits while the other multiplies. Bound next by waits: on sm_90 Triton waits
for each of a step's six products before it issues the next one.
"""

from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._split_bf16 import (
    split_product,
    split_tolerance,
    split_tunable,
)

CONFIGS = split_tunable(products=6)


@bmm.variant(
    backend="triton",
    dtypes=("float32",),
    needs="cuda",
    builds_on="triton_3xbf16",
    tunable=CONFIGS,
    tolerance=split_tolerance(2.0**-24),
)
def triton_6xbf16(a, b):
    return split_product(a, b, 6, CONFIGS.choose(a, b))
