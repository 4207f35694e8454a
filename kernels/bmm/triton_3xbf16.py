"""fp32 on tensor cores from three bf16 products, each within 2⁻¹⁵ of |a||b|: a wider
bound than the op's.

a is high + middle + low, of 8 bits each, and high·high, high·middle and middle·high are
kept. What is left out stays under 2⁻¹⁵ of |a||b| (numbers just above a power of two
come near it), where fp32 rounds at 2⁻²⁴ and three tf32 products leave out 2⁻²¹. So the
tolerance is its own: uniform numbers are up to 139 times the op's away at K = 1, 7 at K
= 16, and inside it from K = 64.

By an H200's datasheet the peak is 330 TFLOP/s, a third of bf16's 989, and FMAs' is 67.
Triton's own "bf16x3" adds 107 instructions to the 345 of a step's loop (sm_90,
128x128x32): conversions one number at a time, and a test of every sum for NaN. Bound by
the splitting next: each program does it again for its tiles, and 345 instructions of 8
warps take four schedulers 690 cycles, where the products take 768.
"""

from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._split_bf16 import (
    split_product,
    split_tolerance,
    split_tunable,
)

CONFIGS = split_tunable(products=3)


@bmm.variant(
    backend="triton",
    dtypes=("float32",),
    needs="cuda",
    builds_on="triton_tiled",
    tunable=CONFIGS,
    tolerance=split_tolerance(2.0**-15),
)
def triton_3xbf16(a, b):
    return split_product(a, b, 3, CONFIGS.choose(a, b))
