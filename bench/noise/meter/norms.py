"""Normalisations over channels: a sample's gradient of the weight is Σ dy∘x̂ over its
positions.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise.meter.gradients import trained
from batchline.bench.noise.meter.step import Rows, Step
from batchline.kernels.statistics import accumulator


def by_channel(
    layer: str,
    module: nn.GroupNorm | nn.modules.batchnorm._NormBase,
    forward: Callable,
    step: Step,
) -> Callable:
    """The forward of x[B,C,…] of a GroupNorm, an InstanceNorm, or a BatchNorm whose
    statistics stand still.
    """
    weight = module.weight
    bias = module.bias
    own = trained((weight, bias))
    unbatched = getattr(module, "_get_no_batch_dim", lambda: 0)()

    def call(input: torch.Tensor) -> torch.Tensor:
        y = forward(input)
        if not y.requires_grad:
            return y
        alone = input.dim() == unbatched
        x = input.detach()[None] if alone else input.detach()
        step.calls(layer, x, own)

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = (dy[None] if alone else dy).detach()
            dy = dy.to(accumulator(dy.dtype))
            if weight.requires_grad:
                x_hat = _standardised(module, x.to(dy.dtype))
                step.adds(weight, Rows(over_positions(dy * x_hat)))
            if bias is not None and bias.requires_grad:
                step.adds(bias, Rows(over_positions(dy)))

        y.register_hook(backward)
        return y

    return call


def _standardised(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """x less its mean, over its standard deviation, as the module has them."""
    if isinstance(module, nn.GroupNorm):
        return functional.group_norm(x, module.num_groups, eps=module.eps)
    if module.training or not module.track_running_stats:
        return functional.instance_norm(x, eps=module.eps)
    shape = (-1,) + (1,) * (x.dim() - 2)
    mean = module.running_mean.to(x.dtype).view(shape)
    variance = module.running_var.to(x.dtype).view(shape)
    return (x - mean) * (variance + module.eps).rsqrt()


def over_positions(g: torch.Tensor) -> torch.Tensor:
    """[B,C,…] summed over all after C → [B,C]."""
    return g if g.dim() == 2 else g.flatten(2).sum(2)
