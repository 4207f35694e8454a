"""torch.func: vmap of the gradient of one sample's ⟨x Wᵀ, dy⟩, then the same three
passes.

What functorch users write for any layer. For a linear one the transform ends in the
same batched product, so what it adds is the transform's own host time, and a copy where
the layout of its gradients is not that of the passes.
"""

import functools

import torch

from batchline.kernels.grad_stats.torch_passes import passes, running_sum
from batchline.kernels.statistics import accumulator
from batchline.kernels.wgrad_stats import tolerance, wgrad_stats


def _loss(weight, x, dy):
    return (torch.nn.functional.linear(x, weight) * dy).sum()


_per_sample = torch.func.vmap(torch.func.grad(_loss), in_dims=(None, 0, 0))


def _why_not(x, dy):
    return None if len(x) else "vmap takes no empty batch"


@wgrad_stats.variant(
    backend="torch",
    supports=_why_not,
    builds_on="torch_materialize",
    tolerance=functools.partial(tolerance, error_of_sum=running_sum),
)
def torch_vmap(x, dy):
    dtype = accumulator(x.dtype)
    weight = torch.zeros(dy.shape[2], x.shape[2], dtype=dtype, device=x.device)
    mean, n, d = passes(_per_sample(weight, x.to(dtype), dy.to(dtype)).flatten(1))
    return mean.view_as(weight), n, d
