"""Per-sample gradients tile by tile: multiplied, reduced to what is asked of them, and
forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from batchline.kernels._triton.product import alignment, long_side_first
from batchline.kernels.backends import tl, triton


@triton.jit
def _gradient_kernel(
    a_ptr,
    b_ptr,
    mean_ptr,
    dot_ptr,
    B,
    T,
    M,
    N,
    share,
    scale,
    stride_ab,
    stride_am,
    stride_at,
    stride_bb,
    stride_bt,
    stride_bn,
    stride_cs,
    stride_cm,
    stride_cn,
    stride_dt,
    ALONG_MEAN: tl.constexpr,
    EVEN_T: tl.constexpr,
    OFFSET: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_M: tl.constexpr,
    ALIGN_N: tl.constexpr,
    ALIGN_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    # All tiles of a split are neighbours, so that they read its samples from L2 at
    # about the same time.
    tiles_n = tl.cdiv(N, BLOCK_N)
    tiles = tl.cdiv(M, BLOCK_M) * tiles_n
    split, tile = tl.program_id(0) // tiles, tl.program_id(0) % tiles
    first_m, first_n, first_b = (
        tile // tiles_n * BLOCK_M,
        tile % tiles_n * BLOCK_N,
        split * share,
    )
    top, left = first_m.to(tl.int64), first_n.to(tl.int64)

    rows, columns, tokens = (
        tl.arange(0, BLOCK_M),
        tl.arange(0, BLOCK_N),
        tl.arange(0, BLOCK_T),
    )
    a_offs = (
        tl.multiple_of(rows.to(OFFSET) * stride_am, ALIGN)[:, None]
        + tl.multiple_of(tokens.to(OFFSET) * stride_at, ALIGN)[None, :]
    )
    b_offs = (
        tl.multiple_of(tokens.to(OFFSET) * stride_bt, ALIGN)[:, None]
        + tl.multiple_of(columns.to(OFFSET) * stride_bn, ALIGN)[None, :]
    )
    a_ptr += tl.multiple_of(top * stride_am, ALIGN)
    b_ptr += tl.multiple_of(left * stride_bn, ALIGN)
    in_m = rows[:, None] < tl.multiple_of(M - first_m, ALIGN_M)
    in_n = columns[None, :] < tl.multiple_of(N - first_n, ALIGN_N)
    # The means are dense, so their rows (columns, where they lie transposed) start at
    # multiples of what divides N (M).
    c_rows = tl.multiple_of(rows.to(OFFSET) * stride_cm, ALIGN_N)
    c_columns = tl.multiple_of(columns.to(OFFSET) * stride_cn, ALIGN_M)
    mean_ptr += tl.multiple_of(
        split.to(tl.int64) * stride_cs + top * stride_cm + left * stride_cn,
        max(ALIGN_M, ALIGN_N),
    )
    mean_ptrs = mean_ptr + (c_rows[:, None] + c_columns[None, :])
    dot_ptr += tile.to(tl.int64) * stride_dt

    if ALONG_MEAN:
        mean = tl.load(mean_ptrs, mask=in_m & in_n, other=0.0)
    else:
        mean = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    # Flattened, the two loops are one pipeline: a sample's last steps already load the
    # next one.
    for sample in tl.range(first_b, min(first_b + share, B), flatten=True):
        gradient = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for t in range(0, T, BLOCK_T):
            entry, token = tl.cast(sample, tl.int64), tl.cast(t, tl.int64)
            a_ptrs = (
                a_ptr
                + tl.multiple_of(entry * stride_ab + token * stride_at, ALIGN)
                + a_offs
            )
            b_ptrs = (
                b_ptr
                + tl.multiple_of(entry * stride_bb + token * stride_bt, ALIGN)
                + b_offs
            )
            if EVEN_T:
                a = tl.load(a_ptrs, mask=in_m, other=0.0)
                b = tl.load(b_ptrs, mask=in_n, other=0.0)
            else:
                rest = tl.multiple_of(T - t, ALIGN_T)
                a = tl.load(a_ptrs, mask=in_m & (tokens[None, :] < rest), other=0.0)
                b = tl.load(b_ptrs, mask=(tokens[:, None] < rest) & in_n, other=0.0)
            gradient = tl.dot(a, b, gradient, input_precision="ieee")
        if ALONG_MEAN:
            tl.store(dot_ptr + sample, tl.sum(gradient * mean))
        else:
            tl.store(dot_ptr + sample, tl.sum(gradient * gradient))
            mean += gradient
    if not ALONG_MEAN:
        tl.store(mean_ptrs, mean * scale, mask=in_m & in_n)


def tiles(x: torch.Tensor, dy: torch.Tensor, config: Mapping) -> int:
    """How many tiles a sample's gradient has."""
    a, b, _ = long_side_first(dy.mT, x)
    return triton.cdiv(a.shape[1], config["BLOCK_M"]) * triton.cdiv(
        b.shape[2], config["BLOCK_N"]
    )


def reduce_gradients(
    x: torch.Tensor,
    dy: torch.Tensor,
    means: torch.Tensor,
    dots: torch.Tensor,
    config: Mapping,
    scale: float | None = None,
) -> None:
    """Write each tile's part of ‖G_b‖² to `dots` [tiles, B], and scale·ΣG_b of each
    split to `means` [splits, O, I].

    Without a scale, `means` holds ḡ, for all splits the same (stride 0), and `dots`
    gets the parts of ⟨G_b, ḡ⟩.
    """
    a, b, c = long_side_first(dy.mT, x, means)
    (batch, m, t), n = a.shape, b.shape[2]
    block_m, block_n, block_t = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_T"]
    (_, am, at), (_, bt, bn), (_, cm, cn) = a.stride(), b.stride(), c.stride()
    reach = max(
        block_m * am + block_t * at,
        block_t * bt + block_n * bn,
        block_m * cm + block_n * cn,
    )
    _gradient_kernel[(len(means) * len(dots),)](
        a,
        b,
        c,
        dots,
        batch,
        t,
        m,
        n,
        triton.cdiv(batch, len(means)),
        scale or 0.0,
        *a.stride(),
        *b.stride(),
        *c.stride(),
        dots.stride(0),
        ALONG_MEAN=scale is None,
        EVEN_T=t % block_t == 0,
        OFFSET=tl.int64 if reach >= 2**31 else tl.int32,
        ALIGN=alignment(a, b),
        ALIGN_M=math.gcd(16, m),
        ALIGN_N=math.gcd(16, n),
        ALIGN_T=math.gcd(16, t),
        **config,
    )
