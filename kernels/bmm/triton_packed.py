"""Tiny matrices, up to 32 a side: a program takes several whole products, as one
batched `tl.dot`.

`triton_tiled` gives each 16x16x16 product four warps of its own, which issue 1472
instructions between them on sm_90. Here sixteen fp16 products share the four warps, and
each costs 42 (in fp32 eight share them: 204). Every load and store of contiguous
operands moves 16 bytes per thread, and all of a program's loads are in flight at once: 16
KB of them, at 40 registers a thread, so 12 programs fit a multiprocessor. M, N, K and
the strides are constants of the kernel, compiled once for each mix of them. A batched
product is mma.sync on every architecture, its operands through shared memory. Bound by
memory next; fp32, at 36 shared-memory reads for 256 multiply-adds, may meet shared
memory first.
"""

import torch

from batchline.kernels.backends import tl, triton
from batchline.kernels.bmm import bmm
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable

LARGEST = 32


@triton.jit
def _kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    B,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    stride_ab: tl.constexpr,
    stride_am: tl.constexpr,
    stride_ak: tl.constexpr,
    stride_bb: tl.constexpr,
    stride_bk: tl.constexpr,
    stride_bn: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PACK: tl.constexpr,
):
    # Sizes and strides are constants: where a size fills its block its mask costs
    # nothing, and rows of 8 load whole.
    FARTHEST: tl.constexpr = PACK * max(stride_ab, stride_bb, M * N) + BLOCK_K * max(
        stride_ak, stride_bk
    )
    OFFSET: tl.constexpr = (
        tl.int32
        if FARTHEST + BLOCK_M * stride_am + BLOCK_N * stride_bn < 2**31
        else tl.int64
    )
    first = tl.program_id(0).to(tl.int64) * PACK
    entries = tl.arange(0, PACK).to(OFFSET)[:, None, None]
    offs_m = tl.arange(0, BLOCK_M).to(OFFSET)[None, :, None]
    offs_n = tl.arange(0, BLOCK_N).to(OFFSET)[None, None, :]
    offs_k = tl.arange(0, BLOCK_K).to(OFFSET)
    k_of_a, k_of_b = offs_k[None, None, :], offs_k[None, :, None]
    in_batch = entries < B - first
    a = tl.load(
        a_ptr
        + first * stride_ab
        + (entries * stride_ab + offs_m * stride_am + k_of_a * stride_ak),
        mask=in_batch & (offs_m < M) & (k_of_a < K),
        other=0.0,
    )
    b = tl.load(
        b_ptr
        + first * stride_bb
        + (entries * stride_bb + k_of_b * stride_bk + offs_n * stride_bn),
        mask=in_batch & (k_of_b < K) & (offs_n < N),
        other=0.0,
    )
    c = tl.dot(a, b, input_precision="ieee")
    tl.store(
        c_ptr + first * (M * N) + (entries * (M * N) + offs_m * N + offs_n),
        c.to(c_ptr.dtype.element_ty),
        mask=in_batch & (offs_m < M) & (offs_n < N),
    )


def _blocks(a, b):
    """M, N and K as powers of two: the tensor cores' 16 at least, and K's 16 is what
    `tl.dot` asks of every dtype.
    """
    least = 4 if a.dtype == torch.float32 else 16
    m, n, k = a.shape[1], b.shape[2], a.shape[2]
    return (
        max(least, triton.next_power_of_2(m)),
        max(least, triton.next_power_of_2(n)),
        max(16, triton.next_power_of_2(k)),
    )


def _config(a, b, sums, num_warps):
    """As many products as make the largest of A, B and C `sums` elements per thread."""
    m, n, k = _blocks(a, b)
    return {
        "PACK": max(1, sums * 32 * num_warps // max(m * n, m * k, k * n)),
        "num_warps": num_warps,
    }


def _rule(a, b, target):
    """Sixteen 16-byte loads of A and B a thread at most, and a program for every
    multiprocessor while B lasts.
    """
    config = _config(a, b, 16 if a.dtype == torch.float32 else 32, 4)
    share = triton.next_power_of_2(
        triton.cdiv(max(1, a.shape[0]), multiprocessors(a.device))
    )
    return config | {"PACK": min(config["PACK"], max(4, share))}


def _candidates(a, b, target):
    sums = (8, 16, 32) if a.dtype == torch.float32 else (16, 32, 64)
    configs = [
        _rule(a, b, target),
        *(_config(a, b, each, warps) for each in sums for warps in (1, 2, 4, 8)),
    ]
    return [
        config for place, config in enumerate(configs) if config not in configs[:place]
    ]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def _supports(a, b):
    m, n, k = a.shape[1], b.shape[2], a.shape[2]
    return f"M, N or K is over {LARGEST}" if max(m, n, k) > LARGEST else None


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    supports=_supports,
    builds_on="triton_tiled",
    tunable=CONFIGS,
    example=("tiny_16", 4096),
)
def triton_packed(a, b):
    batch, m, k = a.shape
    n = b.shape[2]
    c = torch.empty((batch, m, n), dtype=a.dtype, device=a.device)
    if c.numel() == 0:
        return c
    config = CONFIGS.choose(a, b)
    block_m, block_n, block_k = _blocks(a, b)
    _kernel[(triton.cdiv(batch, config["PACK"]),)](
        a,
        b,
        c,
        batch,
        m,
        n,
        k,
        *a.stride(),
        *b.stride(),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        **config,
    )
    return c
