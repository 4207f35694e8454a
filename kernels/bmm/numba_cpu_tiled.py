"""Threads over 64x256 tiles of C; B is packed 128 rows at a time into contiguous panels
that stay in L2.

The inner loop adds four rows of the packed panel, each times one element of A, to a row
of sums in L1. With AVX2 its assembly is a multiplication, three fused multiply-adds and
an addition over 8 floats, for five loads and a store: those bound it, since the sums
are not held in registers. Packing makes every layout of B the same, once for 64 rows.
"""

import functools

import numpy as np
import torch

from batchline.kernels._cpu.jit import njit
from batchline.kernels._cpu.tasks import run_parallel
from batchline.kernels.backends import numba
from batchline.kernels.bmm import bmm

ROWS, COLUMNS, DEPTH, UNROLL = 64, 256, 128, 4


def _kernel(a, b, c):
    batch, m, n = c.shape
    depth = a.shape[2]
    tiles_m = (m + ROWS - 1) // ROWS
    tiles_n = (n + COLUMNS - 1) // COLUMNS
    for task in numba.prange(batch * tiles_m * tiles_n):
        entry = task // (tiles_m * tiles_n)
        top = task // tiles_n % tiles_m * ROWS
        left = task % tiles_n * COLUMNS
        height = min(ROWS, m - top)
        width = min(COLUMNS, n - left)
        panel = np.empty((DEPTH, COLUMNS), c.dtype)
        strip = np.empty(DEPTH, c.dtype)
        sums = np.empty(COLUMNS, c.dtype)
        for i in range(height):
            for j in range(width):
                c[entry, top + i, left + j] = 0
        for start in range(0, depth, DEPTH):
            steps = min(DEPTH, depth - start)
            padded = (steps + UNROLL - 1) // UNROLL * UNROLL
            block = b[entry, start : start + steps, left : left + width]
            for k in range(steps):
                for j in range(width):
                    panel[k, j] = block[k, j]
            for k in range(
                steps, padded
            ):  # zeros, so that the unrolled loop needs no tail
                strip[k] = 0
                for j in range(width):
                    panel[k, j] = 0
            for i in range(height):
                for k in range(steps):
                    strip[k] = a[entry, top + i, start + k]
                for j in range(width):
                    sums[j] = c[entry, top + i, left + j]
                for k in range(0, padded, UNROLL):
                    a0, a1, a2, a3 = strip[k], strip[k + 1], strip[k + 2], strip[k + 3]
                    b0, b1, b2, b3 = panel[k], panel[k + 1], panel[k + 2], panel[k + 3]
                    for j in range(width):
                        sums[j] += a0 * b0[j] + a1 * b1[j] + a2 * b2[j] + a3 * b3[j]
                for j in range(width):
                    c[entry, top + i, left + j] = sums[j]


@functools.cache
def _compiled(dtype: np.dtype):
    """One compilation a dtype, for any strides of A and B: Numba's own choice would be
    one for each mix of layouts.
    """
    element = numba.from_dtype(dtype)
    strided, contiguous = numba.types.Array(element, 3, "A"), numba.types.Array(
        element, 3, "C"
    )
    signature = numba.void(strided, strided, contiguous)
    return njit(signature, parallel=True, fastmath={"contract"})(_kernel)


@bmm.variant(
    backend="numba_cpu",
    dtypes=("float32", "float64"),
    needs="cpu",
    builds_on="numba_cpu_naive",
)
def numba_cpu_tiled(a, b):
    c = torch.empty((a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype)
    if c.numel():
        result = c.numpy()
        run_parallel(
            _compiled(result.dtype), a.detach().numpy(), b.detach().numpy(), result
        )
    return c
