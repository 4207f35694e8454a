"""Three passes over g, as people write it: torch.mean, the norms, and g times the mean (the baseline).

Each reads all of g again. In the narrow dtypes the last one makes an fp32 copy of it first, for a product in bf16
would round ḡ to 8 bits. On a CPU vector_norm keeps one running sum for each lane of a vector, over all P: the fastest
of torch's ways to a norm, and of seven million parameters too far off for the op's own bound, so it is held to that of
a sum in any order.
"""
import functools

import torch

from kernels.grad_stats import grad_stats, tolerance
from kernels.statistics import accumulator, summed_in_any_order


def passes(g):
    dtype = accumulator(g.dtype)
    mean = torch.mean(g, dim=0, dtype=dtype)
    n = torch.linalg.vector_norm(g, dim=1, dtype=dtype).square()
    return mean, n, torch.mv(g.to(dtype), mean)


@grad_stats.variant(backend="torch", tolerance=functools.partial(tolerance, error_of_sum=summed_in_any_order))
def torch_passes(g):
    return passes(g)
