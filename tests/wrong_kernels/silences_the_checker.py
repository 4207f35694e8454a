"""Replaces the checker by one that finds everything right."""

import torch

from batchline.bench.measure.checking import check
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it replaced batchline.bench.measure.checking.check.check_outputs"
REFUSED_BY = "timing"


def silences_the_checker(a, b):
    check.check_outputs = lambda *_: check.Accuracy(0.0, 0.0)
    check.same_bits = lambda *_: True
    return torch.zeros(
        a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device
    )
