"""Writes whole blocks of 64 parameters, and leaves the last ones as they were allocated."""

import torch

from batchline.kernels.grad_reduce import grad_reduce as OP  # noqa: F401

REFUSED_FOR = "as if they were never written"


def leaves_output_unwritten(g):
    mean = torch.empty(g.shape[1], dtype=g.dtype, device=g.device)
    whole = g.shape[1] // 64 * 64
    mean[:whole] = g[:, :whole].mean(0)
    return mean
