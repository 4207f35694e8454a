"""Adds zero times numbers that are not its own, as a tile does whose padding is multiplied: 0 · ∞ is NaN."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "as if they were never written"


def lets_padding_leak(a, b):
    if not a.numel() or not b.numel():
        return torch.bmm(a, b)
    return torch.bmm(a, b) + 0 * a.amax((1, 2), keepdim=True)
