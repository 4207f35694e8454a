"""What Numba CUDA kernels share that add up the rows or the columns of a matrix: wide
loads, and sums across a block.

A matrix is an address and two strides. A block's threads lie on it as GROUPS rows of
neighbours, and each reads LANES elements in a row at once. Sums across threads pass
through shared memory, always in the same order.
"""

from __future__ import annotations

import math

import torch

from batchline.kernels._cuda import ptx
from batchline.kernels.backends import cuda, numba

FOUR = 4


def lanes_of(matrix: torch.Tensor) -> int:
    """The most elements, of at most 16 bytes, that can be read at once from anywhere in
    any row.
    """
    if matrix.stride(1) != 1:
        return 1
    item, rows = matrix.element_size(), len(matrix)
    step = matrix.stride(0) if rows > 1 else 0
    return math.gcd(16, matrix.data_ptr(), matrix.shape[1] * item, step * item) // item


def fetching(dtype: str, ROWS: int, LANES: int):
    """fetch(values[ROWS, LANES], address, step, count): `count` rows, `step` bytes
    apart, and zeros for the rest.

    No row is used in between, so all the loads are under way at once.
    """
    load = ptx.load(dtype, LANES)

    @cuda.jit(device=True)
    def load_one(address):
        return (load(address),)

    load_row = load if LANES > 1 else load_one

    @cuda.jit(device=True)
    def fetch(values, address, step, count):
        for i in range(ROWS):
            if i < count:
                row = load_row(address + i * step)
                for lane in range(LANES):
                    values[i, lane] = row[lane]
            else:
                for lane in range(LANES):
                    values[i, lane] = 0

    return fetch


def column_sums(ROWS: int, LANES: int, GROUPS: int, WIDTH: int):
    """add(sums[LANES], values[ROWS, LANES]); share(shared[GROUPS * WIDTH], at, sums);
    total(shared, column).

    A thread adds up its rows, shares the sums at its place in row `group` of [GROUPS,
    WIDTH], and after a barrier any thread takes the total of a column.
    """
    store_shared, uint32 = ptx.store_shared, numba.uint32

    @cuda.jit(device=True)
    def add(sums, values):
        for lane in range(LANES):
            part = values[0, lane]
            for i in range(1, ROWS):
                part += values[i, lane]
            sums[lane] += part

    @cuda.jit(device=True)
    def share(shared, at, sums):
        if LANES % FOUR == 0:
            for lane in range(0, LANES, FOUR):
                store_shared(
                    shared,
                    at + lane,
                    (sums[lane], sums[lane + 1], sums[lane + 2], sums[lane + 3]),
                )
        else:
            for lane in range(LANES):
                shared[uint32(at + lane)] = sums[lane]

    @cuda.jit(device=True)
    def total(shared, column):
        result = shared[uint32(column)]
        for group in range(1, GROUPS):
            result += shared[uint32(group * WIDTH + column)]
        return result

    return add, share, total


def row_sums(THREADS: int):
    """total(shared, row), of THREADS numbers in each of its rows, and the PITCH between
    the rows.

    Read four at a time; four numbers more a row put a warp's reads and its writes in
    different banks.
    """
    PITCH = THREADS + FOUR
    load_shared, float32 = ptx.load_shared, numba.float32

    @cuda.jit(device=True)
    def total(shared, row):
        a, b, c, d = float32(0), float32(0), float32(0), float32(0)
        for at in range(0, THREADS, FOUR):
            first, second, third, fourth = load_shared(shared, row * PITCH + at)
            a += first
            b += second
            c += third
            d += fourth
        return (a + b) + (c + d)

    return total, PITCH
