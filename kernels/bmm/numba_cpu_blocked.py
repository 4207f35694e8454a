"""Register tiles: the sums of a 14x32 tile of C stay in vector registers over the whole
depth.

Against `numba_cpu_tiled`, whose sums go through L1 at every step. With AVX-512 a step
of the hot loop is 28 fused multiply-adds of 16 lanes on 28 registers, 14 broadcasts of
A, 2 loads of B, 15 integer instructions and no store; with AVX2 it is a 6x16 tile in 12
registers. So 16 loads serve 448 products, where the rung below took five for 32. Rows
at an edge are shared out (64 are 4 tiles of 13 and one of 12), each height a loop of
its own, so that no lane multiplies what nobody asked for but past the last column. A is
broadcast from any strides and needs no packing; B only where its rows are not
contiguous, transposed in registers: 64 shuffles for 256 elements. A B that the batch
shares makes one tall product of all the entries. Bound by the multiply-add units.
"""

import functools

import numpy as np
import torch

from batchline.kernels._cpu.jit import threads
from batchline.kernels._cpu.lanes import lanes_of
from batchline.kernels._cpu.tasks import compile_tasks, run, shares
from batchline.kernels._cpu.vectors import (
    TILE_ROWS,
    TILE_VECTORS,
    copy_row,
    pointer,
    tile,
    transpose_block,
)
from batchline.kernels.backends import numba
from batchline.kernels.bmm import bmm
from batchline.kernels.tuning import Tunable

ALONE = (
    2**20
)  # multiply-adds that one thread does in the time that it takes to start the others


