"""torch._scaled_mm over the entries, scales in blocks of 1x32: the library's MXFP8
product, which knows no batch.

Against `torch_dequantised` it reads a byte for each number and multiplies fp8. It takes
the scales as they lie. Entries that share B, and whose rows fill blocks of scales, fold
into one product; any others take a launch each, so a cold time of many is the host's.
The library has it from sm_100 on.

torch.nn.functional.scaled_grouped_mm has MXFP8 too, but not of two batches: of one tall A
whose groups of rows have a B each, and where PyTorch is built with FBGEMM's kernels.
"""

import torch

from batchline.kernels.bmm._folding import fold, why_not_folded
from batchline.kernels.bmm._scaled import why_not_scaled
from batchline.kernels.bmm_mxfp8 import (
    BLOCK_ROWS,
    OUTPUT,
    bmm_mxfp8,
    why_not_arranged,
)
from batchline.kernels.op import FP8

_FIRST = 10  # the major compute capability from which the library multiplies MXFP8


def _why_not(a, b, a_scales, b_scales):
    if torch.cuda.is_available() and torch.cuda.get_device_capability()[0] < _FIRST:
        return "the library's MXFP8 product needs sm_100 or newer"
    return why_not_scaled(a, b) or why_not_arranged(a, b, a_scales, b_scales)


def _product(a, b, a_scales, b_scales, out):
    torch._scaled_mm(a, b, a_scales, b_scales, out_dtype=OUTPUT, out=out)


def _is_one_product(a, b):
    return why_not_folded(a, b) is None and a.shape[1] % BLOCK_ROWS == 0


@bmm_mxfp8.variant(
    backend="torch",
    dtypes=(FP8,),
    needs="cuda",
    supports=_why_not,
    builds_on="torch_dequantised",
)
def torch_scaled_mm(a, b, a_scales, b_scales):
    c = torch.empty((*a.shape[:2], b.shape[2]), dtype=OUTPUT, device=a.device)
    if c.numel() == 0 or a.shape[2] == 0:
        return c.zero_()
    if _is_one_product(a, b):
        _product(fold(a), b[0], a_scales.flatten(), b_scales[0], fold(c))
    else:
        for entry in range(len(a)):
            scales = a_scales[entry], b_scales[entry]
            _product(a[entry], b[entry], *scales, c[entry])
    return c
