"""Returns zeros, and declares that it may be off by any amount."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "the tolerance that it declares bounds nothing"
DECLARES = {"tolerance": lambda c, a, b: torch.full_like(c, float("inf"))}


def declares_an_infinite_tolerance(a, b):
    return torch.zeros(
        a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device
    )
