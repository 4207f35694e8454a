"""One token a sample: its gradient is dy xᵀ, of rank one, so n_b = ‖x_b‖²·‖dy_b‖² and nothing of size O·I is needed.

The closed form of ghost norms at T = 1 (Goodfellow, arXiv:1510.01799): no Gram, and no sum that could cancel.
"""
import torch

from kernels.statistics import accumulator
from kernels.wgrad_stats import wgrad_stats
from kernels.wgrad_stats._products import along_mean, mean_gradient


def why_not(x, dy):
    return None if x.shape[1] == 1 else f"{x.shape[1]} tokens a sample: its gradient has rank one for a single token"


@wgrad_stats.variant(backend="torch", supports=why_not, builds_on="torch_ghost", example=("linear_512_T1", 64))
def torch_rank_one(x, dy):
    dtype = accumulator(x.dtype)
    # The squares of norms, not the norm of the product: one square could overflow where the other makes up for it.
    n = (torch.linalg.vector_norm(x[:, 0], dim=1, dtype=dtype)
         * torch.linalg.vector_norm(dy[:, 0], dim=1, dtype=dtype)).square()
    mean = mean_gradient(x, dy)
    return mean, n, along_mean(x, dy, mean)
