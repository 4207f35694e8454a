"""Layers that other libraries define and many models have, recognised without importing
those: transformers' Conv1D, and the RMS norms that each model has a class of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise.meter.gradients import (
    as_autocast,
    returned,
    returned_bias,
    trained,
)
from batchline.bench.noise.meter.layers import normalisation, replayed
from batchline.bench.noise.meter.norms import over_positions
from batchline.bench.noise.meter.step import Product, Rows, Step
from batchline.kernels.statistics import accumulator

_EPSILONS = ("eps", "variance_epsilon", "epsilon")
_ROUNDINGS = 100  # how many of the dtype's eps two ways to the same norm may differ by


def recognised(module: nn.Module) -> Callable | None:
    """What measures a module of another library; None for one that is not known."""
    forward = type(module).forward
    origin = forward.__module__, forward.__qualname__
    if origin == ("transformers.pytorch_utils", "Conv1D.forward"):
        return transposed_linear
    if is_rms_norm(module):
        return root_mean_square
    if is_layer_norm(module, 1):
        return over_channels
    return normalisation if is_layer_norm(module, -1) else None


def transposed_linear(
    layer: str, module: nn.Module, forward: Callable, step: Step
) -> Callable:
    """The forward of x[B,…,I] → x W + b, of a weight[I,O], that reports to `step`;
    autocast as torch.addmm has it.
    """
    weight = module.weight
    bias = module.bias
    own = trained((weight, bias))

    def call(x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(x)
        step.calls(layer, x if x.dim() > 1 else x[None], own)
        return _TransposedLinear.apply(as_autocast(x), weight, bias, step)

    return call


class _TransposedLinear(torch.autograd.Function):
    """Where the pass is itself differentiated, its gradients are autograd's own."""

    @staticmethod
    def forward(ctx, x, weight, bias, step):
        ctx.step = step
        ctx.parameters = weight, bias  # a checkpoint's saved weight is another tensor
        ctx.save_for_backward(x, weight)
        y = torch.addmm(
            bias.to(x.dtype), x.reshape(-1, len(weight)), weight.to(x.dtype)
        )
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        parameter, bias = ctx.parameters
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        d_x = torch.matmul(dy, weight.to(dy.dtype).T) if needs_x else None
        d_weight = d_bias = None
        tokens = _tokens(x)
        d_tokens = _tokens(dy)
        if needs_weight:
            d_weight = returned(
                ctx.step,
                parameter,
                Product(d_tokens.detach(), tokens.detach()),
                lambda: tokens.flatten(0, 1).T @ d_tokens.flatten(0, 1),
            )
        if needs_bias:
            rows = d_tokens.sum(1, dtype=accumulator(dy.dtype))
            d_bias = returned_bias(ctx.step, bias, rows)
        return d_x, d_weight, d_bias, None


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """[B,…,I] as [B,T,I]; [I] is one sample."""
    if x.dim() == 1:
        return x.view(1, 1, -1)
    return x.unsqueeze(1) if x.dim() == 2 else x.flatten(1, -2)


def root_mean_square(
    layer: str, module: nn.Module, forward: Callable, step: Step
) -> Callable:
    """The forward of x[B,…,D] of a module that `is_rms_norm` knows."""
    weight = module._parameters["weight"]
    epsilon = _epsilon(module)
    replay = replayed(layer, module, forward, step, {"weight": weight})

    def call(*args, **kwargs) -> torch.Tensor:
        if kwargs or len(args) != 1:
            return replay(*args, **kwargs)
        y = forward(*args)
        if not y.requires_grad:
            return y
        x = args[0].detach()
        step.calls(layer, x if x.dim() > 1 else x[None], [weight])

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = dy.detach().to(accumulator(dy.dtype))
            x_hat = functional.rms_norm(x.to(dy.dtype), x.shape[-1:], eps=epsilon)
            g = dy * x_hat
            if g.dim() != 2:
                g = g.view(1, -1) if g.dim() == 1 else g.flatten(1, -2).sum(1)
            step.adds(weight, Rows(g))

        y.register_hook(backward)
        return y

    return call


