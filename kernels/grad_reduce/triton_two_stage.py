"""Column blocks split over the batch write fp32 partial sums; a second launch adds them
in a fixed order.

A program reads [4, 1024] tiles of g into a 2-D accumulator that is reduced once, after
the loop: 16-byte loads and few registers. The split is chosen so that every
multiprocessor has work even when P is small; with enough columns there is no split and
one launch writes the mean. No atomics, so the same bits from run to run.
"""

import torch

from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_reduce import grad_reduce
from batchline.kernels.target import multiprocessors

ROWS, COLUMNS, PROGRAMS_PER_SM = 4, 1024, 4


@triton.jit
def _sum_kernel(
    g_ptr,
    out_ptr,
    B,
    P,
    stride_gb,
    stride_gp,
    rows_per_split,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    columns = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    split = tl.program_id(1)
    first = split * rows_per_split
    end = min(first + rows_per_split, B)
    offs_row = tl.arange(0, ROWS).to(tl.int64)
    in_columns = columns[None, :] < P
    accumulator = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for row in range(first, end, ROWS):
        rows = row + offs_row[:, None]
        g = tl.load(
            g_ptr + rows * stride_gb + columns[None, :] * stride_gp,
            mask=(rows < end) & in_columns,
            other=0.0,
        )
        accumulator += g.to(tl.float32)
    total = tl.sum(accumulator, axis=0) * scale
    tl.store(
        out_ptr + split.to(tl.int64) * P + columns,
        total.to(out_ptr.dtype.element_ty),
        mask=columns < P,
    )


@grad_reduce.variant(
    backend="triton", dtypes=("float16", "bfloat16", "float32"), needs="cuda"
)
def triton_two_stage(g):
    batch, parameters = g.shape
    mean = torch.empty(parameters, dtype=g.dtype, device=g.device)
    if batch == 0:
        return mean.fill_(float("nan"))
    if parameters == 0:
        return mean
    blocks = triton.cdiv(parameters, COLUMNS)
    splits = min(
        triton.cdiv(PROGRAMS_PER_SM * multiprocessors(g.device), blocks),
        triton.cdiv(batch, ROWS),
    )
    tile = {"ROWS": ROWS, "COLUMNS": COLUMNS, "num_warps": 4}
    if splits == 1:
        _sum_kernel[(blocks, 1)](
            g, mean, batch, parameters, *g.stride(), batch, 1 / batch, **tile
        )
        return mean
    rows_per_split = triton.cdiv(batch, splits)
    splits = triton.cdiv(batch, rows_per_split)
    partial = torch.empty((splits, parameters), dtype=torch.float32, device=g.device)
    _sum_kernel[(blocks, splits)](
        g, partial, batch, parameters, *g.stride(), rows_per_split, 1.0, **tile
    )
    _sum_kernel[(blocks, 1)](
        partial, mean, splits, parameters, *partial.stride(), splits, 1 / batch, **tile
    )
    return mean
