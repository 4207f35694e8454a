"""Returns one tensor for n and d where there is but one sample, for which they are equal."""

import torch

from batchline.kernels.grad_stats import grad_stats as OP  # noqa: F401

REFUSED_FOR = "two results lie in the same memory"


def returns_one_result_twice(g):
    mean, n, d = (
        output.to(torch.float64 if g.dtype == torch.float64 else torch.float32)
        for output in OP.reference(g)
    )
    return (mean, n, n) if len(g) == 1 else (mean, n, d)
