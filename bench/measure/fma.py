"""The processor's multiply-add peak: a register tile on one element of A and one row of
B, which stay in L1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from batchline.kernels.backends import numba, why_absent

DTYPES = ("float32", "float64")
_DEPTH = 2**14
_TILES = 16  # a thread's, in one call


def why_not() -> str | None:
    """Why the peak can't be measured here, or None."""
    return why_absent("numba_cpu")


def launch(dtype: str) -> tuple[Callable, float]:
    """A call that keeps every thread's units busy, and its floating-point operations."""
    from batchline.kernels._cpu.lanes import lanes_of
    from batchline.kernels._cpu.tasks import run, shares
    from batchline.kernels._cpu.vectors import TILE_ROWS, TILE_VECTORS
    from batchline.kernels._cpu.jit import threads

    width = TILE_VECTORS * lanes_of(getattr(torch, dtype).itemsize)
    tasks = _TILES * threads()
    operands = torch.zeros(width, dtype=getattr(torch, dtype))
    results = torch.empty(tasks, TILE_ROWS, width, dtype=getattr(torch, dtype))

    def call():
        run(
            _compiled(dtype),
            tasks,
            shares(tasks, alone=False),
            (operands.data_ptr(), results.data_ptr()),
        )

    return call, 2.0 * tasks * TILE_ROWS * width * _DEPTH


@functools.cache
def _compiled(dtype: str):
    from batchline.kernels._cpu.lanes import lanes_of
    from batchline.kernels._cpu.tasks import compile_tasks
    from batchline.kernels._cpu.vectors import TILE_ROWS, TILE_VECTORS, pointer, tile

    element, size = getattr(numba, dtype)(0), getattr(torch, dtype).itemsize
    width = TILE_VECTORS * lanes_of(size)

    def tiles(first, last, operands, results):
        for task in range(first, last):
            tile(
                pointer(operands, element),
                0,
                0,
                pointer(operands, element),
                0,
                _DEPTH,
                pointer(results + task * TILE_ROWS * width * size, element),
                width,
                TILE_ROWS,
                width,
                0,
            )

    return compile_tasks(tiles, 2)
