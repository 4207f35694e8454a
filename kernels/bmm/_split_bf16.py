"""fp32 products on tensor cores: an operand is a sum of bf16 parts, and products of
small parts are left out.

A significand of 24 bits is three parts of 8. With every part rounded to nearest, high +
middle + low is the number, and
|middle| ≤ 2⁻⁸, |low| ≤ 2⁻¹⁷ of its power of two. bf16 products are exact in fp32, so what is left out is the error.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch

from batchline.kernels._triton.product import (
    alignment,
    long_side_first,
    vector_bytes,
)
from batchline.kernels.backends import interpreted, tl, triton
from batchline.kernels.bmm import bmm, reference
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable

LARGEST_BF16 = tl.constexpr(3.3895313892515355e38)
SMALLEST_NORMAL = 2.0**-126  # of bf16 as of fp32

# BLOCK_M, BLOCK_N, BLOCK_K, num_warps, num_stages, the largest first. A thread holds
# parts of A and two sets of sums, a step's and the whole: of 64 elements each at most,
# or registers spill.
_TILES = (
    (128, 128, 32, 8, 3),
    (64, 128, 32, 4, 3),
    (64, 64, 32, 4, 3),
    (64, 32, 32, 4, 4),
    (64, 16, 32, 4, 4),
    (32, 32, 32, 4, 4),
    (32, 16, 32, 2, 4),
    (16, 16, 32, 1, 4),
)


@triton.jit
def _rounded(x):
    """x to the nearest number of 8 bits, in fp32: one addition and one mask, where F2F
    converts at a quarter rate.
    """
    return ((x.to(tl.int32, bitcast=True) + 0x8000) & -0x10000).to(
        tl.float32, bitcast=True
    )


@triton.jit
def parts(x, PRODUCTS: tl.constexpr, OPERAND: tl.constexpr):
    """x as high + middle + low. A number above bf16's largest has that for its high
    part: rounding gave infinity.
    """
    high = _rounded(tl.clamp(x, -LARGEST_BF16, LARGEST_BF16))
    rest = x - high
    if PRODUCTS == 3 and OPERAND == tl.bfloat16:
        middle = rest  # the conversion rounds it, and nothing comes after
    else:
        middle = _rounded(rest)
    return high.to(OPERAND), middle.to(OPERAND), (rest - middle).to(OPERAND)


@triton.jit
def _product(a, b, PRODUCTS: tl.constexpr, OPERAND: tl.constexpr):
    """A @ B from three products of parts, or six, the largest last."""
    a_high, a_middle, a_low = parts(a, PRODUCTS, OPERAND)
    b_high, b_middle, b_low = parts(b, PRODUCTS, OPERAND)
    if (
        PRODUCTS == 6
    ):  # in this order 64x128 tiles fit sm_100's tensor memory, which is where it has the parts of A
        total = tl.dot(a_low, b_high)
        total = tl.dot(a_high, b_low, total)
        total = tl.dot(a_middle, b_middle, total)
        total = tl.dot(a_middle, b_high, total)
    else:
        total = tl.dot(a_middle, b_high)
    total = tl.dot(a_high, b_middle, total)
    return tl.dot(a_high, b_high, total)


@triton.jit
def _kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    M,
    N,
    K,
    stride_ab,
    stride_am,
    stride_ak,
    stride_bb,
    stride_bk,
    stride_bn,
    stride_cb,
    stride_cm,
    stride_cn,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    PRODUCTS: tl.constexpr,
    OPERAND: tl.constexpr,
    OFFSET: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_M: tl.constexpr,
    ALIGN_N: tl.constexpr,
    ALIGN_K: tl.constexpr,
):
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    entry = (tl.program_id(0) // (tiles_m * tiles_n)).to(tl.int64)
    tile = tl.program_id(0) % (tiles_m * tiles_n)
    group_top = tile // (GROUP_M * tiles_n) * GROUP_M
    group_rows = min(tiles_m - group_top, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    top = ((group_top + within % group_rows) * BLOCK_M).to(tl.int64)
    left = (within // group_rows * BLOCK_N).to(tl.int64)

    rows, columns, depth = (
        tl.arange(0, BLOCK_M),
        tl.arange(0, BLOCK_N),
        tl.arange(0, BLOCK_K),
    )
    in_m = rows[:, None] < tl.multiple_of(M - top, ALIGN_M)
    in_n = columns[None, :] < tl.multiple_of(N - left, ALIGN_N)
    a_offs = (
        tl.multiple_of(rows.to(OFFSET) * stride_am, ALIGN)[:, None]
        + tl.multiple_of(depth.to(OFFSET) * stride_ak, ALIGN)[None, :]
    )
    b_offs = (
        tl.multiple_of(depth.to(OFFSET) * stride_bk, ALIGN)[:, None]
        + tl.multiple_of(columns.to(OFFSET) * stride_bn, ALIGN)[None, :]
    )
    a_ptr += tl.multiple_of(entry * stride_ab + top * stride_am, ALIGN)
    b_ptr += tl.multiple_of(entry * stride_bb + left * stride_bn, ALIGN)

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        rest = tl.multiple_of(K - k, ALIGN_K)
        a = tl.load(a_ptr + a_offs, mask=in_m & (depth[None, :] < rest), other=0.0)
        b = tl.load(b_ptr + b_offs, mask=(depth[:, None] < rest) & in_n, other=0.0)
        # Tensor cores cut off what they add: in one accumulator that is a bias, which
        # grows with K.
        accumulator += _product(a, b, PRODUCTS, OPERAND)
        a_ptr += tl.full((), BLOCK_K, tl.int64) * stride_ak
        b_ptr += tl.full((), BLOCK_K, tl.int64) * stride_bk
    c_ptr += entry * stride_cb + top * stride_cm + left * stride_cn
    c_offs = (
        rows.to(OFFSET)[:, None] * stride_cm + columns.to(OFFSET)[None, :] * stride_cn
    )
    tl.store(c_ptr + c_offs, accumulator, mask=in_m & in_n)


def split_product(
    a: torch.Tensor, b: torch.Tensor, products: int, config: Mapping
) -> torch.Tensor:
    """C[B,M,N] of fp32 operands, any strides, from `products` (3 or 6) products of
    their bf16 parts.
    """
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    if c.numel():
        _launch(*long_side_first(a, b, c), products, config)
    return c


def _launch(a, b, c, products, config):
    batch, m, k = a.shape
    n = b.shape[2]
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    (_, am, ak), (_, bk, bn), (_, cm, cn) = a.stride(), b.stride(), c.stride()
    reach = max(
        block_m * am + block_k * ak,
        block_k * bk + block_n * bn,
        block_m * cm + block_n * cn,
    )
    _kernel[(batch * triton.cdiv(m, block_m) * triton.cdiv(n, block_n),)](
        a,
        b,
        c,
        m,
        n,
        k,
        *a.stride(),
        *b.stride(),
        *c.stride(),
        PRODUCTS=products,
        OPERAND=tl.float32 if interpreted("triton") else tl.bfloat16,
        OFFSET=tl.int64 if reach >= 2**31 else tl.int32,
        ALIGN=alignment(a, b),
        ALIGN_M=math.gcd(16, m),
        ALIGN_N=math.gcd(16, n),
        ALIGN_K=math.gcd(16, k),
        **config,
    )


def split_tunable(products: int) -> Tunable:
    """The configurations of a split product."""
    return Tunable(
        rule=lambda a, b, target: _rule(a, b, target, products),
        candidates=lambda a, b, target: _fitting(a, b, target, products),
    )


def _rule(a, b, target, products):
    """The largest that gives every multiprocessor a program, and spills no registers."""
    widest = 128 * 128 if products == 3 else 64 * 128
    if vector_bytes(a, b) <= 4:  # twice as many loads, with an address each
        widest //= 2
    configs = [
        config
        for config in _fitting(a, b, target, products)
        if config["BLOCK_M"] * config["BLOCK_N"] <= widest
    ]
    full = (
        config
        for config in configs
        if _programs(a, b, config) >= multiprocessors(a.device)
    )
    return next(full, configs[-1])


def _fitting(a, b, target, products):
    """Tiles that C fills, the largest first; wgmma's 64 rows at least, where C has as
    many.
    """
    # Where tensor memory has the parts of A, six products of 128x128 tiles take more
    # than its 512 columns.
    tallest = 64 if products == 6 and target.tensor_memory_columns else 128
    wide, tall, _ = long_side_first(a, b)
    room_m, room_n = (
        max(16, triton.next_power_of_2(size)) for size in (wide.shape[1], tall.shape[2])
    )
    return [
        _config(tile, a.shape[2])
        for tile in _TILES
        if min(64, room_m) <= tile[0] <= min(tallest, room_m) and tile[1] <= room_n
    ]


def _config(tile, k):
    """The tile, no deeper than K, and no more stages than it has steps over K."""
    block_m, block_n, block_k, num_warps, num_stages = tile
    block_k = min(block_k, max(16, triton.next_power_of_2(k)))
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "GROUP_M": 16,
        "num_warps": num_warps,
        "num_stages": max(1, min(num_stages, triton.cdiv(k, block_k))),
    }


def _programs(a, b, config):
    a, b, _ = long_side_first(a, b)
    return (
        a.shape[0]
        * triton.cdiv(a.shape[1], config["BLOCK_M"])
        * triton.cdiv(b.shape[2], config["BLOCK_N"])
    )


def split_tolerance(left_out: float) -> Callable[..., torch.Tensor]:
    """The op's tolerance, wider by the products left out: at most `left_out` of |a||b|
    for each k.

    And by what underflows: below 2⁻¹²⁶ a part, or a product of parts, may count as
    zero. It shows where numbers are smaller than 2⁻¹⁰³, whose low parts are there.
    """

    def tolerance(c, a, b):
        sizes = a.abs(), b[:1].abs().expand_as(b) if b.stride(0) == 0 else b.abs()
        rows, columns = sizes[0].sum(2, dtype=torch.float64), sizes[1].sum(
            1, dtype=torch.float64
        )
        flushed = rows[:, :, None] + columns[:, None, :] + 8 * a.shape[2]
        return bmm.tolerance(c, a, b) + 1.01 * (
            left_out * reference(*sizes) + SMALLEST_NORMAL * flushed
        )

    return tolerance
