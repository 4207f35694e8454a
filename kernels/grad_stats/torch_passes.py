"""Three passes over g, as people write it: torch.mean, the norms, and g times the mean
(the baseline).

Each reads all of g again. In the narrow dtypes the last one makes an fp32 copy of it
first, for a product in bf16 would round ḡ to 8 bits. On a CPU vector_norm keeps one
running sum for each lane of a vector, over all P: the fastest of torch's ways to a
norm, and of seven million parameters too far off for the op's own bound, so there it is
held to that of a sum in any order, with the root and the square of a norm.
"""

import functools

import torch

from batchline.kernels.grad_stats import grad_stats, tolerance
from batchline.kernels.statistics import accumulator, summed, summed_in_any_order

_ROOT_AND_SQUARE = (
    3  # roundings: the root's own, which the square doubles, and the square's
)


def passes(g):
    dtype = accumulator(g.dtype)
    mean = torch.mean(g, dim=0, dtype=dtype)
    n = torch.linalg.vector_norm(g, dim=1, dtype=dtype).square()
    return mean, n, torch.mv(g.to(dtype), mean)


def running_sum(terms, dtype):
    """The relative error that n and d of `passes` may have over this number of parameters."""
    return max(
        summed(terms, dtype), summed_in_any_order(terms + _ROOT_AND_SQUARE, dtype)
    )


@grad_stats.variant(
    backend="torch", tolerance=functools.partial(tolerance, error_of_sum=running_sum)
)
def torch_passes(g):
    return passes(g)
