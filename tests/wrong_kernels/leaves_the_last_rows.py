"""Writes whole tiles of 16 rows and no others."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "on ragged: "


def leaves_the_last_rows(a, b):
    c = torch.empty(a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device)
    whole = a.shape[1] // 16 * 16
    c[:, :whole] = torch.bmm(a[:, :whole], b)
    return c
