"""Makes its op allow any error."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it replaced bmm.tolerance"
REFUSED_BY = "timing"


def widens_the_tolerance(a, b):
    OP.tolerance = lambda c, a, b: torch.full_like(c, float("inf"))
    return torch.zeros(
        a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device
    )
