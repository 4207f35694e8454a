"""fp8 operands widened to bf16, which holds every one of their numbers, and torch.bmm
of those.

PyTorch has no batched product for fp8 that takes any sizes and layouts, so this is what
is there on every machine: one product for all entries, behind a pass over each operand
that reads a byte and writes two for each number. Sums are fp32, as for bf16. An operand
that all entries share is widened once.
"""

import torch

from batchline.kernels.bmm import bmm
from batchline.kernels.op import FP8


def _widened(tensor):
    if len(tensor) > 1 and tensor.stride(0) == 0:
        return tensor[:1].to(torch.bfloat16).expand(tensor.shape)
    return tensor.to(torch.bfloat16)


@bmm.variant(backend="torch", dtypes=(FP8,), builds_on="torch_bmm")
def torch_upcast(a, b):
    return torch.bmm(_widened(a), _widened(b))
