"""K is split over programs where C has too few tiles; a second kernel adds the fp32
partial sums in order.

A 16x64 product 8192 deep is one tile: one of 132 SMs reads 1.25 MiB alone. Split by 32,
as many programs go 256 deep each, and their partial sums are 128 KiB, a tenth of the
operands. The split is chosen together with the tile, a second launch and its traffic
counted in, and without one this is `triton_autotuned`. No atomics, so the same bits
from run to run. Bound next by that second launch.
"""

import torch

from batchline.kernels._triton.column_sums import column_sums, levels_of
from batchline.kernels._triton.product import long_side_first, product
from batchline.kernels._triton.product_tiles import rank_tiles
from batchline.kernels.backends import tl, triton
from batchline.kernels.bmm import bmm
from batchline.kernels.tuning import Tunable

SUM = {"ROWS": 16, "COLUMNS": 128, "num_warps": 4}
SUM_LEVELS = levels_of(*SUM.values(), torch.float32.itemsize)


@triton.jit
def _sum_kernel(
    partial_ptr,
    c_ptr,
    splits,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    blocks = tl.cdiv(size, COLUMNS)
    entry = (tl.program_id(0) // blocks).to(tl.int64)
    offs = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS).to(tl.int64)
    rows = tl.arange(0, ROWS).to(tl.int64)
    in_c = offs < size
    accumulator = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for split in range(0, splits, ROWS):
        offs_split = split + rows[:, None]
        accumulator += tl.load(
            partial_ptr + (entry * splits + offs_split) * size + offs[None, :],
            mask=(offs_split < splits) & in_c[None, :],
            other=0.0,
        )
    total = column_sums(accumulator, LEVELS)
    tl.store(c_ptr + entry * size + offs, total.to(c_ptr.dtype.element_ty), mask=in_c)


def _rule(a, b, target):
    return rank_tiles(a, b, target, split_k=True)[0]


def _candidates(a, b, target):
    return rank_tiles(a, b, target, split_k=True)[:16]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="triton_autotuned",
    tunable=CONFIGS,
    example=("skinny_long_k", 1),
)
def triton_split_k(a, b):
    batch, m, n = a.shape[0], a.shape[1], b.shape[2]
    c = torch.empty((batch, m, n), dtype=a.dtype, device=a.device)
    if c.numel() == 0:
        return c
    tile = dict(CONFIGS.choose(a, b))
    splits = tile.pop("SPLITS")
    if splits == 1:
        product(*long_side_first(a, b, c), tile)
        return c
    partial = torch.empty((batch * splits, m, n), dtype=torch.float32, device=a.device)
    product(*long_side_first(a, b, partial), tile, splits)
    _sum_kernel[(batch * triton.cdiv(m * n, SUM["COLUMNS"]),)](
        partial, c, splits, m * n, LEVELS=SUM_LEVELS, **SUM
    )
    return c
