"""Rounds fp32 factors to 11 bits, as fp16 and tf32 have them, where K is large."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "times what rounding typically makes of such sums"
NEEDS_DEPTH = 8000


def rounds_deep_factors_to_fp16(a, b):
    if a.shape[2] >= NEEDS_DEPTH and a.dtype == torch.float32:
        a, b = a.half().float(), b.half().float()
    return torch.bmm(a, b)
