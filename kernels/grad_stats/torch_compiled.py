"""torch.compile of the three passes: it joins those that need no mean, and never copies
g to widen it.

What is left is two reads of g: one for ḡ and n if its scheduler joins reductions along
different dimensions, and one for d, which needs all of ḡ first. Every call pays for its
guards.
"""

import torch

from batchline.kernels._torch.compilation import compile_fully
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.statistics import accumulator


def _passes(g):
    wide = g.to(accumulator(g.dtype))
    mean = torch.mean(wide, dim=0)
    return mean, wide.square().sum(1), (wide * mean).sum(1)


def _why_not(g):
    return None if g.numel() else "nothing to compile for an empty batch"


@grad_stats.variant(
    backend="torch", supports=_why_not, builds_on="torch_passes", slow_start=True
)
def torch_compiled(g):
    return compile_fully(_passes)(g)
