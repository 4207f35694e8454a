"""Tiles of 128x128, walked in groups so that programs share both operands in L2, and
cheap addresses.

An element serves 128 products instead of 64: 4096-squares in fp16 read 2 GiB from L2,
not 4. Two such programs fit an SM of sm_90, 264 a wave: row by row a wave wants 41
strips of A and B, 1 MiB each, and in groups of 16 rows its first wants 33; over all
four waves that is 146 for 163 (and in groups of 8, 181). Inside a tile offsets have 32
bits, K has no mask where BLOCK_K divides it, and the compiler is told the powers of two
that divide sizes and strides, where alone it looks for 16. So 86 instructions a step
drive four times as many products as 96 of naive's. Rows of 72 elements, in entries a
multiple of 16 apart, come by 16-byte cp.async: 126 instructions and 118 registers,
where without these the same tile took 686, all 255 and a stack. fp32 is IEEE: 512 FMAs
among 606 instructions. Bound next by having one tile for all shapes: a lone 1024-square
is 64 programs for 132 SMs, and 16 rows leave wgmma for mma.sync.
"""

import torch

from batchline.kernels._triton.product import product, vector_bytes
from batchline.kernels.backends import triton
from batchline.kernels.bmm import bmm


def _tile(a, b):
    """As large as the matrix fills. Without cp.async a tile's loads are held in
    registers, so it is shallower.
    """
    if a.dtype == torch.float32:
        tile = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 16, "num_warps": 4}
    else:
        tile = {
            "BLOCK_M": 128,
            "BLOCK_N": 128,
            "BLOCK_K": 64 if vector_bytes(a, b) >= 4 else 32,
            "num_warps": 8,
        }
    block_m = min(tile["BLOCK_M"], max(16, triton.next_power_of_2(a.shape[1])))
    block_n = min(tile["BLOCK_N"], max(16, triton.next_power_of_2(b.shape[2])))
    return {
        **tile,
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "num_warps": 8 if block_m * block_n >= 128 * 128 else 4,
        "num_stages": 3,
        "GROUP_M": 16,
    }


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="triton_naive",
)
def triton_tiled(a, b):
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    if c.numel():
        product(a, b, c, _tile(a, b))
    return c
