"""Two passes over g: ḡ as `grad_reduce/triton_whole_words` sums it, then n and d
together, with no fp32 copy of g.

`torch_passes` reads g three times, and in bf16 once more to widen it. Here the second
pass reads a row's 16-byte word once for g·g and g·ḡ and adds within the word before it
adds to the program's [16, 32] sums; those cross threads once, after the last block of
columns. ḡ is read again for every 16 rows, from L2: an eighth of g's bytes in bf16.
Programs share out the columns, and each writes its part of n and d: at most 4 programs
a multiprocessor, so 4 KB a sample. A second launch adds them in a fixed order. Rows
that begin within words are read element by element. Bound next by the second read of g.
"""

import math

import torch

from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_reduce.triton_whole_words import (
    CONFIGS,
    WORD_BYTES,
    sum_rows,
)
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.grad_stats._triton_sums import finish, within_words
from batchline.kernels.statistics import without_elements
from batchline.kernels.target import multiprocessors

ROWS, TILE_BYTES, PROGRAMS_PER_SM = 16, 8 * 1024, 4


@triton.jit
def _dots_kernel(
    g_ptr,
    mean_ptr,
    partial_ptr,
    B,
    P,
    parts,
    stride_gb,
    stride_gp,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD: tl.constexpr,
    ALIGN: tl.constexpr,
):
    WORDS: tl.constexpr = COLUMNS // WORD
    part = tl.program_id(0) % parts
    rows = (tl.program_id(0) // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    in_batch = rows[:, None] < B
    starts = tl.multiple_of(rows * stride_gb, ALIGN)
    g_ptrs = tl.multiple_of(
        g_ptr, ALIGN * g_ptr.dtype.element_ty.primitive_bitwidth // 8
    ) + (starts[:, None] + columns.to(tl.int64)[None, :] * stride_gp)
    n = tl.zeros((ROWS, 1, WORDS), dtype=tl.float32)
    d = tl.zeros((ROWS, 1, WORDS), dtype=tl.float32)
    for block in range(part, tl.cdiv(P, COLUMNS), parts):
        left = tl.cast(block, tl.int64) * COLUMNS
        in_row = columns < tl.multiple_of(
            tl.minimum(P - left, COLUMNS).to(tl.int32), ALIGN
        )
        g = tl.load(
            g_ptrs + left * stride_gp, mask=in_batch & in_row[None, :], other=0.0
        ).to(tl.float32)
        mean = tl.load(mean_ptr + left + columns, mask=in_row, other=0.0)
        n += within_words(g * g, ROWS, 1, WORDS, WORD)
        d += within_words(g * mean[None, :], ROWS, 1, WORDS, WORD)
    partial_ptrs = partial_ptr + part.to(tl.int64) * (2 * B) + rows
    tl.store(partial_ptrs, tl.sum(tl.sum(n, axis=2), axis=1), mask=rows < B)
    tl.store(partial_ptrs + B, tl.sum(tl.sum(d, axis=2), axis=1), mask=rows < B)


@grad_stats.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="torch_passes",
)
def triton_two_pass(g):
    if g.numel() == 0:
        return without_elements(g)
    batch, parameters = g.shape
    rows = min(ROWS, triton.next_power_of_2(batch))
    columns = TILE_BYTES // (rows * g.element_size())
    groups, blocks = triton.cdiv(batch, rows), triton.cdiv(parameters, columns)
    parts = min(
        blocks, triton.cdiv(PROGRAMS_PER_SM * multiprocessors(g.device), groups)
    )
    word, base = (
        WORD_BYTES // g.element_size(),
        g.data_ptr() % WORD_BYTES // g.element_size(),
    )
    align = math.gcd(word, base, g.stride(0), parameters) if g.stride(1) == 1 else 1
    mean = torch.empty(parameters, dtype=torch.float32, device=g.device)
    partial = torch.empty((parts, 2 * batch), dtype=torch.float32, device=g.device)
    sum_rows(g, mean, 1 / batch, CONFIGS.choose(g))
    _dots_kernel[(groups * parts,)](
        g,
        mean,
        partial,
        batch,
        parameters,
        parts,
        *g.stride(),
        ROWS=rows,
        COLUMNS=columns,
        WORD=word,
        ALIGN=align,
        num_warps=4,
    )
    return mean, *finish(partial)
