"""fp32 on tensor cores as one tf32 product, which cuts the factors to 10 bits behind the
first.

`triton_tiled`'s kernel with `input_precision="tf32"`, in tiles of tensor cores. By an
H200's datasheet the peak is 495 TFLOP/s, where six bf16 products give 165 and FMAs 67.
The bound is that of `torch_bmm_tf32`, 2⁻⁹ of |A||B| wider than the op's. A step of K is
32 deep: 128x128 tiles of three stages take 96 KiB of shared memory. wgmma takes tf32
along K alone: on sm_90 an operand that lies across K comes 4 bytes at a time, where one
along K comes by 16 (attention_scores: 16 such loads, and 109 registers). Bound next by
that, and by the bits: more of them take more products.
"""

import torch

from batchline.kernels._triton.product import long_side_first, product, vector_bytes
from batchline.kernels.backends import triton
from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._tf32 import tf32_tolerance


def _tile(a, b):
    """As large as the matrix fills, and no deeper than K. Without cp.async a tile's
    loads are held in registers, so it is smaller.
    """
    widest = 128 if vector_bytes(a, b) > 4 else 64
    wide, tall, _ = long_side_first(a, b)
    block_m, block_n = (
        min(widest, max(16, triton.next_power_of_2(size)))
        for size in (wide.shape[1], tall.shape[2])
    )
    block_k = min(32, max(16, triton.next_power_of_2(a.shape[2])))
    return {
        "BLOCK_M": block_m,
        "BLOCK_N": block_n,
        "BLOCK_K": block_k,
        "GROUP_M": 16,
        "num_warps": 8 if block_m * block_n >= 128 * 128 else 4,
        "num_stages": max(1, min(3, triton.cdiv(a.shape[2], block_k))),
    }


@bmm.variant(
    backend="triton",
    dtypes=("float32",),
    needs="cuda",
    builds_on="triton_tiled",
    tolerance=tf32_tolerance,
)
def triton_tf32(a, b):
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    if c.numel():
        product(*long_side_first(a, b, c), _tile(a, b), precision="tf32")
    return c
