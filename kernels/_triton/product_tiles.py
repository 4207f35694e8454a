"""Which tiles are worth launching on a product: those that fit, ordered by an estimate
of their time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from batchline.kernels._triton.product import long_side_first, vector_bytes
from batchline.kernels.architectures import Architecture
from batchline.kernels.backends import triton
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import distinct

# BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages. All fit sm_80's 163 KiB of shared
# memory; where a block has less, a tile has fewer stages or is left out.
_HALF = (
    (128, 256, 64, 8, 3),
    (256, 128, 64, 8, 3),
    (128, 128, 64, 8, 3),
    (128, 128, 64, 4, 3),
    (128, 128, 32, 4, 4),
    (64, 256, 64, 4, 3),
    (256, 64, 64, 8, 3),
    (128, 64, 64, 4, 3),
    (64, 128, 64, 4, 3),
    (64, 64, 64, 4, 3),
    (64, 64, 128, 4, 3),
    (128, 32, 128, 4, 3),
    (64, 32, 128, 4, 4),
    (64, 32, 64, 4, 4),
    (128, 16, 128, 4, 4),
    (64, 16, 256, 4, 3),
    (64, 16, 128, 4, 4),
    (32, 32, 64, 4, 4),
    (32, 16, 64, 2, 4),
    (16, 16, 64, 1, 4),
)
_SINGLE = (
    (128, 128, 16, 8, 3),
    (128, 64, 16, 4, 3),
    (64, 128, 16, 4, 3),
    (64, 64, 16, 4, 3),
    (64, 64, 32, 4, 3),
    (64, 32, 32, 4, 3),
    (64, 16, 32, 4, 3),
    (32, 32, 32, 4, 4),
    (32, 16, 64, 2, 4),
    (16, 16, 64, 1, 4),
)
_SPLITS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
_NARROW_BYTES = 64  # of a step's operands a thread, where it loads 4 bytes or fewer at once: more would spill

# An SM of an H200: what a cycle multiplies (its datasheet's rate) and brings from L2,
# and cycles that fill no unit. The last line and L2's bytes are assumptions: they order
# the candidates on every chip, and timing chooses.
_HALF_PRODUCTS, _SINGLE_PRODUCTS, _L2_BYTES = 2048, 128, 32
_BANKS_BYTES = 128  # that a cycle reads or writes in shared memory
_LATENCY, _WARP_SETUP, _LAUNCH = 1000, 100, 4000


@dataclass(frozen=True)
class Product:
    """Operands, the long side first, and what they are multiplied on: `vector` is the
    bytes that a load can have.
    """

    a: torch.Tensor
    b: torch.Tensor
    vector: int
    sms: int
    target: Architecture


def product_on(a: torch.Tensor, b: torch.Tensor, target: Architecture) -> Product:
    """The product of these operands as the tables of tiles look at it."""
    vector, sms = vector_bytes(a, b), multiprocessors(a.device)
    a, b, _ = long_side_first(a, b)
    return Product(a, b, vector, sms, target)


def rank_tiles(
    a: torch.Tensor, b: torch.Tensor, target: Architecture, split_k: bool = False
) -> list[dict]:
    """Configurations that fit the target, the one that should be fastest on these
    operands first.

    With split_k each names its SPLITS.
    """
    product = product_on(a, b, target)
    table = _SINGLE if a.dtype == torch.float32 else _HALF
    configs = [config for tile in table for config in _fitted(tile, product, split_k)]
    return sorted(distinct(configs), key=lambda config: _cycles(config, product))


def _fitted(tile, product: Product, split_k: bool) -> Iterator[dict]:
    """The tile where it fits: no deeper than K, no more stages than its steps use, with
    each split that may help.
    """
    block_m, block_n, block_k, num_warps, num_stages = tile
    a, b, vector, sms = product.a, product.b, product.vector, product.sms
    batch, m, k = a.shape
    n = b.shape[2]
    if (
        block_m > _room(m, 64)
        or block_m < min(m, 64)
        and a.dtype != torch.float32
        or block_n > _room(n, 16)
    ):
        return
    block_k = min(block_k, _room(k, 16))
    if vector <= 4:
        most_k = (
            _NARROW_BYTES * 32 * num_warps // ((block_m + block_n) * a.element_size())
        )
        if most_k < 16 or a.dtype == torch.float32 and block_m * block_n > 64 * 64:
            return
        block_k = min(block_k, 32 if most_k >= 32 else 16)
    if vector < 4:
        num_stages = 1
    fewest = (
        2 if a.dtype == torch.float32 else 1
    )  # FMAs leave a load no registers to pass through: cp.async always
    steps = triton.cdiv(k, block_k)
    tiles = max(1, batch * triton.cdiv(m, block_m) * triton.cdiv(n, block_n))
    most = min(4 * sms // tiles, steps // 2) if split_k else 0
    for splits in (1, *(splits for splits in _SPLITS if splits <= most)):
        steps_of_split = triton.cdiv(steps, splits)
        config = {
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": block_k,
            "GROUP_M": 16,
            "num_warps": num_warps,
            "num_stages": min(
                num_stages, max(fewest, steps_of_split + (steps_of_split > 1))
            ),
        }
        while config["num_stages"] > fewest and not fits(
            config, a.element_size(), product.target
        ):
            config["num_stages"] -= 1
        if fits(config, a.element_size(), product.target):
            yield config | ({"SPLITS": splits} if split_k else {})


def _room(size: int, least: int) -> int:
    return max(least, triton.next_power_of_2(size))


def _cycles(config: Mapping, product: Product) -> float:
    """Cycles of the busiest SM: the longer of what its units do for all its programs
    and what those wait in turn.
    """
    a, b, vector, sms, target = (
        product.a,
        product.b,
        product.vector,
        product.sms,
        product.target,
    )
    batch, m, k = a.shape
    n, itemsize, splits = b.shape[2], a.element_size(), config.get("SPLITS", 1)
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    threads, elements = 32 * config["num_warps"], (block_m + block_n) * block_k
    waves = triton.cdiv(
        splits * batch * triton.cdiv(m, block_m) * triton.cdiv(n, block_n), sms
    )
    steps = triton.cdiv(triton.cdiv(k, block_k), splits)
    resident = max(
        1,
        min(
            waves,
            target.shared_bytes_per_block // shared_bytes(config, itemsize, target),
            target.registers_per_sm // (block_m * block_n + 64 * threads),
        ),
    )
    if (
        itemsize == 4
    ):  # the assembly has about six other instructions for the FMAs of a thread's elements
        own = block_m * block_n / threads
        rate = _SINGLE_PRODUCTS * own / (own + 6)
    else:
        rate = _HALF_PRODUCTS if block_m >= 64 else _HALF_PRODUCTS / 2
    issue = config["num_warps"] * _WARP_SETUP
    if (
        vector < 4
    ):  # about eight instructions an element, 32 lanes at a time, from four schedulers
        issue += steps * elements / 16
    multiply, load = block_m * block_n * block_k / rate, elements * itemsize / _L2_BYTES
    if itemsize == 4:
        multiply = max(multiply, _shared_passes(config, product))
    store = block_m * block_n * (itemsize if splits == 1 else 4) / _L2_BYTES
    busy = max(steps * multiply, steps * load + store, issue)
    alone = (
        _LATENCY
        + issue
        + steps * max(multiply, load, _LATENCY / config["num_stages"])
        + store
    )
    second_launch = (
        _LAUNCH + splits * batch * m * n * 4 / _L2_BYTES / sms if splits > 1 else 0
    )
    return waves * max(busy, alone / resident) + second_launch


def _shared_passes(config: Mapping, product: Product) -> float:
    """Passes of shared memory in a step of a tile of FMAs: its elements are written once,
    and each thread reads a number for each of its rows and columns for every k.

    Triton gives a thread squares of 4x4 outputs (2x2 of small tiles) and a warp's lanes
    the columns first. What lies along k has its rows or columns a multiple of 32 words
    apart, all in one bank, and Triton does not move them: lanes that read different
    ones wait for each other. Half of the reads are 16 bytes wide, which 8 lanes do at
    once, and half are of 8 bytes, or of 4 where a step is deeper than 16. By the
    emulator's counters this is within 11% in each layout on the 8 tiles that were counted.
    """
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    warps = config["num_warps"]
    own = block_m * block_n // (32 * warps)
    side = 4 if own >= 16 else 2 if own >= 4 else 1
    lanes_n = min(32, block_n // side)
    columns = max(side, block_n // (lanes_n * warps))
    rows = own // columns
    ways_m = ways_n = 1.0
    if product.a.stride(1) != 1:
        lanes = 16 if block_k <= 16 else 32
        ways_m = (max(1, lanes // lanes_n) + max(1, 8 // lanes_n)) / 2
    if product.b.stride(1) == 1 != product.b.stride(2):
        ways_n = (min(16, lanes_n) + min(8, lanes_n)) / 2
    written = (block_m + block_n) * block_k * 4 / _BANKS_BYTES
    return warps * block_k * (rows * ways_m + columns * ways_n) + written


def fits(config: Mapping, itemsize: int, target: Architecture) -> bool:
    """Whether the stages fit the shared memory that a block of the target can have."""
    return shared_bytes(config, itemsize, target) <= target.shared_bytes_per_block


def shared_bytes(config: Mapping, itemsize: int, target: Architecture) -> int:
    """Shared memory that the stages of a program's operands take."""
    stages = max(1, config["num_stages"] - target.stages_in_registers)
    return (
        (config["BLOCK_M"] + config["BLOCK_N"]) * config["BLOCK_K"] * itemsize * stages
    )
