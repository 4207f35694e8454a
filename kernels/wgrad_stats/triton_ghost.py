"""Ghost norms whose Grams stay in registers: a pair of token tiles is two products and
one sum, and each pair is formed once.

`torch_ghost_3xbf16` writes two fp32 Grams of T² a sample and reads them for n. Here a
program multiplies one tile of x xᵀ over the inputs, then the same tile of dy dyᵀ over
the outputs, and adds up the products of their elements. Both Grams are symmetric: of
tiles off the diagonal only one is made, and counts twice. ḡ and d are as there, so what
n costs is all that differs.

64 samples of 512 tokens of a 512 → 512 layer in bf16: the Grams are 134 MB, which are
written and read in 56 us at an H200's 4.8 TB/s. 10 of 16 tiles of 128x128 are 21 GFLOP,
22 us at 989 TFLOP/s. Bound next by L2: such a tile loads two of its operands' 128 rows,
for a byte of which it has 64 operations, and a sample of up to 32 tokens has tiles of
32 rows and fewer, which are mma.sync's.
"""

import functools
import math

import torch

from batchline.kernels._triton.product import alignment, vector_bytes
from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_reduce.triton_whole_words import sum_rows
from batchline.kernels.statistics import of_nothing
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable
from batchline.kernels.wgrad_stats import wgrad_stats
from batchline.kernels.wgrad_stats._bf16_parts import LEFT_OUT, mean_and_along
from batchline.kernels.wgrad_stats._bounds import ghost_parts_tolerance

# BLOCK_T and num_warps. A thread holds both Grams: 64 elements of each at most.
_TILES = ((128, 8), (64, 4), (32, 2), (16, 1))
_WIDE = {"BLOCK_K": 64, "num_stages": 3}
_NARROW = {
    "BLOCK_K": 16,
    "num_stages": 1,
}  # where no cp.async can load: registers hold a step's operands


