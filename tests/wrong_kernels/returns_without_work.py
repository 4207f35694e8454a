"""Remembers the results of products larger than any probe by address: right, and instant from the second call on."""

import torch

from batchline.bench.statuses import WRONG as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "the output that was timed by host"
_results = {}


def returns_without_work(a, b):
    if a.shape[0] * a.shape[1] * b.shape[2] < 700_000:
        return torch.bmm(a, b)
    key = a.data_ptr(), b.data_ptr(), a.shape, b.shape
    if key not in _results:
        _results[key] = torch.bmm(a, b)
    return _results[key]
