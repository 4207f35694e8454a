"""One launch for all tensors: a program finds its tensor and columns in a table of
addresses.

Against `torch_loop`, a launch for each: GPT-2 small's 25 layer norms are 50 launches of
768 columns, here they are one of 150 programs (at B = 256, with 132 multiprocessors). A
program counts the tensors whose blocks end before its own, one load and one sum however
many there are, reads that column of the table and turns the address into a pointer.
Whether 16-byte loads are allowed (address, stride and P divide by it) is asked there,
so one odd tensor leaves the others' loads wide. An odd one is read an element at once by
neighbouring lanes: of the digits MLP's rows, which start 4 or 8 bytes further into a
sector each time, a warp's 128 bytes take 4.75 sectors in fp32, its 64 bytes 2.9 in 16
bits, where 4 and 2 would hold them. A tile is 32 elements per thread: [4,
1024] where there are columns enough, else down to [128, 128], so that the batch is
shared out inside a program and no second launch is needed. What that loses: with fewer
than 128 columns a multiprocessor some stay idle, where `grad_reduce/triton_two_stage`
splits a large batch over programs too. No atomics: the same bits on every call. Bound
by memory, in small batches by the launch.
"""

from batchline.kernels._triton.column_sums import WORD_BYTES, column_sums, levels_of
from batchline.kernels._triton.warps import ASSEMBLED, of_the_warp
from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_reduce_multi import grad_reduce_multi
from batchline.kernels.grad_reduce_multi._table import blocks_of, table_of
from batchline.kernels.target import multiprocessors

WIDEST, NARROWEST, WARPS_PER_SM, MOST_ROWS = 1024, 128, 16, 128
PER_WARP = 1024  # elements of a tile


@triton.jit
def _sum(
    g_ptr,
    stride_b,
    stride_p,
    P,
    columns,
    B,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    offs_row = tl.arange(0, ROWS).to(tl.int64)
    in_columns = columns[None, :] < P
    accumulator = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for row in range(0, B, ROWS):
        rows = row + offs_row[:, None]
        g = tl.load(
            g_ptr + rows * stride_b + columns[None, :] * stride_p,
            mask=(rows < B) & in_columns,
            other=0.0,
        )
        accumulator += g.to(tl.float32)
    return column_sums(accumulator, LEVELS)


@triton.jit
def _sum_narrow(
    g_ptr,
    stride_b,
    stride_p,
    P,
    columns,
    B,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """As `_sum`, an element at once: neighbouring lanes read neighbouring columns.

    Accesses of one shape get one layout, and the widest of them decides it: a tile
    [ROWS, COLUMNS] would give each lane the columns of a 16-byte word here, too.
    """
    offs_row = tl.arange(0, ROWS).to(tl.int64)[None, :, None]
    offs_column = columns[None, None, :]
    accumulator = tl.zeros((1, ROWS, COLUMNS), dtype=tl.float32)
    for row in range(0, B, ROWS):
        rows = row + offs_row
        g = tl.load(
            g_ptr + rows * stride_b + offs_column * stride_p,
            mask=(rows < B) & (offs_column < P),
            other=0.0,
        )
        accumulator += g.to(tl.float32)
    return column_sums(tl.reshape(accumulator, (ROWS, COLUMNS)), LEVELS)


@triton.jit
def _store(out_ptr, columns, means, P, VECTOR: tl.constexpr):
    """The buffer has room up to the next multiple of 16 bytes, so that no store is
    narrow.
    """
    written = columns < tl.cdiv(P, VECTOR) * VECTOR
    tl.store(out_ptr + columns, means.to(out_ptr.dtype.element_ty), mask=written)


@triton.jit
def _means_kernel(
    table_ptr,
    out_ptr,
    B,
    scale,
    WIDTH: tl.constexpr,
    VECTOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
    NARROW_LEVELS: tl.constexpr,
    ASSEMBLED: tl.constexpr,
):
    block = tl.program_id(0)
    ends = tl.load(table_ptr + tl.arange(0, WIDTH))
    number = of_the_warp(tl.sum((ends <= block).to(tl.int32), axis=0), ASSEMBLED)
    field_ptr = table_ptr + number
    start = tl.load(field_ptr + WIDTH)
    address = tl.load(field_ptr + 2 * WIDTH)
    P = tl.load(field_ptr + 3 * WIDTH)
    stride_b = tl.load(field_ptr + 4 * WIDTH)
    stride_p = tl.load(field_ptr + 5 * WIDTH)
    offset = tl.multiple_of(tl.load(field_ptr + 6 * WIDTH), VECTOR)
    columns = (
        block.to(tl.int64) * COLUMNS
        - tl.multiple_of(start, COLUMNS)
        + tl.arange(0, COLUMNS)
    )
    pointer: tl.constexpr = tl.pointer_type(out_ptr.dtype.element_ty)
    if (
        (address % 16 == 0)
        & (stride_b % VECTOR == 0)
        & (stride_p == 1)
        & (P % VECTOR == 0)
    ):
        # Values of this branch's own: `tl.multiple_of` marks the operation that made a
        # value, so it would hold in the other branch too.
        total = _sum(
            tl.multiple_of((address // 16 * 16).to(pointer), 16),
            stride_b // VECTOR * VECTOR,
            1,
            P // VECTOR * VECTOR,
            columns,
            B,
            ROWS,
            COLUMNS,
            LEVELS,
        )
        # In each branch: what both had made would be laid out alike, by shared memory.
        _store(out_ptr + offset, columns, total * scale, P, VECTOR)
    else:
        total = _sum_narrow(
            address.to(pointer),
            stride_b,
            stride_p,
            P,
            columns,
            B,
            ROWS,
            COLUMNS,
            NARROW_LEVELS,
        )
        _store(out_ptr + offset, columns, total * scale, P, VECTOR)


def _tile(batch, columns):
    """(rows, warps) of a tile of so many columns: the narrower it is, the more warps
    share the batch.
    """
    rows = min(
        4 * (WIDEST // columns) ** 2, MOST_ROWS, triton.next_power_of_2(max(batch, 1))
    )
    return rows, max(1, rows * columns // PER_WARP)


def _columns(*gs):
    """The widest tile of which there are enough for every multiprocessor to have its
    warps.
    """
    columns, wanted = WIDEST, WARPS_PER_SM * multiprocessors(gs[0].device)
    while (
        columns > NARROWEST
        and blocks_of(gs, columns) * _tile(len(gs[0]), columns)[1] < wanted
    ):
        columns //= 2
    return columns


@grad_reduce_multi.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="torch_loop",
)
def triton_one_launch(*gs):
    batch = len(gs[0])
    table = table_of(gs, _columns)
    buffer, means = table.outputs(gs[0])
    if table.blocks:
        rows, warps = _tile(batch, table.columns)
        _means_kernel[(table.blocks,)](
            table.numbers,
            buffer,
            batch,
            1 / batch if batch else float("nan"),
            WIDTH=table.width,
            VECTOR=16 // buffer.element_size(),
            ROWS=rows,
            COLUMNS=table.columns,
            LEVELS=levels_of(rows, table.columns, warps, buffer.element_size()),
            NARROW_LEVELS=levels_of(rows, table.columns, warps, WORD_BYTES),
            ASSEMBLED=ASSEMBLED,
            num_warps=warps,
        )
    return means
