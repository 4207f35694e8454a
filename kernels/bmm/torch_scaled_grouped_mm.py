"""torch.nn.functional.scaled_grouped_mm, each entry a group: the library's fp8 product
for a whole batch.

Against `torch_scaled_mm`, which is one launch for each entry: one launch, behind a small
one that writes the groups' pointers. Scales are by row of A and column of B, as its
kernel has them, and 1 here: one row of ones for all entries. use_fast_accum=False has
the kernel move its sums to fp32 as it goes. It has one for sm_90 alone, from rows of A
and columns of B, K and N in multiples of 16.
"""

import functools

import torch

from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._grouped import why_not_grouped
from batchline.kernels.bmm._scaled import why_not_scaled
from batchline.kernels.op import FP8


def _why_not(a, b):
    return why_not_grouped(
        a, b, "scaled_grouped_mm", capabilities=(9,)
    ) or why_not_scaled(a, b)


@functools.lru_cache(maxsize=8)
def _ones(count, device):
    return torch.ones(1, count, device=device)


@bmm.variant(
    backend="torch",
    dtypes=(FP8,),
    needs="cuda",
    supports=_why_not,
    builds_on="torch_scaled_mm",
)
def torch_scaled_grouped_mm(a, b):
    by_row = torch.nn.functional.ScalingType.RowWise
    scales = (
        _ones(size, a.device).expand(len(a), -1) for size in (a.shape[1], b.shape[2])
    )
    return torch.nn.functional.scaled_grouped_mm(
        a,
        b,
        next(scales),
        by_row,
        next(scales),
        by_row,
        output_dtype=torch.bfloat16,
        use_fast_accum=False,
    )
