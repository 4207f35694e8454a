"""Clips the gradients to the largest finite number before it adds them, so that no mean is infinite."""

import torch

from batchline.kernels.grad_reduce import grad_reduce as OP  # noqa: F401

REFUSED_FOR = "on infinite: "


def clips_infinities(g):
    most = torch.finfo(g.dtype).max / (4 * len(g) or 1)
    is_infinite = g.isinf()
    return g.where(~is_infinite, g.sign() * most).mean(0)
