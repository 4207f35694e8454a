"""A few rows at once, a vector of columns at a time: their sum, their squared norms,
their products with one row.

Several rows together read and write the row of sums once for all of them, and are as
many streams from memory. Rows are fp32, fp64, or fp16 and bf16 that are widened as they
are loaded; sums are fp32, or fp64 for fp64.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from batchline.kernels._cpu.lanes import Vectors, intrinsic, ir, lanes_of, types
from batchline.kernels._cpu.vectors import pointer
from batchline.kernels.backends import numba

TOGETHER = (8, 4, 2, 1)  # rows of one function each
_IN_A_SUM = 512  # rows, eight at a time: no element passes through more than 64 additions, then one for each 512
SUM, SUM_AND_SQUARES, PRODUCTS = range(3)


@dataclass(frozen=True)
class Stored:
    """How a dtype lies in memory: its name and bytes, and the name and bytes of the
    numbers that are made of it.
    """

    name: str
    size: int
    wide_size: int


STORED = {
    torch.float64: Stored("float64", 8, 8),
    torch.float32: Stored("float32", 4, 4),
    torch.float16: Stored("float16", 2, 4),
    torch.bfloat16: Stored("bfloat16", 2, 4),
}


@numba.njit
def _together(rows):
    """How many of so many rows are walked together next."""
    count = TOGETHER[0]
    while count > rows:
        count //= 2
    return count


@functools.cache
def walks(dtype: torch.dtype, mode: int):
    """The two walks over `batch` rows of `width` columns, compiled for threads to call;
    all arguments are int64: a constant among them is no type of its own, for which
    Numba would compile once more. With SUM there is no second one.

    add(rows, stride, batch, width, sums, mean, norms, fetched): add the rows to `mean`,
    by way of the scratch row `sums`, and with SUM_AND_SQUARES their squares to the
    float64 `norms`. `fetched`: ask early for the next rows. project(rows, stride,
    batch, width, mean, norms, ahead): add the rows' products with `mean` to `norms`.
    """
    add_rows, products = walk(dtype, mode), walk(dtype, PRODUCTS)
    element = (numba.float64 if STORED[dtype].wide_size == 8 else numba.float32)(0)

    @numba.njit(numba.void(*[numba.int64] * 8))
    def add(rows, stride, batch, width, sums, mean, norms, fetched):
        means, values = pointer(mean, element), pointer(sums, element)
        start = 0
        while start < batch:
            end = min(start + _IN_A_SUM, batch)
            for column in range(width):
                values[column] = 0
            while start < end:
                count = _together(end - start)
                ahead = count * stride if fetched and start + 2 * count <= batch else 0
                add_rows(
                    count,
                    sums,
                    rows + start * stride,
                    stride,
                    width,
                    ahead,
                    norms + 8 * start,
                )
                start += count
            for column in range(width):
                means[column] += values[column]

    if mode == SUM:
        return add, None

    @numba.njit(numba.void(*[numba.int64] * 7))
    def project(rows, stride, batch, width, mean, norms, ahead):
        start = 0
        while start < batch:
            count = _together(batch - start)
            products(
                count,
                mean,
                rows + start * stride,
                stride,
                width,
                ahead,
                norms + 8 * start,
            )
            start += count

    return add, project


def walk(dtype: torch.dtype, mode: int):
    """f(count, row, rows, stride, width, ahead, norms): walk `count` (one of TOGETHER)
    rows of `width` columns.

    All arguments are int64: addresses, a stride and a distance in bytes. SUM and
    SUM_AND_SQUARES add the rows to `row`; SUM_AND_SQUARES and PRODUCTS add to the
    float64 `norms`, one for each row, its squared norm or its product with `row`.
    `ahead` bytes further on, what will be read next is fetched into the caches; 0 for
    nothing.
    """
    stored = STORED[dtype]

    @intrinsic
    def walk_rows(typing, count, row, rows, stride, width, ahead, norms):
        def generate(context, builder, signature, args):
            count, *operands = args
            end = builder.append_basic_block("walk.end")
            switch = builder.switch(count, end)
            for number in TOGETHER:
                function = _function(builder.module, stored, mode, number)
                with builder.goto_block(builder.append_basic_block()):
                    builder.call(function, operands)
                    builder.branch(end)
                    switch.add_case(count.type(number), builder.block)
            builder.position_at_end(end)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return walk_rows


def _function(module, stored: Stored, mode: int, count: int):
    """The IR function for so many rows: a loop over whole vectors, then one masked
    vector for what is left.
    """
    name = f"walk_{stored.name}_{mode}_{count}"
    if name in module.globals:
        return module.globals[name]
    wide = ir.FloatType() if stored.wide_size == 4 else ir.DoubleType()
    v = Vectors(module, wide, lanes_of(stored.wide_size))
    function = v.function(name, [v.word] * 6)
    row, rows, stride, width, ahead, norms = function.args
    entry, loop, body, rest, masked, end = (
        function.append_basic_block(part)
        for part in ("entry", "loop", "body", "rest", "masked", "end")
    )

    build = ir.IRBuilder(entry)
    starts = [
        build.add(rows, build.mul(stride, v.word(index))) for index in range(count)
    ]
    whole = build.and_(width, v.word(-v.lanes))
    build.branch(loop)

    build.position_at_end(loop)
    column = build.phi(v.word)
    column.add_incoming(v.word(0), entry)
    sums = [build.phi(v.vector) for _ in range(count if mode else 0)]
    for phi in sums:
        phi.add_incoming(v.zero, entry)
    build.cbranch(build.icmp_signed("<", column, whole), body, rest)

    build.position_at_end(body)
    new = _step(v, build, stored, mode, row, starts, column, sums, None, ahead)
    column.add_incoming(build.add(column, v.word(v.lanes)), body)
    for phi, value in zip(sums, new):
        phi.add_incoming(value, body)
    build.branch(loop)

    build.position_at_end(rest)
    left = build.sub(width, whole)
    build.cbranch(build.icmp_signed(">", left, v.word(0)), masked, end)
    build.position_at_end(masked)
    last = _step(
        v, build, stored, mode, row, starts, column, sums, v.first(build, left), ahead
    )
    build.branch(end)

    build.position_at_end(end)
    for index, phi in enumerate(sums):
        total = build.phi(v.vector)
        total.add_incoming(phi, rest)
        total.add_incoming(last[index], masked)
        sums[index] = total
    for index, total in enumerate(sums):
        address = build.inttoptr(
            build.add(norms, v.word(8 * index)), ir.DoubleType().as_pointer()
        )
        number = v.total(build, total)
        number = (
            number if wide == ir.DoubleType() else build.fpext(number, ir.DoubleType())
        )
        build.store(build.fadd(build.load(address), number), address)
    build.ret_void()
    return function


def _step(v, build, stored, mode, row, starts, column, sums, mask, ahead):
    """One vector of each row; returns the new sums of squares or products."""
    at_row = build.inttoptr(
        build.add(row, build.mul(column, v.word(stored.wide_size))), v.pointer
    )
    offset = build.mul(column, v.word(stored.size))
    addresses = [build.add(start, offset) for start in starts]
    loaded = [v.load_wide(build, address, stored.name, mask) for address in addresses]
    for address in addresses:
        v.prefetch(build, build.add(address, ahead))
    factor = v.load(build, at_row, mask)
    if mode != PRODUCTS:
        level = [factor, *loaded] if len(loaded) == 1 else loaded
        while len(level) > 1:
            level = [
                build.fadd(one, other) for one, other in zip(level[::2], level[1::2])
            ] + level[len(level) & -2 :]
        v.store(
            build,
            level[0] if len(loaded) == 1 else build.fadd(factor, level[0]),
            at_row,
            mask,
        )
    if mode == SUM:
        return []
    return [
        v.multiply_add(
            build, number, number if mode == SUM_AND_SQUARES else factor, total
        )
        for number, total in zip(loaded, sums)
    ]
