"""One right side for every entry (a linear layer's weight) makes it one product: the
batch folds into A's rows.

Against `triton_autotuned`: a tile crosses from entry to entry, so rows are padded once
and not for each. Entries of 32 rows (the digits) fill tiles of 128, and 127 waste
nothing where each wasted one in 128. Programs that run together share B's columns
through L2 in groups, whichever entries they work on. A view does it, where A's rows go
on from entry to entry; where they don't, folding would copy A, and it declines. Bound
like one large product: by the tensor cores.
"""

import torch

from batchline.kernels._triton.product import long_side_first, product
from batchline.kernels._triton.product_tiles import rank_tiles
from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._folding import fold, why_not_folded
from batchline.kernels.tuning import Tunable


def _rule(a, b, target):
    return rank_tiles(fold(a)[None], b[:1], target)[0]


def _candidates(a, b, target):
    return rank_tiles(fold(a)[None], b[:1], target)[:12]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    supports=why_not_folded,
    builds_on="triton_autotuned",
    tunable=CONFIGS,
    example=("linear_forward", 16),
)
def triton_shared_rhs(a, b):
    c = torch.empty(
        (a.shape[0], a.shape[1], b.shape[2]), dtype=a.dtype, device=a.device
    )
    if c.numel():
        product(
            *long_side_first(fold(a)[None], b[:1], fold(c)[None]), CONFIGS.choose(a, b)
        )
    return c
