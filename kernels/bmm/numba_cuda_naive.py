"""One thread for each element of C, straight from global memory: the rung that everything
else is measured from.

A warp's 32 threads are 32 neighbours in N, so loads of B and stores of C coalesce, and
A's element is broadcast. Each product costs two loads: bound by the load units, long
before memory.
"""

import torch

from batchline.kernels._cuda.launch import launch
from batchline.kernels.backends import cuda, numba
from batchline.kernels.bmm import bmm

THREADS = 256


@cuda.jit
def _kernel(a, b, c):
    element = cuda.grid(1)
    rows, columns = c.shape[1], c.shape[2]
    if element < c.shape[0] * rows * columns:
        column = element % columns
        row = (element // columns) % rows
        entry = element // (columns * rows)
        total = numba.float32(0)
        for k in range(a.shape[2]):
            total += numba.float32(a[entry, row, k]) * numba.float32(
                b[entry, k, column]
            )
        c[entry, row, column] = total


@bmm.variant(backend="numba_cuda", dtypes=("float16", "float32"), needs="cuda")
def numba_cuda_naive(a, b):
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    if c.numel():
        launch(_kernel, -(-c.numel() // THREADS), THREADS, a, b, c)
    return c
