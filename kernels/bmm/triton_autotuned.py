"""The same kernel with tile, warps and stages by shape, and low products computed as
their transpose.

A candidate must fit the matrix, K and the shared memory; those are ordered by an
estimate of their time, and the first is the rule. One 1024-square gets 128 programs of
128x64 for 132 SMs, where 128x128 tiles are 64; a large one gets 128x256 (187 to 208
registers, no stack), whose 85 products an element read a quarter less from L2 than
128x128's 64. One step of K takes one stage: a 64-deep product has 32 KiB of shared
memory, not 96. With C under 64 rows, Bᵀ Aᵀ = Cᵀ puts the long side where wgmma has its
64 rows: 16x64x8192 compiles to wgmma, in triton_tiled to mma.sync. Bound next by what
every program sets up and drains alone, by cp.async's addresses, and by too few tiles
where K is long.
"""

import torch

from batchline.kernels._triton.product import long_side_first, product
from batchline.kernels._triton.product_tiles import fits, rank_tiles
from batchline.kernels.bmm import bmm
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct


def _rule(a, b, target):
    return rank_tiles(a, b, target)[0]


def _candidates(a, b, target):
    """The ten best by estimate; the first three also a stage deeper, and in other
    groups, where those can matter.
    """
    configs = rank_tiles(a, b, target)[:10]
    for config in configs[:3]:
        deeper = config | {"num_stages": config["num_stages"] + 1}
        tiles_in_entry = (
            a.shape[1] * b.shape[2] // (config["BLOCK_M"] * config["BLOCK_N"])
        )
        if config["num_stages"] >= 3 and fits(deeper, a.element_size(), target):
            configs.append(deeper)
        if tiles_in_entry > multiprocessors(a.device):
            configs.append(config | {"GROUP_M": 8})
    return distinct(configs)


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="triton_tiled",
    tunable=CONFIGS,
)
def triton_autotuned(a, b):
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    if c.numel():
        product(*long_side_first(a, b, c), CONFIGS.choose(a, b))
    return c