def over_channels(
    layer: str, module: nn.LayerNorm, forward: Callable, step: Step
) -> Callable:
    """The forward of x[B,C,…] of a module that `is_layer_norm` knows over dimension 1."""
    weight = module.weight
    bias = module.bias
    own = trained((weight, bias))

    def call(x: torch.Tensor) -> torch.Tensor:
        y = forward(x)
        if not y.requires_grad:
            return y
        step.calls(layer, x, own)
        x = x.detach()

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = dy.detach().to(accumulator(dy.dtype))
            if weight.requires_grad:
                x_hat = _channel_norm(x.to(dy.dtype), module.eps)
                step.adds(weight, Rows(over_positions(dy * x_hat)))
            if bias is not None and bias.requires_grad:
                step.adds(bias, Rows(over_positions(dy)))

        y.register_hook(backward)
        return y

    return call


def _channel_norm(x: torch.Tensor, eps: float) -> torch.Tensor:
    """x[B,C,…] less its mean over C, over its standard deviation."""
    return functional.layer_norm(x.movedim(1, -1), x.shape[1:2], eps=eps).movedim(-1, 1)


def is_layer_norm(module: nn.Module, dim: int) -> bool:
    """Whether a LayerNorm with a forward of its own goes over this dimension of an
    image, by what it makes of a made-up one.
    """
    if not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) != 1:
        return False
    weight = module._parameters.get("weight")
    if weight is None or not _takes_one_input(module):
        return False
    dtype = accumulator(weight.dtype)
    number = torch.arange(6 * weight.numel(), device=weight.device, dtype=dtype)
    x = torch.sin(number).view(1, -1, 2, 3).movedim(1, dim)
    scale = torch.cos(number[: weight.numel()])
    try:
        y = _of_made_up(module, x, {"weight": scale, "bias": -scale})
    except Exception:  # whatever a stranger's forward says to a made-up input
        return False
    expected = _channel_norm(x.movedim(dim, 1), module.eps) * scale.view(-1, 1, 1)
    if module.bias is not None:
        expected = expected - scale.view(-1, 1, 1)
    expected = expected.movedim(1, dim)
    rounding = _ROUNDINGS * torch.finfo(dtype).eps
    return y.shape == x.shape and torch.allclose(y, expected, rounding, rounding)


@torch.no_grad()
def _of_made_up(
    module: nn.Module, x: torch.Tensor, values: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """What the module's own forward makes of x with these in the place of its
    parameters, which it has again afterwards.
    """
    own = dict(module._parameters)
    for name, parameter in own.items():
        if parameter is not None:
            module._parameters[name] = nn.Parameter(values[name])
    try:
        return type(module).forward(module, x)
    finally:
        module._parameters.update(own)


def is_rms_norm(module: nn.Module) -> bool:
    """Whether a module is y = x·(mean x² + eps)^-½·w, or the same with 1 + w: by the
    name of its class, by what it holds, and by what it makes of a made-up input and
    weight.
    """
    name = type(module).__name__
    own = {key for key, one in module._parameters.items() if one is not None}
    if not name.endswith(("RMSNorm", "LayerNorm")) or own != {"weight"}:
        return False
    if list(module.children()) or module._parameters["weight"].dim() != 1:
        return False
    if _epsilon(module) is None or not _takes_one_input(module):
        return False
    try:
        return _agrees(module)
    except Exception:  # whatever a stranger's forward says to a made-up input
        return False


def _epsilon(module: nn.Module) -> float | None:
    found = [getattr(module, name, None) for name in _EPSILONS]
    return next((one for one in found if isinstance(one, float)), None)


def _takes_one_input(module: nn.Module) -> bool:
    needed = [
        one
        for one in inspect.signature(type(module).forward).parameters.values()
        if one.default is inspect.Parameter.empty
    ]
    return len(needed) == 2  # itself and x


@torch.no_grad()
def _agrees(module: nn.Module) -> bool:
    """Rows of two sizes, so that eps counts in one, and none has a mean of 0. In fp64
    what is rounded to fp32 on the way does not agree.
    """
    own = module._parameters["weight"]
    dtype = accumulator(own.dtype)
    number = torch.arange(1, 1 + own.numel(), device=own.device, dtype=dtype)
    weight = torch.cos(number)
    x = torch.stack([torch.sin(number) + 0.5, torch.cos(3 * number) + 0.5])
    epsilon = _epsilon(module)
    x[1] *= epsilon**0.5
    y = _of_made_up(module, x[None], {"weight": weight})[0]
    rounding = _ROUNDINGS * torch.finfo(dtype).eps
    exact = x.double()
    exact = exact * (exact.square().mean(1, keepdim=True) + epsilon).rsqrt()
    return y.shape == exact.shape and any(
        torch.allclose(y.double(), exact * scale, rtol=rounding, atol=rounding)
        for scale in (weight.double(), 1 + weight.double())
    )
