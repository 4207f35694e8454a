"""One parallel region over the column blocks of all tensors, whose addresses come from
a table.

Against `torch_loop`, which starts its threads for one tensor and again for the next:
here once, and only where there is work for longer than that takes. Threads share out
blocks of 64 columns, so that their shares are as good as equal whatever the sizes;
neighbours are summed together, up to 1,024 columns, whose sums stay in L1 while the
rows stream past once. 64 rows are summed on their own before they join the rest: no
element passes through more than 64 + B/64 additions. A column is one thread's, in row
order, so the bits are the same whatever the number of threads. Bound by memory; with
many small tensors by what the host spends on each, to look it up and to hand its mean
out.
"""

import functools

import numpy as np
import torch

from batchline.kernels._cpu.tasks import compile_tasks, run, shares
from batchline.kernels._cpu.vectors import pointer
from batchline.kernels.backends import numba
from batchline.kernels.grad_reduce_multi import grad_reduce_multi
from batchline.kernels.grad_reduce_multi._table import table_of

COLUMNS, WIDEST, CHUNK = 64, 1024, 64
ALONE = (
    2**15
)  # elements that one thread sums in the time that it takes to start the others


@functools.cache
def _compiled(dtype, size):
    """The means of blocks [first, last), of elements of `size` bytes."""
    number = numba.float32 if dtype == torch.float32 else numba.float64
    element, integer = number(0), numba.int64(0)

    @numba.njit
    def add_row(sums, row, stride_p, width):
        if stride_p == 1:
            for column in range(width):
                sums[column] += row[column]
        else:
            for column in range(width):
                sums[column] += row[column * stride_p]

    def means(first, last, table, tensors, out, batch):
        ends = pointer(table, integer)
        scratch = np.empty(2 * WIDEST, number)
        totals, sums = scratch[:WIDEST], scratch[WIDEST:]
        scale = number(1 / batch if batch else np.nan)
        tensor, block = 0, first
        while block < last:
            while ends[tensor] <= block:
                tensor += 1
            start = COLUMNS * block - ends[tensors + tensor]
            address, parameters = ends[2 * tensors + tensor], ends[3 * tensors + tensor]
            stride_b, stride_p = ends[4 * tensors + tensor], ends[5 * tensors + tensor]
            mean = pointer(out + size * (ends[6 * tensors + tensor] + start), element)
            width = min(WIDEST, parameters - start, COLUMNS * (last - block))
            block += (width + COLUMNS - 1) // COLUMNS
            totals[:] = 0
            for chunk in range(0, batch, CHUNK):
                sums[:] = 0
                for row in range(chunk, min(chunk + CHUNK, batch)):
                    at = address + size * (row * stride_b + start * stride_p)
                    add_row(sums, pointer(at, element), stride_p, width)
                for column in range(width):
                    totals[column] += sums[column]
            for column in range(width):
                mean[column] = totals[column] * scale

    return compile_tasks(means, 4)


def _columns(*gs):
    return COLUMNS


@grad_reduce_multi.variant(
    backend="numba_cpu",
    dtypes=("float32", "float64"),
    needs="cpu",
    builds_on="torch_loop",
)
def numba_cpu_one_launch(*gs):
    table = table_of(gs, _columns)
    buffer, means = table.outputs(gs[0])
    elements = len(gs[0]) * buffer.numel()
    if table.blocks:
        run(
            _compiled(buffer.dtype, buffer.element_size()),
            table.blocks,
            shares(table.blocks, elements <= ALONE),
            (table.numbers.data_ptr(), table.width, buffer.data_ptr(), len(gs[0])),
        )
    return means
