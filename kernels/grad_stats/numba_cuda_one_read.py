"""A block holds all B rows of a few columns in registers: their mean is known there,
and g is read once.

Against `numba_cuda_two_pass`, whose two reads are its whole cost. 256 threads with 8
rows of 16 bytes each are 64 rows of 512 bytes, or 256 rows of a cache line, all under
way at once: 64 KiB on an SM that has two such blocks. The sums over the rows meet in
shared memory and come back as ḡ, and a thread adds up n and d of its own rows over all
the columns that its block comes to. Only then are they added up across the threads,
once, and across the blocks by the kernel of `grad_reduce`'s `numba_cuda_vectorised`, in
a fixed order. An SM has 2 to 4 blocks, each with 2B partial sums.

A larger batch takes turns, of 256 rows where 16 bytes divide them, and takes them again
once ḡ is known, the last one first since it is still in registers. The others come from
L2 while they fit: on 132 SMs two blocks each with B - 256 lines of 128 bytes are 26 MB
at B = 1024, half of an H200's L2, and 130 MB at B = 4096, which memory gives twice.
"""

import functools

import torch

from batchline.kernels._cuda import ptx
from batchline.kernels._cuda.block_reduce import (
    FOUR,
    column_sums,
    fetching,
    lanes_of,
    row_sums,
)
from batchline.kernels._cuda.launch import jit_for, launch_at
from batchline.kernels.backends import cuda, interpreted, numba
from batchline.kernels.elements import dtype_name
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.grad_stats._numba_sums import finish
from batchline.kernels.statistics import without_elements
from batchline.kernels.target import multiprocessors

THREADS, MOST_ROWS, LINE = (
    256,
    8,
    128,
)  # of a block; of a thread in registers; bytes of a row that a block reads
if interpreted("numba_cuda"):
    THREADS, MOST_ROWS, LINE = 16, 2, 16