@functools.cache
def _compiled(dtype, size):
    """The blocks [first, last) of C, for any sizes and strides of elements of `size`
    bytes.
    """
    element = (numba.float32 if dtype == torch.float32 else numba.float64)(0)
    lanes = lanes_of(size)
    panel = TILE_VECTORS * lanes

    @numba.njit
    def pack(to, source, stride_k, stride_n, depth, count):
        """Rows of one panel of B, one after another, zeros past the last of `count`
        columns.
        """
        if stride_n == 1:
            for lane in range(0, panel, lanes):
                for k in range(depth):
                    copy_row(
                        pointer(to + size * (k * panel + lane), element),
                        pointer(source + size * (k * stride_k + lane), element),
                        count - lane,
                    )
        elif stride_k == 1:
            for lane in range(0, panel, lanes):
                for k in range(0, depth, lanes):
                    transpose_block(
                        pointer(to + size * (k * panel + lane), element),
                        panel,
                        pointer(source + size * (lane * stride_n + k), element),
                        stride_n,
                        count - lane,
                        depth - k,
                    )
        else:
            rows, values = pointer(to, element), pointer(source, element)
            for k in range(depth):
                for lane in range(panel):
                    rows[k * panel + lane] = (
                        values[k * stride_k + lane * stride_n] if lane < count else 0
                    )

    def blocks(
        first,
        last,
        a,
        stride_ab,
        stride_am,
        stride_ak,
        b,
        stride_bb,
        stride_bk,
        stride_bn,
        c,
        m,
        n,
        depth,
        rows_block,
        columns_block,
        depth_block,
        pack_all,
    ):
        blocks_m = (m + rows_block - 1) // rows_block
        blocks_n = (n + columns_block - 1) // columns_block
        most_columns = (min(n, columns_block) + panel - 1) // panel * panel
        most_steps = (min(depth, depth_block) + lanes - 1) // lanes * lanes
        scratch = np.empty(most_columns * most_steps * size + 64, np.uint8)
        packed = (scratch.ctypes.data + 63) // 64 * 64
        held = 0
        for task in range(first, last):
            top = task % blocks_m * rows_block
            left = task // blocks_m % blocks_n * columns_block
            entry = task // (blocks_m * blocks_n)
            height, width = min(rows_block, m - top), min(columns_block, n - left)
            tiles = (height + TILE_ROWS - 1) // TILE_ROWS
            for start in range(0, depth, depth_block):
                steps = min(depth_block, depth - start)
                panel_size = size * panel * ((steps + lanes - 1) // lanes * lanes)
                block_a = a + size * (
                    entry * stride_ab + top * stride_am + start * stride_ak
                )
                block_b = b + size * (
                    entry * stride_bb + start * stride_bk + left * stride_bn
                )
                if held != block_b:  # else the task before packed it
                    held = block_b
                    for j in range(
                        0 if pack_all else width // panel * panel, width, panel
                    ):
                        pack(
                            packed + j // panel * panel_size,
                            block_b + size * j * stride_bn,
                            stride_bk,
                            stride_bn,
                            steps,
                            width - j,
                        )
                for i in range(tiles):  # of equal heights, or one apart
                    row = height * i // tiles
                    rows = height * (i + 1) // tiles - row
                    rows_c = c + size * ((entry * m + top + row) * n + left)
                    for j in range(0, width, panel):
                        panel_b, stride_panel = packed + j // panel * panel_size, panel
                        if not pack_all and j + panel <= width:
                            panel_b, stride_panel = block_b + size * j, stride_bk
                        tile(
                            pointer(block_a + size * row * stride_am, element),
                            stride_am,
                            stride_ak,
                            pointer(panel_b, element),
                            stride_panel,
                            steps,
                            pointer(rows_c + size * j, element),
                            n,
                            rows,
                            min(panel, width - j),
                            start,
                        )
        scratch[0] = (
            0  # its last use: Numba frees an array after that, whatever its address is used for
        )

    return compile_tasks(blocks, 16)


def _rule(a, b, target):
    """Blocks of equal height, of up to 8 tiles, whose part of B stays in L2; and two
    tasks a thread where there are.
    """
    (batch, m, _), n = a.shape, b.shape[2]
    tasks_m = max(1, -(-m // (8 * TILE_ROWS)))
    columns = 256
    while columns > 32 and batch * tasks_m * -(-n // columns) < 2 * threads():
        columns //= 2
    return {
        "rows": max(1, -(-m // tasks_m)),
        "columns": columns,
        "depth": 512,
        "pack": b.stride(2) != 1,
    }


def _candidates(a, b, target):
    """The rule's, and one step from it in each direction that the shape leaves open."""
    (_, m, depth), n, rule = a.shape, b.shape[2], _rule(a, b, target)
    steps = [
        ("rows", 56, m > 56),
        ("rows", 448, m > 112),
        ("columns", 128, n > 128),
        ("columns", 512, n > 256),
        ("depth", 256, depth > 256),
        ("depth", 1024, depth > 512),
        ("pack", True, not rule["pack"]),
    ]
    others = [{**rule, name: value} for name, value, counts in steps if counts]
    return [rule, *(config for config in others if config != rule)]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@bmm.variant(
    backend="numba_cpu",
    dtypes=("float32", "float64"),
    needs="cpu",
    builds_on="numba_cpu_tiled",
    tunable=CONFIGS,
)
def numba_cpu_blocked(a, b):
    (batch, m, depth), n = a.shape, b.shape[2]
    c = a.new_empty(batch, m, n)
    if not depth:
        return c.zero_()
    (stride_ab, stride_am, stride_ak), (stride_bb, stride_bk, stride_bn) = (
        a.stride(),
        b.stride(),
    )
    config = CONFIGS.choose(a, b)
    if (
        stride_bb == 0 and stride_ab == m * stride_am
    ):  # one B: the entries' rows are rows of one product
        m, batch = m * batch, 1
    if c.numel():
        tasks = batch * -(-m // config["rows"]) * -(-n // config["columns"])
        run(
            _compiled(a.dtype, a.element_size()),
            tasks,
            shares(tasks, c.numel() * depth <= ALONE),
            (
                a.data_ptr(),
                stride_ab,
                stride_am,
                stride_ak,
                b.data_ptr(),
                stride_bb,
                stride_bk,
                stride_bn,
                c.data_ptr(),
                m,
                n,
                depth,
                config["rows"],
                config["columns"],
                config["depth"],
                config["pack"] or stride_bn != 1,
            ),
        )
    return c
