"""Replaces the kernel behind torch's own product by a slow one, and computes with another operator."""

import gc
import time

import torch
from torch import library as registry

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it left the kernels behind torch's operators changed"
REFUSED_BY = "timing"
_kept = []


def replaces_an_operator(a, b):
    if not gc.isenabled() and not _kept:
        _kept.append(registry.Library("aten", "IMPL"))
        _kept[0].impl("bmm", _slow, a.device.type.upper())
    return _product(a, b)


def _slow(a, b):
    time.sleep(2e-5)
    return _product(a, b)


def _product(a, b):
    return torch.baddbmm(a.new_zeros(()), a, b, beta=0)
