"""The closed form for one token with d's product in tf32, as `torch_ghost_tf32` has it,
and with its bound for d.
"""

from batchline.kernels._torch.precision import tf32_products
from batchline.kernels.wgrad_stats import tolerance, wgrad_stats
from batchline.kernels.wgrad_stats._bounds import tf32_tolerance
from batchline.kernels.wgrad_stats._products import along_mean, mean_gradient
from batchline.kernels.wgrad_stats._rank_one import squared_norms, why_not


def _tolerance(expected, x, dy):
    return tf32_tolerance(tolerance(expected, x, dy), expected, x, dy)


@wgrad_stats.variant(
    backend="torch",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    supports=why_not,
    builds_on="torch_rank_one",
    tolerance=_tolerance,
    example=("linear_512_T1", 64),
)
def torch_rank_one_tf32(x, dy):
    mean = mean_gradient(x, dy)
    with tf32_products():
        return mean, squared_norms(x, dy), along_mean(x, dy, mean)
