"""One launch for all tensors: a block finds its tensor and columns in a table of
addresses, by halving.

Against `torch_loop`, a launch for each. To a launch from Numba every tensor is an array
to marshal; here 50 of them are four integers, since the table holds their addresses. A
warp reads 32 neighbouring columns of a row, one element per thread, four rows or more at
a time. Where there are columns enough for every multiprocessor a block is one row of
256 threads; where not, it is up to 8 rows of 32, which share the batch and join their
sums in shared memory in a fixed order: the same bits on every call. What that loses:
with fewer than 256 columns a multiprocessor some of its threads stay idle, and only a
second launch, over partial sums, could use them. Bound by memory, in small batches by
the launch.
"""

import functools

from batchline.kernels._cuda import ptx
from batchline.kernels._cuda.launch import jit_for, launch_at
from batchline.kernels.backends import cuda, interpreted, numba
from batchline.kernels.elements import dtype_name
from batchline.kernels.grad_reduce_multi import grad_reduce_multi
from batchline.kernels.grad_reduce_multi._table import blocks_of, table_of
from batchline.kernels.target import multiprocessors

THREADS, NARROWEST = (8, 4) if interpreted("numba_cuda") else (256, 32)
BLOCKS_PER_SM = 8


@functools.cache
def _kernel_for(dtype, ITEM, COLUMNS):
    ROWS = THREADS // COLUMNS
    float32, int64 = numba.float32, numba.int64
    load, store, load_quarters = ptx.load(dtype), ptx.store(dtype), ptx.load("int16", 4)

    @cuda.jit(device=True)
    def number(table, index):
        """An int64 of the table, in quarters since ptx loads no wider integers;
        compiled it is one 8-byte load.
        """
        low, second, third, high = load_quarters(table + 8 * index)
        return (
            int64(high) << 48
            | (int64(third) & 0xFFFF) << 32
            | (int64(second) & 0xFFFF) << 16
            | int64(low) & 0xFFFF
        )

    @jit_for(THREADS)
    def kernel(table, tensors, out, batch):
        sums = cuda.shared.array((ROWS, COLUMNS), float32)
        block = int64(cuda.blockIdx.x)
        tensor, above = int64(0), tensors - 1
        while tensor < above:
            middle = (tensor + above) // 2
            if number(table, middle) <= block:
                tensor = middle + 1
            else:
                above = middle
        row, lane = cuda.threadIdx.x // COLUMNS, cuda.threadIdx.x % COLUMNS
        column = block * COLUMNS - number(table, tensors + tensor) + lane
        inside = column < number(table, 3 * tensors + tensor)
        total = float32(0)
        if inside:
            step = ITEM * number(table, 4 * tensors + tensor)
            at = (
                number(table, 2 * tensors + tensor)
                + ITEM * column * number(table, 5 * tensors + tensor)
                + row * step
            )
            for _ in range(row, batch, ROWS):
                total += load(at)
                at += ROWS * step
        sums[row, lane] = total
        cuda.syncthreads()
        if inside and row == 0:
            for other in range(1, ROWS):
                total += sums[other, lane]
            mean = total / float32(batch)  # of an empty batch 0/0, which is NaN
            store(out + ITEM * (number(table, 6 * tensors + tensor) + column), mean)

    return kernel


def _columns(*gs):
    """The widest blocks of which every multiprocessor has its share."""
    columns = THREADS
    while columns > NARROWEST and blocks_of(
        gs, columns
    ) < BLOCKS_PER_SM * multiprocessors(gs[0].device):
        columns //= 2
    return columns


@grad_reduce_multi.variant(
    backend="numba_cuda",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="torch_loop",
)
def numba_cuda_one_launch(*gs):
    table = table_of(gs, _columns)
    buffer, means = table.outputs(gs[0])
    if table.blocks:
        kernel = _kernel_for(
            dtype_name(buffer.dtype), buffer.element_size(), table.columns
        )
        launch_at(
            buffer.device,
            kernel,
            table.blocks,
            THREADS,
            table.numbers.data_ptr(),
            table.width,
            buffer.data_ptr(),
            len(gs[0]),
        )
    return means
