"""Hides what is not a number: a loss that has become NaN goes on unseen."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "on nan: "


def turns_nan_into_zero(a, b):
    return torch.bmm(a, b).nan_to_num(0.0)