@triton.jit
def _gram_tile(
    x_ptr,
    T,
    K,
    first_t,
    first_s,
    stride_xt,
    stride_xk,
    EVEN_K: tl.constexpr,
    OFFSET: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_T: tl.constexpr,
    ALIGN_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """x_t·x_s of the tokens from first_t on and those from first_s on; 0 past the last."""
    tokens, depth = tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_K)
    rows = tl.multiple_of(tokens.to(OFFSET) * stride_xt, ALIGN)
    columns = tl.multiple_of(depth.to(OFFSET) * stride_xk, ALIGN)
    a_ptr = x_ptr + tl.multiple_of(first_t.to(tl.int64) * stride_xt, ALIGN)
    b_ptr = x_ptr + tl.multiple_of(first_s.to(tl.int64) * stride_xt, ALIGN)
    a_offs = rows[:, None] + columns[None, :]
    b_offs = columns[:, None] + rows[None, :]
    in_t = tokens[:, None] < tl.multiple_of(T - first_t, ALIGN_T)
    in_s = tokens[None, :] < tl.multiple_of(T - first_s, ALIGN_T)
    gram = tl.zeros((BLOCK_T, BLOCK_T), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        if EVEN_K:
            a = tl.load(a_ptr + a_offs, mask=in_t, other=0.0)
            b = tl.load(b_ptr + b_offs, mask=in_s, other=0.0)
        else:
            rest = tl.multiple_of(K - k, ALIGN_K)
            a = tl.load(a_ptr + a_offs, mask=in_t & (depth[None, :] < rest), other=0.0)
            b = tl.load(b_ptr + b_offs, mask=(depth[:, None] < rest) & in_s, other=0.0)
        gram = tl.dot(a, b, gram)
        a_ptr += tl.full((), BLOCK_K, tl.int64) * stride_xk
        b_ptr += tl.full((), BLOCK_K, tl.int64) * stride_xk
    return gram


@triton.jit
def _ghost_kernel(
    x_ptr,
    dy_ptr,
    n_ptr,
    B,
    T,
    I,
    O,
    stride_xb,
    stride_xt,
    stride_xi,
    stride_yb,
    stride_yt,
    stride_yo,
    EVEN_I: tl.constexpr,
    EVEN_O: tl.constexpr,
    OFFSET: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_T: tl.constexpr,
    ALIGN_I: tl.constexpr,
    ALIGN_O: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    # Rows r and tiles - 1 - r of the triangle have tiles + 1 pairs together.
    tiles = tl.cdiv(T, BLOCK_T)
    pairs = tiles * (tiles + 1) // 2
    sample, pair = tl.program_id(0) // pairs, tl.program_id(0) % pairs
    row, place = pair // (tiles + 1), pair % (tiles + 1)
    is_upper = place < tiles - row
    tile_t = tl.where(is_upper, row, tiles - 1 - row)
    tile_s = tl.where(is_upper, row + place, tile_t + place - (tiles - row))
    first_t, first_s = tile_t * BLOCK_T, tile_s * BLOCK_T
    x_ptr += tl.multiple_of(sample.to(tl.int64) * stride_xb, ALIGN)
    dy_ptr += tl.multiple_of(sample.to(tl.int64) * stride_yb, ALIGN)
    of_inputs = _gram_tile(
        x_ptr,
        T,
        I,
        first_t,
        first_s,
        stride_xt,
        stride_xi,
        EVEN_I,
        OFFSET,
        ALIGN,
        ALIGN_T,
        ALIGN_I,
        BLOCK_T,
        BLOCK_K,
    )
    of_outputs = _gram_tile(
        dy_ptr,
        T,
        O,
        first_t,
        first_s,
        stride_yt,
        stride_yo,
        EVEN_O,
        OFFSET,
        ALIGN,
        ALIGN_T,
        ALIGN_O,
        BLOCK_T,
        BLOCK_K,
    )
    # 0 times what is no number in another token is no number either.
    tokens = tl.arange(0, BLOCK_T)
    is_token = (first_t + tokens < T)[:, None] & (first_s + tokens < T)[None, :]
    total = tl.sum(tl.where(is_token, of_inputs * of_outputs, 0.0))
    times = tl.where(tile_t == tile_s, 1.0, 2.0)
    tl.store(n_ptr + pair.to(tl.int64) * B + sample, times * total)


def _rule(x, dy, target):
    return _candidates(x, dy, target)[0]


def _candidates(x, dy, target):
    """The tiles that T fills, the one first whose programs the busiest SM loads least
    for.
    """
    batch, tokens, _ = x.shape
    sms = multiprocessors(x.device)
    is_narrow = vector_bytes(x, dy.mT) < 4

    def loads(tile):
        block_t, _ = tile
        programs = batch * _pairs(tokens, block_t)
        return triton.cdiv(programs, sms) * block_t

    fitting = [
        tile for tile in _TILES if tile[0] <= max(16, triton.next_power_of_2(tokens))
    ]
    return [
        {"BLOCK_T": block_t, "num_warps": num_warps} | (_NARROW if is_narrow else _WIDE)
        for block_t, num_warps in sorted(fitting, key=loads)
    ]


def _pairs(tokens, block_t):
    """Of token tiles, each once."""
    tiles = triton.cdiv(tokens, block_t)
    return tiles * (tiles + 1) // 2


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@wgrad_stats.variant(
    backend="triton",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    builds_on="torch_ghost_3xbf16",
    tolerance=functools.partial(ghost_parts_tolerance, left_out=LEFT_OUT[3]),
    tunable=CONFIGS,
)
def triton_ghost(x, dy):
    (batch, tokens, i), o = x.shape, dy.shape[2]
    if batch == 0:
        return of_nothing((o, i), x.dtype, x.device)
    if 0 in (tokens, i, o):
        return torch.zeros((o, i), device=x.device), *torch.zeros(
            (2, batch), device=x.device
        )
    mean, d = mean_and_along(dy, [x], [dy], products=3)
    config = CONFIGS.choose(x, dy)
    pairs = _pairs(tokens, config["BLOCK_T"])
    reach = max(
        config["BLOCK_T"] * of.stride(1) + config["BLOCK_K"] * of.stride(2)
        for of in (x, dy)
    )
    partial = torch.empty((pairs, batch), dtype=torch.float32, device=x.device)
    _ghost_kernel[(batch * pairs,)](
        x,
        dy,
        partial,
        batch,
        tokens,
        i,
        o,
        *x.stride(),
        *dy.stride(),
        EVEN_I=i % config["BLOCK_K"] == 0,
        EVEN_O=o % config["BLOCK_K"] == 0,
        OFFSET=tl.int64 if reach >= 2**31 else tl.int32,
        ALIGN=alignment(x, dy),
        ALIGN_T=math.gcd(16, tokens),
        ALIGN_I=math.gcd(16, i),
        ALIGN_O=math.gcd(16, o),
        **config,
    )
    if pairs == 1:
        return mean, partial[0], d
    n = torch.empty(batch, dtype=torch.float32, device=x.device)
    sum_rows(partial, n, 1.0)
    return mean, n, d