@functools.cache
def _kernel_for(dtype, ITEM, LANES, ROWS, GROUPS, WHOLE, BLOCKS_PER_SM):
    NEIGHBOURS = THREADS // GROUPS
    WIDTH, HEIGHT = NEIGHBOURS * LANES, GROUPS * ROWS
    COLUMN_TURNS, ROW_TURNS = -(-WIDTH // THREADS), -(-2 * HEIGHT // THREADS)
    fetch, load, store = (
        fetching(dtype, ROWS, LANES),
        ptx.load("float32"),
        ptx.store("float32"),
    )
    add, share, column_total = column_sums(ROWS, LANES, GROUPS, WIDTH)
    row_total, PITCH = row_sums(NEIGHBOURS)
    COLUMNS, ROW_SUMS, ALIGNMENT = GROUPS * WIDTH, 2 * HEIGHT * PITCH, ptx.ALIGNMENT
    float32, int32, int64, uint32 = (
        numba.float32,
        numba.int32,
        numba.int64,
        numba.uint32,
    )

    @cuda.jit(device=True)
    def multiply(n, d, values, of_mean):
        for i in range(ROWS):
            square, product = float32(0), float32(0)
            for lane in range(LANES):
                square += values[i, lane] * values[i, lane]
                product += values[i, lane] * of_mean[lane]
            n[i] += square
            d[i] += product

    @cuda.jit(device=True)
    def put(partial, batch, first, n, d, shared, thread, again):
        """The block's n and d of HEIGHT rows from `first`, added to those of its
        earlier columns if `again`.
        """
        neighbour, group = uint32(thread % NEIGHBOURS), uint32(thread // NEIGHBOURS)
        for i in range(ROWS):
            shared[uint32((i * GROUPS + group) * PITCH + neighbour)] = n[i]
            shared[uint32((HEIGHT + i * GROUPS + group) * PITCH + neighbour)] = d[i]
            n[i] = d[i] = 0
        cuda.syncthreads()
        for i in range(ROW_TURNS):
            index = uint32(thread + i * THREADS)
            row = first + index % HEIGHT
            if index < 2 * HEIGHT and row < batch:
                address = partial + (index // HEIGHT * batch + row) * 4
                store(
                    address,
                    (load(address) if again else float32(0)) + row_total(shared, index),
                )
        cuda.syncthreads()

    @jit_for(THREADS, BLOCKS_PER_SM)
    def kernel(g, mean, partial, batch, parameters, stride_row, stride_column):
        shared = cuda.shared.array(COLUMNS, float32, ALIGNMENT)
        means = cuda.shared.array(WIDTH, float32, ALIGNMENT)
        of_rows = cuda.shared.array(ROW_SUMS, float32, ALIGNMENT)
        values = cuda.local.array((ROWS, LANES), float32)
        sums = cuda.local.array(LANES, float32)
        of_mean = cuda.local.array(LANES, float32)
        n = cuda.local.array(ROWS, float32)
        d = cuda.local.array(ROWS, float32)
        for i in range(ROWS):
            n[i] = d[i] = 0

        thread = uint32(cuda.threadIdx.x)
        neighbour, group = uint32(thread % NEIGHBOURS), uint32(thread // NEIGHBOURS)
        rows = int32((batch - group + GROUPS - 1) // GROUPS)
        turns = int32(1 if WHOLE else (batch + HEIGHT - 1) // HEIGHT)
        step, scale = GROUPS * stride_row * ITEM, float32(1) / float32(batch)
        partial += int64(cuda.blockIdx.x) * batch * 8
        start = int64(cuda.blockIdx.x) * WIDTH
        again = False
        while start < parameters:
            column = start + neighbour * LANES
            address = g + (group * stride_row + column * stride_column) * ITEM
            left = rows if column < parameters else int32(0)
            for lane in range(LANES):
                sums[lane] = 0
            for turn in range(turns):
                fetch(values, address + turn * ROWS * step, step, left - turn * ROWS)
                add(sums, values)

            share(shared, group * WIDTH + neighbour * LANES, sums)
            cuda.syncthreads()
            for i in range(COLUMN_TURNS):
                index = uint32(thread + i * THREADS)
                if index < WIDTH:
                    means[index] = column_total(shared, index) * scale
                    if start + index < parameters:
                        store(mean + (start + index) * 4, means[index])
            cuda.syncthreads()
            for lane in range(LANES):
                of_mean[lane] = means[uint32(neighbour * LANES + lane)]

            multiply(n, d, values, of_mean)
            if not WHOLE:
                turn = turns - 1
                put(partial, batch, turn * HEIGHT, n, d, of_rows, thread, again)
                while turn > 0:
                    turn -= 1
                    fetch(
                        values, address + turn * ROWS * step, step, left - turn * ROWS
                    )
                    multiply(n, d, values, of_mean)
                    put(partial, batch, turn * HEIGHT, n, d, of_rows, thread, again)
            again = True
            start += int64(cuda.gridDim.x) * WIDTH
        if WHOLE:
            put(partial, batch, 0, n, d, of_rows, thread, False)

    return kernel


def _plan(g):
    """(lanes, rows, groups, whole, blocks per SM): how g's rows lie on a block, and
    whether all of them do at once.
    """
    batch, lanes = len(g), lanes_of(g)
    rows = min(MOST_ROWS, _power_of_two(batch))
    groups = min(
        _power_of_two(-(-batch // rows)),
        THREADS // max(FOUR, LINE // (lanes * g.element_size())),
    )
    whole = rows * groups >= batch
    held = rows * max(
        lanes, FOUR
    )  # numbers in registers: with more blocks they would spill
    return (
        lanes,
        rows,
        groups,
        whole,
        2 if held > 32 or not whole else 3 if held > 16 else 4,
    )


def _power_of_two(number):
    """The least that is not below `number`."""
    return 1 << (number - 1).bit_length()


@grad_stats.variant(
    backend="numba_cuda",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="numba_cuda_two_pass",
)
def numba_cuda_one_read(g):
    if g.numel() == 0:
        return without_elements(g)
    batch, parameters = g.shape
    mean = torch.empty(parameters, dtype=torch.float32, device=g.device)
    lanes, _, groups, _, blocks_per_sm = plan = _plan(g)
    blocks = min(
        -(-parameters * groups // (THREADS * lanes)),
        blocks_per_sm * multiprocessors(g.device),
    )
    partial = torch.empty((blocks, 2 * batch), dtype=torch.float32, device=g.device)
    launch_at(
        g.device,
        _kernel_for(dtype_name(g.dtype), g.element_size(), *plan),
        blocks,
        THREADS,
        g.data_ptr(),
        mean.data_ptr(),
        partial.data_ptr(),
        *g.shape,
        *g.stride(),
    )
    return mean, *finish(partial)
