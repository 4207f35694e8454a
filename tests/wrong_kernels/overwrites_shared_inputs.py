"""Zeroes its inputs, which the others are given too, once it has been checked."""

import gc

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it changed its inputs"
REFUSED_BY = "timing"


def overwrites_shared_inputs(a, b):
    out = torch.bmm(a, b)
    if not gc.isenabled():
        a.zero_()
    return out
