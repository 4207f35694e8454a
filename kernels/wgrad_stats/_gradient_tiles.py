"""Which tiles of the gradient, and how many splits of the batch, are worth launching:
ordered by estimated time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from batchline.kernels._triton.product_tiles import Product, product_on
from batchline.kernels.architectures import Architecture
from batchline.kernels.backends import triton

# BLOCK_M, BLOCK_N, num_warps. A thread holds a tile twice, a sample's gradient and the
# mean: 64 elements of each at most, or registers spill (128x256 with 8 warps: 176 bytes
# on sm_90).
_HALF = (
    (128, 128, 8),
    (64, 128, 4),
    (128, 64, 4),
    (64, 64, 4),
    (64, 32, 4),
    (64, 16, 4),
    (32, 32, 4),
    (32, 16, 2),
    (16, 16, 1),
)
_SINGLE = (
    (128, 128, 8),
    (64, 128, 8),
    (128, 64, 8),
    (64, 64, 4),
    (64, 32, 4),
    (32, 32, 4),
    (32, 16, 2),
    (16, 16, 1),
)
_WAVES = (1, 2, 3, 4, 6, 8)
_NARROW_BYTES = 64  # of a step's operands a thread, where it loads 4 bytes or fewer at once: more would spill

# An SM of an H200: what a cycle multiplies (its datasheet's rate), adds and brings from
# L2. L2's bytes and the last line, cycles that fill no unit, are assumptions: they
# order the candidates on every chip, and timing chooses.
_HALF_PRODUCTS, _SINGLE_PRODUCTS, _SUMS, _L2_BYTES = 2048, 128, 128, 32
_FILL, _BARRIERS, _LAUNCH = 2000, 100, 4000


def rank_tiles(x: torch.Tensor, dy: torch.Tensor, target: Architecture) -> list[dict]:
    """Configurations that fit the target, the one that should be fastest on these
    inputs first.
    """
    product = product_on(dy.mT, x, target)
    table = _SINGLE if x.dtype == torch.float32 else _HALF
    configs = [config for tile in table for config in _fitted(tile, product)]
    return sorted(configs, key=lambda config: _cycles(config, product))


def vary_splits(configs: list[dict]) -> list[dict]:
    """The first two splits of each tile, up to 16 in all."""
    tiles: dict[tuple, list[dict]] = {}
    for config in configs:
        tiles.setdefault(
            (config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_T"]), []
        ).append(config)
    return [config for splits in tiles.values() for config in splits[:2]][:16]


def least_splits(batch: int) -> int:
    """So that a program adds up 64 + √B samples at most, one after another; splits are
    then added in blocks.
    """
    return triton.cdiv(batch, 64 + math.isqrt(batch))


def _fitted(tile, product: Product) -> Iterator[dict]:
    """The tile where it fits: no deeper than T, and with each split of the batch that
    may help.
    """
    block_m, block_n, num_warps = tile
    a, b, vector, target = product.a, product.b, product.vector, product.target
    batch, m, tokens = a.shape
    n, itemsize = b.shape[2], a.element_size()
    if (
        block_m > _room(m, 64)
        or block_m < min(m, 64)
        and itemsize < 4
        or block_n > _room(n, 16)
    ):
        return
    deepest = 128 // itemsize
    if vector <= 4:
        deepest = min(
            deepest, _NARROW_BYTES * 32 * num_warps // ((block_m + block_n) * itemsize)
        )
        if deepest < 16 or itemsize == 4 and block_m * block_n > 64 * 64:
            return
    tiles = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    wanted = (
        min(batch, waves * product.sms * _resident(tile, target) // tiles)
        for waves in _WAVES
    )
    shares = {triton.cdiv(batch, max(splits, least_splits(batch))) for splits in wanted}
    for block_t in (
        block_t
        for block_t in (64, 32, 16)
        if block_t <= min(deepest, _room(tokens, 16))
    ):
        num_stages = 1 if vector < 4 else max(3, 192 // (block_t * itemsize))
        for share in shares:
            config = {
                "BLOCK_M": block_m,
                "BLOCK_N": block_n,
                "BLOCK_T": block_t,
                "SPLITS": triton.cdiv(batch, share),
                "num_warps": num_warps,
                "num_stages": num_stages,
            }
            # Left to itself the assembler stops at 128 registers and spills two.
            yield config | (
                {"maxnreg": 168}
                if itemsize == 4 and block_m * block_n == 32 * 32 * num_warps
                else {}
            )


def _room(size: int, least: int) -> int:
    return max(least, triton.next_power_of_2(size))


def _resident(tile: tuple[int, int, int], target: Architecture) -> int:
    """Programs whose registers fit an SM: two sums, and some 64 others a thread."""
    block_m, block_n, num_warps = tile
    return max(
        1, target.registers_per_sm // (2 * block_m * block_n + 64 * 32 * num_warps)
    )


def _cycles(config: Mapping, product: Product) -> float:
    """Cycles of the busiest SM: the longer of what its units do for all its programs
    and what those wait in turn.
    """
    a, b, vector, sms = product.a, product.b, product.vector, product.sms
    batch, m, tokens = a.shape
    n, itemsize, splits = b.shape[2], a.element_size(), config["SPLITS"]
    block_m, block_n, block_t, num_warps = (
        config[key] for key in ("BLOCK_M", "BLOCK_N", "BLOCK_T", "num_warps")
    )
    elements, own = block_m * block_n, block_m * block_n // (32 * num_warps)
    programs = triton.cdiv(
        splits * triton.cdiv(m, block_m) * triton.cdiv(n, block_n), sms
    )
    resident = min(programs, _resident((block_m, block_n, num_warps), product.target))
    if (
        itemsize == 4
    ):  # the assembly has about six other instructions for the FMAs of a thread's elements
        rate = _SINGLE_PRODUCTS * own / (own + 6)
    else:
        rate = _HALF_PRODUCTS if block_m >= 64 else _HALF_PRODUCTS / 2
    steps, loaded = triton.cdiv(tokens, block_t), (block_m + block_n) * block_t
    multiply, load = (
        steps * elements * block_t / rate,
        steps * loaded * itemsize / _L2_BYTES,
    )
    issue = (
        steps * loaded / 16 if vector < 4 else 0
    )  # about eight instructions an element, from four schedulers
    reduce = 2 * elements / _SUMS
    busy = max(multiply, load, reduce + issue)
    alone = max(multiply + reduce + issue + (steps + 1) * _BARRIERS, load)
    passes = (
        2
        * programs
        * (_FILL / resident + triton.cdiv(batch, splits) * max(busy, alone / resident))
    )
    second_launch = _LAUNCH + splits * m * n * 4 / _L2_BYTES / sms if splits > 1 else 0
    return passes + programs * elements * 4 / _L2_BYTES + second_launch
