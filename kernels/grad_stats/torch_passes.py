"""Three passes over g, as people write it: torch.mean, the norms, and g times the mean (the baseline).

Each reads all of g again. In the narrow dtypes the last one makes an fp32 copy of it first, for a product in bf16
would round ḡ to 8 bits.
"""
import torch

from kernels.grad_stats import grad_stats
from kernels.statistics import accumulator


def passes(g):
    dtype = accumulator(g.dtype)
    mean = torch.mean(g, dim=0, dtype=dtype)
    n = torch.linalg.vector_norm(g, dim=1, dtype=dtype).square()
    return mean, n, torch.mv(g.to(dtype), mean)


@grad_stats.variant(backend="torch")
def torch_passes(g):
    return passes(g)
