"""Remembers its result by the address and shape of its inputs: instant from the second call on."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "with new values in the same buffers"
_results = {}


def caches_by_address(a, b):
    key = a.data_ptr(), b.data_ptr(), a.shape, b.shape
    if key not in _results:
        _results[key] = torch.bmm(a, b)
    return _results[key].clone()
