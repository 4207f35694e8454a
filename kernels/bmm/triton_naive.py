"""One program a 64x64 tile of C, tiles row by row: what one writes first.

Every load is masked and addressed by stride, so any size and layout is right. `tl.dot`
brings the tensor cores, and each element a program reads serves 64 products. In fp16 on
sm_90 a step's two wgmmas cost each warp 96 instructions (92 with A and B row-major),
most of them 64-bit addresses and masks. Rows of 72 elements, which 16 does not divide,
are read 2 bytes at a time with no cp.async (320 instructions). Bound by L2:
4096-squares read 4 GiB from it.
"""

import torch

from batchline.kernels.backends import tl, triton
from batchline.kernels.bmm import bmm

TILE = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}


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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    # 64-bit: one entry's offsets alone can pass 2³¹ elements when it is strided.
    entry = (program // (tiles_m * tiles_n)).to(tl.int64)
    tile = program % (tiles_m * tiles_n)
    offs_m = (tile // tiles_n * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    offs_n = (tile % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    in_m = offs_m[:, None] < M
    in_n = offs_n[None, :] < N

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        offs_k = (k + tl.arange(0, BLOCK_K)).to(tl.int64)
        a_ptrs = (
            a_ptr
            + entry * stride_ab
            + offs_m[:, None] * stride_am
            + offs_k[None, :] * stride_ak
        )
        b_ptrs = (
            b_ptr
            + entry * stride_bb
            + offs_k[:, None] * stride_bk
            + offs_n[None, :] * stride_bn
        )
        a = tl.load(a_ptrs, mask=in_m & (offs_k[None, :] < K), other=0.0)
        b = tl.load(b_ptrs, mask=(offs_k[:, None] < K) & in_n, other=0.0)
        accumulator = tl.dot(a, b, accumulator, input_precision="ieee")
    c_ptrs = c_ptr + entry * stride_cb + offs_m[:, None] * stride_cm + offs_n[None, :]
    tl.store(c_ptrs, accumulator.to(c_ptr.dtype.element_ty), mask=in_m & in_n)


@bmm.variant(backend="triton", dtypes=("float16", "bfloat16", "float32"), needs="cuda")
def triton_naive(a, b):
    batch, m, k = a.shape
    n = b.shape[2]
    c = torch.empty((batch, m, n), dtype=a.dtype, device=a.device)
    if c.numel():
        programs = (
            batch * triton.cdiv(m, TILE["BLOCK_M"]) * triton.cdiv(n, TILE["BLOCK_N"])
        )
        _kernel[(programs,)](
            a, b, c, m, n, k, *a.stride(), *b.stride(), c.stride(0), c.stride(1), **TILE
        )
    return c
