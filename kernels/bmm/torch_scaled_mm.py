"""torch._scaled_mm over the entries, scales of 1: the library's fp8 product, which
knows no batch.

Against `torch_upcast` it reads a byte for each number and multiplies fp8. Entries that
share B fold into one product; any others take a launch each, so a cold time of many is
the host's, between which the caches fill again. use_fast_accum=False has the library
move its sums to fp32 as it goes.
"""

import functools

import torch

from batchline.kernels.bmm import bmm, output_dtype
from batchline.kernels.bmm._folding import fold, why_not_folded
from batchline.kernels.bmm._scaled import why_not_scaled
from batchline.kernels.op import FP8


@functools.cache
def _one(device):
    return torch.ones((), device=device)


def _product(a, b, out):
    one = _one(a.device)
    torch._scaled_mm(
        a,
        b,
        scale_a=one,
        scale_b=one,
        out_dtype=out.dtype,
        use_fast_accum=False,
        out=out,
    )


@bmm.variant(
    backend="torch", dtypes=(FP8,), supports=why_not_scaled, builds_on="torch_upcast"
)
def torch_scaled_mm(a, b):
    shape = (a.shape[0], a.shape[1], b.shape[2])
    c = torch.empty(shape, dtype=output_dtype(a.dtype), device=a.device)
    if c.numel() == 0 or a.shape[2] == 0:
        return c.zero_()
    if why_not_folded(a, b) is None:
        _product(fold(a), b[0], fold(c))
    else:
        for entry in range(len(a)):
            _product(a[entry], b[entry], c[entry])
    return c
