"""What the operands stand for, in fp32, and torch.bmm of those (the baseline).

It runs on every machine. An element times its scale is exact in fp32 unless it passes
2^128: bf16 holds less of what is subnormal. So it reads a byte and writes four for each
number, and multiplies in fp32.
"""

import torch

from batchline.kernels.bmm_mxfp8 import OUTPUT, bmm_mxfp8, dequantised
from batchline.kernels.op import FP8


@bmm_mxfp8.variant(backend="torch", dtypes=(FP8,))
def torch_dequantised(a, b, a_scales, b_scales):
    left = dequantised(a, a_scales, torch.float32)
    right = dequantised(b.mT, b_scales, torch.float32)
    return torch.bmm(left, right.mT).to(OUTPUT)
