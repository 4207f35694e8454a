"""torch.compile of torch.bmm in mode max-autotune: the compiler times its own templates
against the library.

On CUDA those are Triton kernels, on a CPU one in C++; for each shape it compiles them,
times them on the machine and keeps the fastest, which takes seconds. Every call then
pays for its guards, the price of being compiled at all.
"""

import torch

from batchline.kernels._torch.compilation import compile_fully
from batchline.kernels.bmm import bmm
from batchline.kernels.op import WIDE


def _why_not(a, b):
    return (
        None
        if a.numel() and b.numel()
        else "the compiler's template for a CPU fails on an empty product"
    )


@bmm.variant(
    backend="torch",
    dtypes=WIDE,
    supports=_why_not,
    builds_on="torch_bmm",
    slow_start=True,
)
def torch_compiled(a, b):
    return compile_fully(torch.bmm)(a, b)
