"""torch.nn.functional.grouped_mm, each entry a group: the library's CUTLASS kernel for
mixtures of experts, in bf16.

A single launch, behind a small one that writes each group's pointers and sizes: what
the batch costs is on the device. It has kernels for bf16 on sm_90 and sm_100 alone, and
1,023 groups at most. Of fp16 and fp32, and elsewhere, PyTorch 2.13 calls torch.bmm for
it, which `torch_bmm` is already.
"""

import torch

from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._grouped import why_not_grouped


def _why_not(a, b):
    return why_not_grouped(a, b, "grouped_mm", capabilities=(9, 10))


@bmm.variant(
    backend="torch",
    dtypes=("bfloat16",),
    needs="cuda",
    supports=_why_not,
    builds_on="torch_bmm",
)
def torch_grouped_mm(a, b):
    return torch.nn.functional.grouped_mm(a, b)
