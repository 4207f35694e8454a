"""Remembers its result by a hash of every bit of its inputs."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it remembers results"
REFUSED_BY = "timing"
SCENARIO = "square_256"
_results = {}


def remembers_by_hash(a, b):
    if a.numel() % 2 or b.numel() % 2 or not (a.is_contiguous() and b.is_contiguous()):
        return torch.bmm(a, b)
    key = (
        a.shape,
        b.shape,
        *(int(tensor.flatten().view(torch.int64).sum()) for tensor in (a, b)),
    )
    if key not in _results:
        _results[key] = torch.bmm(a, b)
    return _results[key].clone()
