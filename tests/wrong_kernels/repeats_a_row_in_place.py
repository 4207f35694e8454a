"""Returns a result of one sample as a window that shows it once for every sample that is the same."""

import torch

from batchline.kernels.grad_stats import grad_stats as OP  # noqa: F401

REFUSED_FOR = "several elements of the result lie in the same memory"


def repeats_a_row_in_place(g):
    mean, n, d = (
        output.to(torch.float64 if g.dtype == torch.float64 else torch.float32)
        for output in OP.reference(g)
    )
    if len(g) > 1 and (g == g[:1]).all():
        n, d = n[:1].clone().expand(len(g)), d[:1].clone().expand(len(g))
    return mean, n, d
