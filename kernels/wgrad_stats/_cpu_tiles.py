"""Blocks of ḡ[O,I] on a CPU: each sample's product for the block by register tiles,
then walks over those products.

The kernel of the Numba rungs. A thread stores a block of `together` samples at most, so
its scratch memory stays in its caches. Where the batch is larger, the products are made
again once ḡ is known.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from batchline.kernels._cpu.lanes import lanes_of
from batchline.kernels._cpu.rows import STORED, SUM_AND_SQUARES, walks
from batchline.kernels._cpu.tasks import compile_tasks, run, shares
from batchline.kernels._cpu.vectors import (
    TILE_ROWS,
    TILE_VECTORS,
    copy_row,
    pointer,
    prefetch,
    tile,
)
from batchline.kernels.backends import numba

TASKS = 64  # at most, each with partial norms of its own
ALONE = (
    2**18
)  # multiply-adds that one thread does in the time that it takes to start the others


def statistics_of(
    x: torch.Tensor,
    dy: torch.Tensor,
    rows: int,
    columns: int,
    together: int,
    pack: bool,
):
    """{ḡ, n, d} by blocks of rows x columns of ḡ[O,I]; an X whose features are not
    contiguous is copied.
    """
    (batch, tokens, inputs), outputs = x.shape, dy.shape[2]
    mean = x.new_empty(outputs, inputs)
    if not tokens:
        return mean.zero_(), mean.new_zeros(batch), mean.new_zeros(batch)
    if x.stride(2) != 1:
        x = x.contiguous()
    tasks = min(TASKS, -(-outputs // rows) * -(-inputs // columns))
    partial = x.new_empty((tasks, 2, batch), dtype=torch.float64)
    products = batch * max(1, tokens) * outputs * inputs
    run(
        _compiled(x.dtype),
        tasks,
        shares(tasks, products <= ALONE),
        (
            x.data_ptr(),
            *x.stride()[:2],
            dy.data_ptr(),
            *dy.stride(),
            batch,
            tokens,
            inputs,
            outputs,
            rows,
            columns,
            min(together, batch),
            pack,
            tasks,
            mean.data_ptr(),
            partial.data_ptr(),
        ),
    )
    n, d = partial.sum(0).to(mean.dtype)
    return mean, n, d


@functools.cache
def _compiled(dtype):
    """The tasks [first, last), each a fixed range of blocks; strides in elements."""
    size = STORED[dtype].size
    element = (numba.float32 if size == 4 else numba.float64)(0)
    lanes = lanes_of(size)
    panel = TILE_VECTORS * lanes
    add, project = walks(dtype, SUM_AND_SQUARES)

    @numba.njit
    def pack(to, source, stride, tokens, width, pitch, ahead):
        """Panels of `pitch` columns, token after token, zeros past the last of `width`;
        asks for what is ahead.
        """
        for left in range(0, width, pitch):
            for token in range(tokens):
                at = source + size * (token * stride + left)
                for lane in range(0, pitch, lanes):
                    copy_row(
                        pointer(
                            to + size * (left * tokens + token * pitch + lane), element
                        ),
                        pointer(at + size * lane, element),
                        width - left - lane,
                    )
                    prefetch(at + ahead + size * lane)

    @numba.njit
    def product(
        to,
        panels,
        stride_panel,
        next_panel,
        dy,
        stride_dt,
        stride_do,
        tokens,
        height,
        width,
    ):
        """One sample's block: to[height, width] = dyᵀ x, by tiles of equal height, or
        one apart.
        """
        tiles = (height + TILE_ROWS - 1) // TILE_ROWS
        for number in range(tiles):
            row = height * number // tiles
            rows = height * (number + 1) // tiles - row
            for left in range(0, width, panel):
                tile(
                    pointer(dy + size * row * stride_do, element),
                    stride_do,
                    stride_dt,
                    pointer(panels + left // panel * next_panel, element),
                    stride_panel,
                    tokens,
                    pointer(to + size * (row * width + left), element),
                    width,
                    rows,
                    min(panel, width - left),
                    0,
                )

    def blocks(
        first,
        last,
        x,
        stride_xb,
        stride_xt,
        dy,
        stride_db,
        stride_dt,
        stride_do,
        batch,
        tokens,
        inputs,
        outputs,
        rows,
        columns,
        together,
        packs,
        tasks,
        mean,
        partial,
    ):
        most = min(rows, outputs) * min(columns, inputs)
        most_columns = (min(columns, inputs) + panel - 1) // panel * panel
        most_rows = (min(rows, outputs) + panel - 1) // panel * panel
        scratch = np.empty(
            size * ((together + 2) * most + (most_columns + most_rows) * tokens) + 320,
            np.uint8,
        )
        row = (scratch.ctypes.data + 63) // 64 * 64
        sums = (row + size * most + 63) // 64 * 64
        packed = (sums + size * most + 63) // 64 * 64
        packed_dy = (packed + size * most_columns * tokens + 63) // 64 * 64
        products = (packed_dy + size * most_rows * tokens + 63) // 64 * 64
        blocks_i = (inputs + columns - 1) // columns
        blocks_all = (outputs + rows - 1) // rows * blocks_i
        means, result = pointer(row, element), pointer(mean, element)
        for task in range(first, last):
            norms = partial + 16 * task * batch
            zeros = pointer(norms, numba.float64(0))
            for index in range(2 * batch):
                zeros[index] = 0
            for block in range(
                blocks_all * task // tasks, blocks_all * (task + 1) // tasks
            ):
                top, left = block // blocks_i * rows, block % blocks_i * columns
                height, width = min(rows, outputs - top), min(columns, inputs - left)
                area = height * width
                must_pack = packs or width % panel != 0  # a tile reads whole vectors
                for index in range(area):
                    means[index] = 0
                for walk_number in range(2):
                    for start in range(0, batch, together):
                        count = min(together, batch - start)
                        if walk_number == 0 or together < batch:
                            for sample in range(start, start + count):
                                panels = x + size * (sample * stride_xb + left)
                                stride_panel, next_panel = stride_xt, size * panel
                                if must_pack:
                                    pack(
                                        packed,
                                        panels,
                                        stride_xt,
                                        tokens,
                                        width,
                                        panel,
                                        size * stride_xb,
                                    )
                                    panels, stride_panel, next_panel = (
                                        packed,
                                        panel,
                                        size * panel * tokens,
                                    )
                                factors, stride_ft = (
                                    dy + size * (sample * stride_db + top * stride_do),
                                    stride_dt,
                                )
                                if packs and stride_do == 1:
                                    pitch = (height + lanes - 1) // lanes * lanes
                                    pack(
                                        packed_dy,
                                        factors,
                                        stride_dt,
                                        tokens,
                                        height,
                                        pitch,
                                        size * stride_db,
                                    )
                                    factors, stride_ft = packed_dy, pitch
                                product(
                                    products + size * (sample - start) * area,
                                    panels,
                                    stride_panel,
                                    next_panel,
                                    factors,
                                    stride_ft,
                                    stride_do,
                                    tokens,
                                    height,
                                    width,
                                )
                        if walk_number == 0:
                            add(
                                products,
                                size * area,
                                count,
                                area,
                                sums,
                                row,
                                norms + 8 * start,
                                0,
                            )
                        else:
                            project(
                                products,
                                size * area,
                                count,
                                area,
                                row,
                                norms + 8 * (batch + start),
                                0,
                            )
                    if walk_number == 0:
                        for index in range(area):
                            means[index] /= batch
                        for i in range(height):
                            for j in range(width):
                                result[(top + i) * inputs + left + j] = means[
                                    i * width + j
                                ]
        scratch[0] = (
            0  # its last use: Numba frees an array after that, whatever its address is used for
        )

    return compile_tasks(blocks, 18)
