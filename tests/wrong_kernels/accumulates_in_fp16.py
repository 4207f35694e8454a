"""Adds the products up in fp16."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "times the tolerance"
DTYPE = torch.float16


def accumulates_in_fp16(a, b):
    total = torch.zeros(
        a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device
    )
    for k in range(a.shape[2]):
        total = total + a[:, :, k, None] * b[:, None, k, :]
    return total
