"""One program a tile of C, tiles in groups so that neighbours share rows of A and columns of B in L2.

Any strides, any sizes: every load is masked and addressed by stride. The batch is the slow part of grid.x, since
grid.y and grid.z stop at 65,535. fp16 and bf16 use the tensor cores (wgmma on sm_90); fp32 is IEEE, so plain FMAs.
"""
import torch

from kernels.backends import tl, triton
from kernels.bmm import bmm

GROUP_M = 8


@triton.jit
def _kernel(a_ptr, b_ptr, c_ptr, M, N, K, stride_ab, stride_am, stride_ak, stride_bb, stride_bk, stride_bn,
            stride_cb, stride_cm, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
            GROUP_M: tl.constexpr):
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    program = tl.program_id(0)
    entry = (program // (tiles_m * tiles_n)).to(tl.int64)
    tile = program % (tiles_m * tiles_n)
    group = tile // (GROUP_M * tiles_n)
    first_m = group * GROUP_M
    group_rows = min(tiles_m - first_m, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    tile_m = first_m + within % group_rows
    tile_n = within // group_rows

    # 64-bit: one entry's offsets alone can pass 2³¹ elements when it is strided.
    offs_m = (tile_m * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    offs_n = (tile_n * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)
    offs_k = tl.arange(0, BLOCK_K).to(tl.int64)
    in_m = offs_m[:, None] < M
    in_n = offs_n[None, :] < N
    a_ptrs = a_ptr + entry * stride_ab + offs_m[:, None] * stride_am + offs_k[None, :] * stride_ak
    b_ptrs = b_ptr + entry * stride_bb + offs_k[:, None] * stride_bk + offs_n[None, :] * stride_bn

    accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        a = tl.load(a_ptrs, mask=in_m & (offs_k[None, :] < K - k), other=0.0)
        b = tl.load(b_ptrs, mask=(offs_k[:, None] < K - k) & in_n, other=0.0)
        accumulator = tl.dot(a, b, accumulator, input_precision="ieee")
        a_ptrs += BLOCK_K * stride_ak
        b_ptrs += BLOCK_K * stride_bk
    c_ptrs = c_ptr + entry * stride_cb + offs_m[:, None] * stride_cm + offs_n[None, :]
    tl.store(c_ptrs, accumulator.to(c_ptr.dtype.element_ty), mask=in_m & in_n)


def _tile(m, n, dtype):
    """Tile and warps by rule: as large as the matrix fills; fp32 runs on FMAs, whose operands cost registers."""
    if dtype == torch.float32:
        block_m, block_n, block_k = 64, 64, 32
    else:
        block_m, block_n, block_k = 128, 128, 64
    block_m = min(block_m, max(16, triton.next_power_of_2(m)))
    block_n = min(block_n, max(16, triton.next_power_of_2(n)))
    return {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": block_k,
            "num_warps": 8 if block_m * block_n >= 128 * 128 else 4, "num_stages": 3}


@bmm.variant(backend="triton", dtypes=("float16", "bfloat16", "float32"), needs="cuda")
def triton_tiled(a, b):
    batch, m, k = a.shape
    n = b.shape[2]
    c = torch.empty((batch, m, n), dtype=a.dtype, device=a.device)
    if c.numel() == 0:
        return c
    tile = _tile(m, n, a.dtype)
    programs = batch * triton.cdiv(m, tile["BLOCK_M"]) * triton.cdiv(n, tile["BLOCK_N"])
    _kernel[(programs,)](a, b, c, m, n, k, *a.stride(), *b.stride(), c.stride(0), c.stride(1), GROUP_M=GROUP_M, **tile)
    return c
