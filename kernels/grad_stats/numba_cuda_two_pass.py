"""Two reads of g: one for all of ḡ, one for the norms and the products with it.

Against `torch_passes`, which reads g three times, and in the narrow dtypes writes and
reads an fp32 copy: here values become fp32 in registers. The first read is
`grad_reduce`'s `numba_cuda_vectorised`. In the second a block has a share of the
columns of 4 rows, one element a load, and blocks of the same share follow each other: ḡ
comes from L2, once for 4 rows. The partial n and d, [shares, 2B], are added up by the
kernel of the first read, in a fixed order.
"""

import functools

import torch

from batchline.kernels._cuda import ptx
from batchline.kernels._cuda.block_reduce import row_sums
from batchline.kernels._cuda.launch import jit_for, launch_at
from batchline.kernels.backends import cuda, interpreted, numba
from batchline.kernels.elements import dtype_name
from batchline.kernels.grad_reduce.numba_cuda_vectorised import mean_into
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.grad_stats._numba_sums import finish
from batchline.kernels.statistics import without_elements
from batchline.kernels.target import multiprocessors

THREADS = 8 if interpreted("numba_cuda") else 256
ROWS, BLOCKS_PER_SM = 4, 3
LEAST_TURNS, MOST_TURNS = (
    8,
    256,
)  # of a block over its columns: enough to be worth a block; a short chain of additions


@functools.cache
def _kernel_for(dtype, ITEM):
    total, PITCH = row_sums(THREADS)
    SIZE, ALIGNMENT = 2 * ROWS * PITCH, ptx.ALIGNMENT
    float32, int64, uint32 = numba.float32, numba.int64, numba.uint32
    load, load_mean, store = ptx.load(dtype), ptx.load("float32"), ptx.store("float32")

    @jit_for(THREADS, BLOCKS_PER_SM)
    def kernel(g, mean, partial, batch, parameters, stride_row, stride_column, share):
        shared = cuda.shared.array(SIZE, float32, ALIGNMENT)
        n = cuda.local.array(ROWS, float32)
        d = cuda.local.array(ROWS, float32)
        for i in range(ROWS):
            n[i] = d[i] = 0

        groups = uint32((batch + ROWS - 1) // ROWS)
        block, row = (
            int64(uint32(cuda.blockIdx.x) // groups),
            int64(uint32(cuda.blockIdx.x) % groups) * ROWS,
        )
        thread = uint32(cuda.threadIdx.x)
        column, end = block * share + thread, min((block + 1) * share, parameters)
        g += (row * stride_row + column * stride_column) * ITEM
        while column < end:
            of_mean = load_mean(mean + column * 4)
            for i in range(ROWS):
                value = (
                    load(g + i * stride_row * ITEM) if row + i < batch else float32(0)
                )
                n[i] += value * value
                d[i] += value * of_mean
            column += THREADS
            g += THREADS * stride_column * ITEM

        for i in range(ROWS):
            shared[uint32(i * PITCH + thread)] = n[i]
            shared[uint32((ROWS + i) * PITCH + thread)] = d[i]
        cuda.syncthreads()
        row += thread % ROWS
        if thread < 2 * ROWS and row < batch:
            store(
                partial + ((block * 2 + thread // ROWS) * batch + row) * 4,
                total(shared, thread),
            )

    return kernel


@grad_stats.variant(
    backend="numba_cuda",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="torch_passes",
)
def numba_cuda_two_pass(g):
    if g.numel() == 0:
        return without_elements(g)
    batch, parameters = g.shape
    mean = torch.empty(parameters, dtype=torch.float32, device=g.device)
    mean_into(g, mean)
    groups = -(-batch // ROWS)
    turns = -(
        -parameters * groups // (BLOCKS_PER_SM * multiprocessors(g.device) * THREADS)
    )
    share = min(max(turns, LEAST_TURNS), MOST_TURNS) * THREADS
    shares = -(-parameters // share)
    partial = torch.empty((shares, 2 * batch), dtype=torch.float32, device=g.device)
    launch_at(
        g.device,
        _kernel_for(dtype_name(g.dtype), g.element_size()),
        shares * groups,
        THREADS,
        g.data_ptr(),
        mean.data_ptr(),
        partial.data_ptr(),
        *g.shape,
        *g.stride(),
        share,
    )
    return mean, *finish(partial)
