"""Writes its results into 24 buffers in turn: whoever keeps one finds another result in it later."""

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "a later call wrote into what an earlier one had returned"
REFUSED_BY = "timing"
_RING = 24
_rings = {}


def returns_a_ring_of_buffers(a, b):
    shape = a.shape[0], a.shape[1], b.shape[2]
    ring, calls = _rings.setdefault(
        (shape, a.dtype),
        ([torch.empty(shape, dtype=a.dtype) for _ in range(_RING)], [0]),
    )
    calls[0] += 1
    return torch.bmm(a, b, out=ring[calls[0] % _RING])
