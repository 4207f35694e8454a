"""The product by tiles that several rungs launch, each with configurations of its own:
the kernel and its launcher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from batchline.kernels.backends import tl, triton


@triton.jit
def _product_kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    M,
    N,
    K,
    splits,
    k_per_split,
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
    EVEN_K: tl.constexpr,
    WIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    ALIGN_M: tl.constexpr,
    ALIGN_N: tl.constexpr,
    ALIGN_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    slab = program // (tiles_m * tiles_n)  # one split of one entry
    tile = program % (tiles_m * tiles_n)
    group_top = tile // (GROUP_M * tiles_n) * GROUP_M
    group_rows = min(tiles_m - group_top, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    first_m = (group_top + within % group_rows) * BLOCK_M
    first_n = within // group_rows * BLOCK_N
    first_k = slab % splits * k_per_split

    # The tile's place is a 64-bit scalar; offsets inside it have 32 bits, unless its
    # strides are huge.
    OFFSET: tl.constexpr = tl.int64 if WIDE else tl.int32
    rows, columns, depth = (
        tl.arange(0, BLOCK_M),
        tl.arange(0, BLOCK_N),
        tl.arange(0, BLOCK_K),
    )
    a_rows = tl.multiple_of(rows.to(OFFSET) * stride_am, ALIGN)
    a_depth = tl.multiple_of(depth.to(OFFSET) * stride_ak, ALIGN)
    b_depth = tl.multiple_of(depth.to(OFFSET) * stride_bk, ALIGN)
    b_columns = tl.multiple_of(columns.to(OFFSET) * stride_bn, ALIGN)
    a_offs = a_rows[:, None] + a_depth[None, :]
    b_offs = b_depth[:, None] + b_columns[None, :]
    entry = (slab // splits).to(tl.int64)
    top, left, near = first_m.to(tl.int64), first_n.to(tl.int64), first_k.to(tl.int64)
    a_ptr += tl.multiple_of(
        entry * stride_ab + top * stride_am + near * stride_ak, ALIGN
    )
    b_ptr += tl.multiple_of(
        entry * stride_bb + near * stride_bk + left * stride_bn, ALIGN
    )
    in_m = rows[:, None] < tl.multiple_of(M - first_m, ALIGN_M)
    in_n = columns[None, :] < tl.multiple_of(N - first_n, ALIGN_N)

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(first_k, min(first_k + k_per_split, K), BLOCK_K):
        if EVEN_K:
            a = tl.load(a_ptr + a_offs, mask=in_m, other=0.0)
            b = tl.load(b_ptr + b_offs, mask=in_n, other=0.0)
        else:
            rest = tl.multiple_of(K - k, ALIGN_K)
            a = tl.load(a_ptr + a_offs, mask=in_m & (depth[None, :] < rest), other=0.0)
            b = tl.load(b_ptr + b_offs, mask=(depth[:, None] < rest) & in_n, other=0.0)
        accumulator = tl.dot(a, b, accumulator, input_precision=PRECISION)
        a_ptr += tl.full((), BLOCK_K, tl.int64) * stride_ak
        b_ptr += tl.full((), BLOCK_K, tl.int64) * stride_bk

    # C is dense, so its rows (columns, where it is written transposed) start at
    # multiples of what divides N (M).
    c_rows = tl.multiple_of(rows.to(OFFSET) * stride_cm, ALIGN_N)
    c_columns = tl.multiple_of(columns.to(OFFSET) * stride_cn, ALIGN_M)
    c_ptr += tl.multiple_of(
        slab.to(tl.int64) * stride_cb + top * stride_cm + left * stride_cn,
        max(ALIGN_M, ALIGN_N),
    )
    tl.store(
        c_ptr + (c_rows[:, None] + c_columns[None, :]),
        accumulator.to(c_ptr.dtype.element_ty),
        mask=in_m & in_n,
    )


def product(
    a: torch.Tensor,
    b: torch.Tensor,
    c: torch.Tensor,
    tile: Mapping,
    splits: int = 1,
    precision: str = "ieee",
) -> None:
    """Write A @ B to `c` [B, M, N], or with splits the sums over each part of K to `c`
    [B·splits, M, N].

    `c` is dense, or the transpose of what is. `tile` has BLOCK_M, BLOCK_N, BLOCK_K,
    GROUP_M, num_warps and num_stages. `precision` is how fp32 is multiplied: "ieee"
    (FMAs) or "tf32" (tensor cores); other dtypes have no such choice.
    """
    batch, m, k = a.shape
    n = b.shape[2]
    block_m, block_n, block_k = tile["BLOCK_M"], tile["BLOCK_N"], tile["BLOCK_K"]
    (_, am, ak), (_, bk, bn), (_, cm, cn) = a.stride(), b.stride(), c.stride()
    reach = max(
        block_m * am + block_k * ak,
        block_k * bk + block_n * bn,
        block_m * cm + block_n * cn,
    )
    k_per_split = (
        k if splits == 1 else triton.cdiv(triton.cdiv(k, block_k), splits) * block_k
    )
    programs = batch * splits * triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    _product_kernel[(programs,)](
        a,
        b,
        c,
        m,
        n,
        k,
        splits,
        k_per_split,
        *a.stride(),
        *b.stride(),
        *c.stride(),
        EVEN_K=k % block_k == 0,
        WIDE=reach >= 2**31,
        ALIGN=alignment(a, b),
        ALIGN_M=math.gcd(16, m),
        ALIGN_N=math.gcd(16, n),
        ALIGN_K=math.gcd(16, k),
        PRECISION=precision,
        **tile,
    )


def alignment(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest power of two, up to 16, that divides every stride but those of 1
    along rows or columns.

    Triton looks for 16 alone: rows of 72 halves, which are whole 16-byte words, it
    would read 2 bytes at a time.
    """
    return math.gcd(
        16,
        *(
            stride
            for tensor in (a, b)
            for dim, stride in enumerate(tensor.stride())
            if stride != 1 or dim == 0 and len(tensor) > 1
        ),
    )


def vector_bytes(a: torch.Tensor, b: torch.Tensor) -> int:
    """Bytes that a thread can load at once from either operand; cp.async, and so the
    pipeline, wants 4 at least.
    """
    if not all(1 in tensor.stride()[1:] for tensor in (a, b)):
        return a.element_size()
    extents = [
        tensor.shape[dim]
        for tensor in (a, b)
        for dim in (1, 2)
        if tensor.stride(dim) == 1
    ]
    starts = a.storage_offset(), b.storage_offset()
    return min(16, a.element_size() * math.gcd(alignment(a, b), *extents, *starts))


def long_side_first(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None):
    """(A, B, C), or Bᵀ, Aᵀ and Cᵀ where C is under 64 rows high and wider: wgmma
    multiplies 64 rows at once.
    """
    return (
        (b.mT, a.mT, None if c is None else c.mT)
        if a.shape[1] < min(64, b.shape[2])
        else (a, b, c)
    )
