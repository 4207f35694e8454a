"""Three loops, rows of C over the threads: what one writes first, and the rung the
others are measured from.

The assembly multiplies and adds single numbers (`vmulss`, `vaddss`): the order of a sum
is the program's, so it can't be spread over the lanes of a vector. Every product costs
two loads, and every addition waits for the one before it, which is what bounds it.
"""

import functools

import torch

from batchline.kernels._cpu.jit import njit
from batchline.kernels._cpu.tasks import run_parallel
from batchline.kernels.backends import numba
from batchline.kernels.bmm import bmm


def _kernel(a, b, c):
    batch, m, n = c.shape
    for row in numba.prange(batch * m):
        entry, i = row // m, row % m
        for j in range(n):
            total = c.dtype.type(0)
            for k in range(a.shape[2]):
                total += a[entry, i, k] * b[entry, k, j]
            c[entry, i, j] = total


@functools.cache
def _compiled(dtype):
    """One compilation a dtype, for any strides of A and B: Numba's own choice would be
    one for each mix of layouts.
    """
    element = numba.from_dtype(dtype)
    strided, contiguous = numba.types.Array(element, 3, "A"), numba.types.Array(
        element, 3, "C"
    )
    return njit(numba.void(strided, strided, contiguous), parallel=True)(_kernel)


@bmm.variant(backend="numba_cpu", dtypes=("float32", "float64"), needs="cpu")
def numba_cpu_naive(a, b):
    c = torch.empty((a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype)
    if c.numel():
        result = c.numpy()
        run_parallel(
            _compiled(result.dtype), a.detach().numpy(), b.detach().numpy(), result
        )
    return c
