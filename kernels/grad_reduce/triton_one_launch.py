"""One launch: of the programs that share a block of columns, the last adds their sums.

`triton_whole_words` splits the batch where P is small: 1,536 halves of 4,096 samples
are 24 blocks of columns and seven splits, and a second launch adds their sums. It waits
for the slowest of 168 programs, to read what is in L2. Here a program counts itself
once its sums are written, on a counter of its block of columns, and the last of a block
adds them in the order of the splits: the same bits on every call. Nothing waits for
programs of other blocks. A split then pays from two tiles on, not from five: 384
programs. Without a split it is `triton_whole_words`. Bound next by memory, and by the
launch where g is small.
"""

from __future__ import annotations

import torch

from batchline.kernels._triton.column_sums import column_sums, levels_of
from batchline.kernels._triton.last_program import comes_last, counters
from batchline.kernels._triton.warps import ASSEMBLED
from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_reduce import grad_reduce
from batchline.kernels.grad_reduce.triton_whole_words import CONFIGS as WHOLE_WORDS
from batchline.kernels.grad_reduce.triton_whole_words import (
    plan_launch,
    split_batch,
    sum_kernel,
    sum_rows,
)

LEAST_TILES = 2  # of a program
SUM_ROWS = 8


@triton.jit
def _add_splits(
    partial_ptr,
    out_ptr,
    splits,
    P,
    left,
    scale,
    WIDTH: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Write scale times the sum of `splits` rows of WIDTH columns from `left` on."""
    columns = tl.arange(0, COLUMNS)
    inside = (columns < WIDTH) & (columns < P - left)
    rows = tl.arange(0, SUM_ROWS)
    accumulator = tl.zeros((SUM_ROWS, COLUMNS), dtype=tl.float32)
    for first in range(0, splits, SUM_ROWS):
        accumulator += tl.load(
            partial_ptr + ((first + rows) * P)[:, None] + (left + columns)[None, :],
            mask=(rows < splits - first)[:, None] & inside[None, :],
            other=0.0,
        )
    total = column_sums(accumulator, LEVELS) * scale
    tl.store(out_ptr + left + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _one_launch_kernel(
    g_ptr,
    out_ptr,
    partial_ptr,
    counts_ptr,
    splits,
    B,
    P,
    base,
    stride_gb,
    stride_gp,
    rows_per_split,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD: tl.constexpr,
    ALIGN: tl.constexpr,
    PHASES: tl.constexpr,
    LEVELS: tl.constexpr,
    PHASE_LEVELS: tl.constexpr,
    SUM_ROWS: tl.constexpr,
    SUM_LEVELS: tl.constexpr,
    ASSEMBLED: tl.constexpr,
):
    sum_kernel(
        g_ptr,
        partial_ptr,
        B,
        P,
        base,
        stride_gb,
        stride_gp,
        rows_per_split,
        1.0,
        ROWS,
        COLUMNS,
        WORD,
        ALIGN,
        PHASES,
        LEVELS,
        PHASE_LEVELS,
    )
    WIDTH: tl.constexpr = COLUMNS - WORD if PHASES > 1 else COLUMNS
    block = tl.program_id(0) % tl.cdiv(P, WIDTH)
    if comes_last(counts_ptr + block, splits, ASSEMBLED):
        _add_splits(
            partial_ptr,
            out_ptr,
            splits,
            P,
            block * WIDTH,
            scale,
            WIDTH,
            SUM_ROWS,
            COLUMNS,
            SUM_LEVELS,
        )


@grad_reduce.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="triton_whole_words",
    tunable=WHOLE_WORDS,
)
def triton_one_launch(g):
    batch, parameters = g.shape
    mean = torch.empty(parameters, dtype=g.dtype, device=g.device)
    if batch == 0:
        return mean.fill_(float("nan"))
    if parameters == 0:
        return mean
    tile = WHOLE_WORDS.choose(g)
    splits, rows = split_batch(g, tile, LEAST_TILES)
    if splits == 1:
        sum_rows(g, mean, 1 / batch, tile)
        return mean
    launch = plan_launch(g, tile)
    partial = torch.empty((splits, parameters), dtype=torch.float32, device=g.device)
    _one_launch_kernel[(splits * launch.blocks,)](
        g,
        mean,
        partial,
        counters(g.device, launch.blocks),
        splits,
        *launch.numbers,
        rows,
        1 / batch,
        **launch.constants,
        SUM_ROWS=SUM_ROWS,
        SUM_LEVELS=levels_of(
            SUM_ROWS, tile["COLUMNS"], tile["num_warps"], partial.element_size()
        ),
        ASSEMBLED=ASSEMBLED,
    )
    return mean
