"""torch.bmm into an output that is there, for K = 1: the library's own product.

In PyTorch 2.13 torch.bmm of K = 1 on CUDA goes to a Triton kernel of PyTorch's
(torch/_native), which has one tile rule for all dtypes. It replaces the form that
returns a new tensor, and no other: this one and torch.baddbmm stay the library's.
TORCH_DISABLE_NATIVE_JIT=1 switches the kernel off for a whole process. Of another K
this is `torch_bmm`.
"""

import torch

from batchline.kernels.bmm import bmm
from batchline.kernels.op import WIDE


def _why_not(a, b):
    return None if a.shape[2] == 1 else "K is not 1: torch_bmm is the library's too"


@bmm.variant(
    backend="torch",
    dtypes=WIDE,
    needs="cuda",
    supports=_why_not,
    builds_on="torch_bmm",
    example=("outer_512", 16),
)
def torch_bmm_out(a, b):
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    return torch.bmm(a, b, out=c)
