"""mma.sync and movmatrix on a warp's registers."""

from __future__ import annotations

import numpy as np
from numba import int64, uint32

from batchline.bench.measure.emulator import order
from batchline.bench.measure.emulator.asynchronous import gather_rows, scatter_rows
from batchline.bench.measure.emulator.layout import HEADER, LANES, PARAMETERS, Finding
from batchline.bench.measure.emulator.matrix import mma, mma_f64, movmatrix
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import report
from batchline.bench.measure.emulator.raw import lowest_one, read64, words_at, write64

DIVERGENT_BARRIER = int(Finding.DIVERGENT_BARRIER)
MMA_F64, MOVMATRIX = -1, -2  # parameter 0, where it is no kind of `matrix.mma`
_KIND, _D, _A, _B, _C = range(PARAMETERS, PARAMETERS + 5)


@Handler
def multiply(machine, pc, warp, registers, row, mask):
    """mma.sync: operands d…, a…, b…, c…, whose counts are parameters."""
    m = machine_at(machine)
    head = words_at(row, HEADER)
    d, a, b, c = (
        int64(head[_D]),
        int64(head[_A]),
        int64(head[_B]),
        int64(head[_C]),
    )
    words = words_at(row, HEADER + d + a + b + c)
    if mask != uint32(0xFFFFFFFF):
        report(m, DIVERGENT_BARRIER, pc, warp, lowest_one(~mask), 0, -1)
    order.meet_lanes(m, warp, mask)
    first = HEADER + d
    if head[_KIND] == MMA_F64:
        products = np.empty((d, LANES), np.float64)
        mma_f64(
            products,
            _gather_doubles(registers, words, first, a),
            _gather_doubles(registers, words, first + a, b),
            _gather_doubles(registers, words, first + a + b, c),
        )
        _scatter_doubles(registers, words, HEADER, products)
        return DONE
    result = np.empty((d, LANES), np.uint32)
    left = gather_rows(registers, words, first, a)
    if head[_KIND] == MOVMATRIX:
        movmatrix(result[0], left[0])
    else:
        right = gather_rows(registers, words, first + a, b)
        added = gather_rows(registers, words, first + a + b, c)
        mma(int64(head[_KIND]), result, left, right, added)
    scatter_rows(registers, words, HEADER, result)
    return DONE


@compile_native
def _gather_doubles(registers, words, first, count):
    rows = np.empty((count, LANES), np.uint64)
    for number in range(count):
        source = registers + int64(words[first + number])
        for lane in range(LANES):
            rows[number, lane] = read64(source + lane * 8)
    return rows.view(np.float64)


@compile_native
def _scatter_doubles(registers, words, first, rows):
    bits = rows.view(np.uint64)
    for number in range(rows.shape[0]):
        target = registers + int64(words[first + number])
        for lane in range(LANES):
            write64(target + lane * 8, bits[number, lane])
