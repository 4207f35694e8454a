"""One token a sample: its gradient is dy xᵀ, of rank one, so n_b = ‖x_b‖²·‖dy_b‖² and
nothing of size O·I is needed.

The closed form of ghost norms at T = 1 (Goodfellow, arXiv:1510.01799): no Gram, and no
sum that could cancel.
"""

from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._products import along_mean, mean_gradient
from batchline.kernels.wgrad_stats._rank_one import squared_norms, why_not


@wgrad_stats.variant(
    backend="torch",
    supports=why_not,
    builds_on="torch_ghost",
    example=("linear_512_T1", 64),
)
def torch_rank_one(x, dy):
    mean = mean_gradient(x, dy)
    return mean, squared_norms(x, dy), along_mean(x, dy, mean)
