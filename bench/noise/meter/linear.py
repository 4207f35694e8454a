"""A linear layer whose backward pass takes the weight's gradient from the statistics:
B·ḡ, which has been paid for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise.meter import kernel
from batchline.bench.noise.meter.contributions import Product, Rows
from batchline.bench.noise.meter.step import Step
from batchline.kernels.statistics import accumulator


def metered(layer: str, module: nn.Linear, forward: Callable, step: Step) -> Callable:
    """The forward of x[B,…,I] → y[B,…,O] that reports to `step`; autocast as F.linear
    has it.
    """
    weight, bias = module.weight, module.bias
    trained = [
        parameter
        for parameter in (weight, bias)
        if parameter is not None and parameter.requires_grad
    ]

    def call(input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(input)
        step.calls(layer, input if input.dim() > 1 else input[None], trained)
        device = input.device.type
        if torch.is_autocast_enabled(device) and input.dtype != torch.float64:
            input = input.to(torch.get_autocast_dtype(device))
        return _Linear.apply(input, weight, bias, step)

    return call


class _Linear(torch.autograd.Function):
    """y = x Wᵀ + b. Where the pass is itself differentiated, its gradients are
    autograd's own.
    """

    @staticmethod
    def forward(ctx, x, weight, bias, step):
        ctx.step, ctx.parameters = step, (
            weight,
            bias,
        )  # a checkpoint's saved weight is another tensor
        ctx.save_for_backward(x, weight)
        return functional.linear(
            x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        )

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        step, (parameter, bias) = ctx.step, ctx.parameters
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        d_weight = d_bias = None
        d_x = torch.matmul(dy, weight.to(dy.dtype)) if needs_x else None
        listening = step.backpropagates()
        alone = listening and not torch.is_grad_enabled()
        if (
            alone
            and dy.dim() == 2
            and needs_weight
            and needs_bias
            and kernel.takes_one_token(dy)
            and step.once(parameter)
            and step.once(bias)
        ):
            of_weight, of_bias = kernel.of_one_token(x, dy)
            return (
                d_x,
                step.replaces(parameter, *of_weight),
                step.replaces(bias, *of_bias),
                None,
            )
        if needs_weight:
            tokens, d_tokens = _tokens(x), _tokens(dy)
            if alone and step.once(parameter):
                mean, n, d = kernel.of_layer(tokens, d_tokens)
                d_weight = step.replaces(parameter, mean.mul_(step.batch), n, d)
            else:
                d_weight = torch.matmul(
                    d_tokens.flatten(0, 1).T, tokens.flatten(0, 1)
                ).to(weight.dtype)
                if listening:
                    step.adds(parameter, Product(tokens.detach(), d_tokens.detach()))
        if needs_bias:
            rows = (
                dy if dy.dim() == 2 else _tokens(dy).sum(1, dtype=accumulator(dy.dtype))
            )
            if alone and step.once(bias):
                mean, n, d = kernel.of_rows(rows)
                d_bias = step.replaces(bias, mean.mul_(step.batch), n, d)
            else:
                d_bias = rows.sum(0, dtype=accumulator(dy.dtype)).to(weight.dtype)
                if listening:
                    step.adds(bias, Rows(rows.detach()))
        return d_x, d_weight, d_bias, None


def _tokens(x: torch.Tensor) -> torch.Tensor:
    """[B,…,I] as [B,T,I]; [I] is one sample."""
    if x.dim() == 2:
        return x.unsqueeze(1)
    return x.flatten(1, -2) if x.dim() > 1 else x.view(1, 1, -1)
