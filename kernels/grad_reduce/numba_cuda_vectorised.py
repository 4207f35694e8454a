"""A warp reads 512 bytes of a row at once, 16 a thread, and the warps of a block share
the rows.

Against `numba_cuda_two_stage`, where a load is one element: four of fp32 or eight of
the narrow dtypes are as many loads fewer. A thread has 4 rows under way before it adds,
so 4 blocks of 256 threads wait for 64 KiB on an SM. A block adds up the sums of its
threads in shared memory, so few columns need fewer splits of the batch to fill the GPU;
what the splits give is added up by the same kernel, in a fixed order. Where the start,
P or the strides are not multiples of 16 bytes, the loads are the widest that they are
multiples of, down to one element, and 8 rows are under way.
"""

import functools

import torch

from batchline.kernels._cuda import ptx
from batchline.kernels._cuda.block_reduce import column_sums, fetching, lanes_of
from batchline.kernels._cuda.launch import jit_for, launch_at
from batchline.kernels.backends import cuda, interpreted, numba
from batchline.kernels.elements import dtype_name
from batchline.kernels.grad_reduce import grad_reduce
from batchline.kernels.target import multiprocessors

THREADS = (
    8 if interpreted("numba_cuda") else 256
)  # the simulator starts a Python thread for each of the block's
WIDE, NARROW = (4, 4) if interpreted("numba_cuda") else (32, 8)  # threads along a row
BLOCKS_PER_SM = 4


@functools.cache
def _kernel_for(dtype, ITEM, dtype_out, ITEM_OUT, LANES, ROWS, NEIGHBOURS):
    GROUPS, WIDTH, ALIGNMENT = THREADS // NEIGHBOURS, NEIGHBOURS * LANES, ptx.ALIGNMENT
    SIZE, TURNS = GROUPS * WIDTH, -(-WIDTH // THREADS)
    float32, int32, int64, uint32 = (
        numba.float32,
        numba.int32,
        numba.int64,
        numba.uint32,
    )
    fetch, store = fetching(dtype, ROWS, LANES), ptx.store(dtype_out)
    add, share, total = column_sums(ROWS, LANES, GROUPS, WIDTH)

    @jit_for(THREADS, BLOCKS_PER_SM)
    def kernel(g, out, rows, parameters, stride_row, stride_column, splits, divisor):
        shared = cuda.shared.array(SIZE, float32, ALIGNMENT)
        values = cuda.local.array((ROWS, LANES), float32)
        sums = cuda.local.array(LANES, float32)
        for lane in range(LANES):
            sums[lane] = 0

        blocks = uint32((parameters + WIDTH - 1) // WIDTH)
        split, start = (
            uint32(uint32(cuda.blockIdx.x) // blocks),
            int64(uint32(cuda.blockIdx.x) % blocks) * WIDTH,
        )
        thread = uint32(cuda.threadIdx.x)
        neighbour, group = uint32(thread % NEIGHBOURS), uint32(thread // NEIGHBOURS)
        column = start + neighbour * LANES
        row, apart = uint32(split * GROUPS + group), uint32(splits * GROUPS)
        address, step = (
            g + (row * stride_row + column * stride_column) * ITEM,
            apart * stride_row * ITEM,
        )
        count = (
            int32(uint32(rows - row + apart - 1) // apart)
            if row < rows and column < parameters
            else int32(0)
        )
        while count > 0:
            fetch(values, address, step, count)
            add(sums, values)
            address += ROWS * step
            count = int32(count - ROWS)

        share(shared, group * WIDTH + neighbour * LANES, sums)
        cuda.syncthreads()
        out += (split * parameters + start) * ITEM_OUT
        scale = float32(1) / float32(divisor)
        for i in range(TURNS):
            index = uint32(thread + i * THREADS)
            if index < WIDTH and start + index < parameters:
                store(out + index * ITEM_OUT, total(shared, index) * scale)

    return kernel


def _plan(matrix):
    """(lanes, rows, neighbours, blocks): few columns are cut into narrow blocks, which
    have more rows at a time.
    """
    lanes, parameters = lanes_of(matrix), matrix.shape[1]
    neighbours = (
        WIDE if parameters >= WIDE * lanes * multiprocessors(matrix.device) else NARROW
    )
    return (
        lanes,
        4 if lanes > 2 else 8,
        neighbours,
        -(-parameters // (neighbours * lanes)),
    )


def add_rows(matrix, out, divisor):
    """out[splits, P] = the sums, over `divisor`, of every splits-th share of the rows
    of matrix[B, P].
    """
    *tile, blocks = _plan(matrix)
    kernel = _kernel_for(
        dtype_name(matrix.dtype),
        matrix.element_size(),
        dtype_name(out.dtype),
        out.element_size(),
        *tile
    )
    launch_at(
        matrix.device,
        kernel,
        blocks * len(out),
        THREADS,
        matrix.data_ptr(),
        out.data_ptr(),
        *matrix.shape,
        *matrix.stride(),
        len(out),
        divisor
    )


def mean_into(g, mean):
    """mean[P] of g[B, P], neither of them empty."""
    batch, parameters = g.shape
    _, rows, neighbours, blocks = _plan(g)
    in_a_block = rows * THREADS // neighbours
    splits = min(
        -(-BLOCKS_PER_SM * multiprocessors(g.device) // blocks), -(-batch // in_a_block)
    )
    if splits == 1:
        return add_rows(g, mean[None], batch)
    partial = torch.empty((splits, parameters), dtype=torch.float32, device=g.device)
    add_rows(g, partial, 1)
    add_rows(partial, mean[None], batch)


@grad_reduce.variant(
    backend="numba_cuda",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="numba_cuda_two_stage",
)
def numba_cuda_vectorised(g):
    mean = torch.empty(g.shape[1], dtype=g.dtype, device=g.device)
    if len(g) == 0:
        return mean.fill_(float("nan"))
    if len(mean):
        mean_into(g, mean)
    return mean
