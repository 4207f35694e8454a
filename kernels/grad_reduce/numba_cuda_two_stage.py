"""One thread a column and a share of the batch, fp32 partial sums, then the same kernel
over the partial sums.

A warp reads 32 neighbouring columns of a row at a time, one element per thread (Numba
does not join adjacent loads). The same bits from run to run: which rows a thread adds,
and in what order, depends on nothing but the shape.
"""

import torch

from batchline.kernels._cuda.launch import launch
from batchline.kernels.backends import cuda, numba
from batchline.kernels.grad_reduce import grad_reduce
from batchline.kernels.target import multiprocessors

THREADS, BLOCKS_PER_SM, LEAST_ROWS = 256, 8, 4


@cuda.jit
def _sum_kernel(g, out, scale):
    rows, parameters = g.shape
    splits = out.shape[0]
    blocks = (parameters + THREADS - 1) // THREADS
    split = cuda.blockIdx.x // blocks
    column = cuda.blockIdx.x % blocks * THREADS + cuda.threadIdx.x
    if column < parameters:
        total = numba.float32(0)
        for row in range(split, rows, splits):
            total += numba.float32(g[row, column])
        out[split, column] = total * scale


@grad_reduce.variant(backend="numba_cuda", dtypes=("float16", "float32"), needs="cuda")
def numba_cuda_two_stage(g):
    batch, parameters = g.shape
    mean = torch.empty(parameters, dtype=g.dtype, device=g.device)
    if batch == 0:
        return mean.fill_(float("nan"))
    if parameters == 0:
        return mean
    blocks = -(-parameters // THREADS)
    splits = min(
        -(-BLOCKS_PER_SM * multiprocessors(g.device) // blocks), -(-batch // LEAST_ROWS)
    )
    scale = numba.float32(1 / batch)
    if splits == 1:
        launch(_sum_kernel, blocks, THREADS, g, mean[None], scale)
        return mean
    partial = torch.empty((splits, parameters), dtype=torch.float32, device=g.device)
    launch(_sum_kernel, blocks * splits, THREADS, g, partial, numba.float32(1))
    launch(_sum_kernel, blocks, THREADS, partial, mean[None], scale)
    return mean
