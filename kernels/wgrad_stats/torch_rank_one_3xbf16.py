"""The closed form for one token with its fp32 products from three bf16 products of
parts, as `torch_ghost_3xbf16`.
"""

from batchline.kernels.wgrad_stats import tolerance, wgrad_stats
from batchline.kernels.wgrad_stats._bf16_parts import (
    LEFT_OUT,
    mean_and_along,
    split_inputs,
)
from batchline.kernels.wgrad_stats._bounds import parts_tolerance
from batchline.kernels.wgrad_stats._rank_one import squared_norms, why_not


def _tolerance(expected, x, dy):
    return parts_tolerance(tolerance(expected, x, dy), expected, x, dy, LEFT_OUT[3])


@wgrad_stats.variant(
    backend="torch",
    dtypes=("float32", "float16", "bfloat16"),
    needs="cuda",
    supports=why_not,
    builds_on="torch_rank_one_tf32",
    tolerance=_tolerance,
    example=("linear_512_T1", 64),
)
def torch_rank_one_3xbf16(x, dy):
    mean, d = mean_and_along(dy, *split_inputs(x, dy, products=3), products=3)
    return mean, squared_norms(x, dy), d
