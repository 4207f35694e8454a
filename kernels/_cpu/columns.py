"""Columns of g[B,P] on a CPU: a thread sums a block of them over all rows, and what it
needs again is still cached.

The kernel of grad_reduce's and grad_stats' Numba rungs. A task is a fixed range of
blocks, so the result has the same bits whatever the number of threads.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from batchline.kernels._cpu.rows import STORED, SUM, SUM_AND_SQUARES, walks
from batchline.kernels._cpu.tasks import compile_tasks, run, shares
from batchline.kernels._cpu.vectors import pointer
from batchline.kernels.backends import numba

TASKS = 16  # at most: they bound the partial sums, and share the work out evenly over a few threads
ALONE = (
    2**15
)  # elements that one thread reads in the time that it takes to start the others
FETCHED = (
    2**24
)  # bytes of g from which on the next rows and block are asked for early: less is in the caches


def mean_of(g: torch.Tensor, columns: int) -> torch.Tensor:
    """ḡ[P] in the accumulator's dtype, in blocks of so many columns. A g whose rows are
    not contiguous is copied.
    """
    mean, _ = _walk(g, columns, SUM, False)
    return mean


def statistics_of(
    g: torch.Tensor, columns: int, one_read: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """{ḡ, n, d} in the accumulator's dtype: block by block, or with all of a task's
    columns walked twice.
    """
    mean, partial = _walk(g, columns, SUM_AND_SQUARES, one_read)
    n, d = partial.sum(0).to(mean.dtype)
    return mean, n, d


def _walk(g, columns, mode, one_read):
    batch, parameters = g.shape
    if parameters and g.stride(1) != 1:
        g = g.contiguous()
    mean = g.new_empty(
        parameters, dtype=torch.float64 if g.dtype == torch.float64 else torch.float32
    )
    tasks = min(TASKS, -(-parameters // columns))
    partial = g.new_empty((tasks, 2, batch) if mode else 0, dtype=torch.float64)
    size = g.element_size()
    fetched = g.numel() * size >= FETCHED
    run(
        _compiled(g.dtype, mode, one_read),
        tasks,
        shares(tasks, g.numel() <= ALONE),
        (
            g.data_ptr(),
            g.stride(0) * size,
            batch,
            parameters,
            columns,
            tasks,
            mean.data_ptr(),
            partial.data_ptr(),
            fetched,
        ),
    )
    return mean, partial


@functools.cache
def _compiled(dtype, mode, one_read):
    """The tasks [first, last): sums, and in the same walk squares; then products with
    ḡ, block by block or at last.
    """
    size, wide = STORED[dtype].size, STORED[dtype].wide_size
    add, project = walks(dtype, mode)
    element = (numba.float64 if wide == 8 else numba.float32)(0)

    def task_range(
        first,
        last,
        g,
        stride,
        batch,
        parameters,
        columns,
        tasks,
        mean,
        partial,
        fetched,
    ):
        scratch = np.empty(columns * wide + 64, np.uint8)
        row = (scratch.ctypes.data + 63) // 64 * 64
        blocks = (parameters + columns - 1) // columns
        for task in range(first, last):
            start, end = blocks * task // tasks, blocks * (task + 1) // tasks
            norms = partial + 16 * task * batch
            if mode != SUM:
                zeros = pointer(norms, numba.float64(0))
                for index in range(2 * batch):
                    zeros[index] = 0
            for block in range(start, end):
                left = block * columns
                width = min(columns, parameters - left)
                mean_here, g_here = mean + wide * left, g + size * left
                means = pointer(mean_here, element)
                for column in range(width):
                    means[column] = 0
                add(g_here, stride, batch, width, row, mean_here, norms, fetched)
                for column in range(width):
                    means[column] /= batch
                if mode != SUM and one_read:
                    ahead = (
                        columns * size
                        if fetched and left + 2 * columns <= parameters
                        else 0
                    )
                    project(
                        g_here,
                        stride,
                        batch,
                        width,
                        mean_here,
                        norms + 8 * batch,
                        ahead,
                    )
            if mode != SUM and not one_read:
                for block in range(start, end):
                    left = block * columns
                    project(
                        g + size * left,
                        stride,
                        batch,
                        min(columns, parameters - left),
                        mean + wide * left,
                        norms + 8 * batch,
                        0,
                    )
        scratch[0] = (
            0  # its last use: Numba frees an array after that, whatever its address is used for
        )

    return compile_tasks(task_range, 9)
