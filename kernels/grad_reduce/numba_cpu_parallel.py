"""Threads over blocks of 1,024 columns: a block's sums stay in L1 while the rows stream
past once.

The inner loop adds one row's block to the sums (with AVX2 `vaddps` over 8 floats where
the row is contiguous). A block is summed by one thread in row order, so the result has
the same bits whatever the number of threads.
"""

import functools

import numpy as np
import torch

from batchline.kernels._cpu.jit import njit
from batchline.kernels._cpu.tasks import run_parallel
from batchline.kernels.backends import numba
from batchline.kernels.grad_reduce import grad_reduce

COLUMNS = 1024


def _kernel(g, mean):
    rows, parameters = g.shape
    for block in numba.prange((parameters + COLUMNS - 1) // COLUMNS):
        start = block * COLUMNS
        width = min(COLUMNS, parameters - start)
        sums = np.zeros(COLUMNS, mean.dtype)
        for row in range(rows):
            values = g[
                row, start : start + width
            ]  # a slice: Numba would test a computed index for its sign each time
            for column in range(width):
                sums[column] += values[column]
        for column in range(width):
            mean[start + column] = sums[column] / rows


@functools.cache
def _compiled(dtype, layout):
    """One compilation for rows side by side ("C"), whose loads are vectors, and one for
    any other strides ("A"): Numba's own choice would be a third for columns.
    """
    element = numba.from_dtype(dtype)
    rows, mean = numba.types.Array(element, 2, layout), numba.types.Array(
        element, 1, "C"
    )
    return njit(numba.void(rows, mean), parallel=True)(_kernel)


@grad_reduce.variant(backend="numba_cpu", dtypes=("float32", "float64"), needs="cpu")
def numba_cpu_parallel(g):
    mean = torch.empty(g.shape[1], dtype=g.dtype)
    if g.shape[0] == 0:
        return mean.fill_(float("nan"))
    if g.shape[1]:
        result = mean.numpy()
        kernel = _compiled(result.dtype, "C" if g.is_contiguous() else "A")
        run_parallel(kernel, g.detach().numpy(), result)
    return mean
