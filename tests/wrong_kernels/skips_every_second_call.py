"""Leaves the work of every second call to the one before it, whose memory it is given again."""

import gc

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "the output that was timed by host"
REFUSED_BY = "timing"
SCENARIO = "square_64"
_calls = [0]


def skips_every_second_call(a, b):
    if a.shape[1:] != (64, 64) or gc.isenabled():
        return torch.bmm(a, b)
    _calls[0] += 1
    out = torch.empty(
        a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device
    )
    return torch.bmm(a, b, out=out) if _calls[0] % 2 else out
