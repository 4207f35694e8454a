"""Helion's product: tiles written in PyTorch's own operations, which Helion turns into
a Triton kernel of its own.

A peer, at the tile, warps and stages that `triton_autotuned` takes by its rule: what
differs is the code that Helion makes of it, for one shape at a time. Helion's own
search takes minutes for each shape, and its tiles would be others. fp32 is IEEE.
"""

import functools
from collections.abc import Mapping

import torch

from batchline.kernels._triton.product import long_side_first
from batchline.kernels._triton.product_tiles import rank_tiles
from batchline.kernels.bmm import bmm
from batchline.kernels.target import target_of


@functools.cache
def _kernel(block_m, block_n, block_k, group_m, num_warps, num_stages):
    """The kernel in one configuration; it is compiled anew for each shape."""
    import helion

    from batchline.kernels.bmm._helion_product import product

    config = helion.Config(
        block_sizes=[1, block_m, block_n, block_k],
        l2_groupings=[group_m],
        num_warps=num_warps,
        num_stages=num_stages,
    )
    return helion.kernel(product, config=config, dot_precision="ieee")


def _configured(config: Mapping):
    return _kernel(
        config["BLOCK_M"],
        config["BLOCK_N"],
        config["BLOCK_K"],
        config["GROUP_M"],
        config["num_warps"],
        config["num_stages"],
    )


def _why_not(a, b):
    is_one = a.shape[1] == b.shape[2] == 1
    return "Helion compiles no product of one row and one column" if is_one else None


@bmm.variant(
    backend="helion",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    supports=_why_not,
)
def helion_tile(a, b):
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    if a.numel() == 0 or b.numel() == 0:
        return c.zero_()
    config = rank_tiles(a, b, target_of(a.device))[0]
    _configured(config)(*long_side_first(a, b, c))
    return c
