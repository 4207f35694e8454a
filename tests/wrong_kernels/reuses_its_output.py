"""Allocates its output once a shape, and overwrites it in every later call."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "a later call overwrote the result"
_outputs = {}


def reuses_its_output(a, b):
    shape = a.shape[0], a.shape[1], b.shape[2]
    if (shape, a.dtype) not in _outputs:
        _outputs[shape, a.dtype] = torch.empty(shape, dtype=a.dtype, device=a.device)
    return torch.bmm(a, b, out=_outputs[shape, a.dtype])
