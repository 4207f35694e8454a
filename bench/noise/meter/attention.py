"""nn.MultiheadAttention: its projections as linear layers, and between them the
attention that torch has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise.meter.gradients import (
    as_autocast,
    returned,
    returned_bias,
    tell_call,
    trained,
)
from batchline.bench.noise.meter.layers import project, replayed
from batchline.bench.noise.meter.step import Product, Step
from batchline.kernels.op import Tensors
from batchline.kernels.statistics import accumulator


def is_supported(module: nn.MultiheadAttention) -> bool:
    """Whether its projections are its own parameters, packed into one, and nothing is
    appended to the keys.
    """
    return (
        isinstance(module._parameters.get("in_proj_weight"), nn.Parameter)
        and isinstance(module.out_proj._parameters.get("weight"), nn.Parameter)
        and module.bias_k is None
        and module.bias_v is None
        and not module.add_zero_attn
    )


@dataclass(frozen=True)
class Masks:
    """What an attention leaves out: a mask that is added to [B, heads, T, S], or all
    later positions.
    """

    added: torch.Tensor | None
    causal: bool


def attention(
    layer: str, module: nn.MultiheadAttention, forward: Callable, step: Step
) -> Callable:
    """The forward of query[B,T,E], key[B,S,E] and value[B,S,E] (or [T,B,E], as the
    module has it) that reports its projections to `step`.
    """
    own = trained(module.parameters())
    named = {key: one for key, one in module.named_parameters() if one.requires_grad}
    replay = replayed(layer, module, forward, step, named)

    def call(
        query,
        key,
        value,
        key_padding_mask=None,
        need_weights=True,
        attn_mask=None,
        average_attn_weights=True,
        is_causal=False,
    ):
        options = key_padding_mask, need_weights, attn_mask
        options = *options, average_attn_weights, is_causal
        if not torch.is_grad_enabled() or (is_causal and attn_mask is None):
            return forward(query, key, value, *options)
        if query.dim() != 3 or query.is_nested:
            return replay(query, key, value, *options)
        same = query is key, key is value
        inputs = [
            one if module.batch_first else one.transpose(0, 1)
            for one in (query, key, value)
        ]
        tell_call(step, layer, query, own, 0 if module.batch_first else 1)
        heads = _project_in(module, inputs, same, step)
        masks = _masks(
            module,
            heads[0],
            key_padding_mask,
            attn_mask,
            is_causal and not need_weights,
        )
        attend = _attend_and_weigh if need_weights else _attend
        y, weights = attend(heads, masks, module.dropout if module.training else 0.0)
        # in memory as torch has it, so that a dropout after it draws the same
        y = y.permute(2, 0, 1, 3).flatten(2)
        y = project(y, module.out_proj.weight, module.out_proj.bias, step, 1)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        return (y.transpose(0, 1) if module.batch_first else y), weights

    return call


def _project_in(
    module: nn.MultiheadAttention,
    inputs: list[torch.Tensor],
    same: tuple[bool, bool],
    step: Step,
) -> list[torch.Tensor]:
    """Queries, keys and values as [B, heads, T, E/heads]."""
    weight = module.in_proj_weight
    bias = module.in_proj_bias
    inputs = [as_autocast(one) for one in inputs]
    if all(same):
        projected = project(inputs[0], weight, bias, step).chunk(3, -1)
    else:
        projected = _Packed.apply(*inputs, weight, bias, step)
    return [
        one.unflatten(-1, (module.num_heads, module.head_dim)).transpose(1, 2)
        for one in projected
    ]


class _Packed(torch.autograd.Function):
    """Three linear layers of inputs of their own, whose weights and biases are
    thirds of one.
    """

    @staticmethod
    def forward(ctx, query, key, value, weight, bias, step):
        ctx.step = step
        ctx.parameters = weight, bias  # a checkpoint's saved weight is another tensor
        ctx.save_for_backward(query, key, value, weight)
        weights = weight.to(query.dtype).chunk(3)
        biases = [None] * 3 if bias is None else bias.to(query.dtype).chunk(3)
        inputs = query, key, value
        return tuple(map(functional.linear, inputs, weights, biases))

    @staticmethod
    def backward(ctx, *d_outputs):
        *inputs, weight = ctx.saved_tensors
        parameter, bias = ctx.parameters
        needs_inputs, (needs_weight, needs_bias, _) = (
            ctx.needs_input_grad[:3],
            ctx.needs_input_grad[3:],
        )
        weights = weight.to(d_outputs[0].dtype).chunk(3)
        d_inputs = [
            torch.matmul(dy, third) if needed else None
            for dy, third, needed in zip(d_outputs, weights, needs_inputs)
        ]
        d_weight = d_bias = None
        if needs_weight:
            parts = [
                Product(x.detach(), dy.detach()) for x, dy in zip(inputs, d_outputs)
            ]
            d_weight = returned(
                ctx.step,
                parameter,
                Stacked(parts),
                lambda: torch.cat(
                    [
                        dy.flatten(0, 1).T @ x.flatten(0, 1)
                        for x, dy in zip(inputs, d_outputs)
                    ]
                ),
            )
        if needs_bias:
            wide = accumulator(d_outputs[0].dtype)
            rows = torch.cat([dy.sum(1, dtype=wide) for dy in d_outputs], 1)
            d_bias = returned_bias(ctx.step, bias, rows)
        return *d_inputs, d_weight, d_bias, None


@dataclass(frozen=True)
class Stacked:
    """A weight whose rows are those of several layers, one after the other."""

    parts: list[Product]

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        return torch.cat([part.gradients(samples) for part in self.parts], 1)

    def statistics(self) -> Tensors:
        means, n, d = zip(*(part.statistics() for part in self.parts))
        return torch.cat(means), sum(n), sum(d)


def _masks(
    module: nn.MultiheadAttention,
    queries: torch.Tensor,
    key_padding: torch.Tensor | None,
    mask: torch.Tensor | None,
    causal: bool,
) -> Masks:
    """Both masks as one; `causal` says that `mask` is that of all later positions."""
    if causal and key_padding is None:
        return Masks(None, True)
    added = None
    if mask is not None:
        added = _additive(mask, queries.dtype)
        if added.dim() == 3:
            added = added.unflatten(0, (-1, module.num_heads))
    if key_padding is not None:
        padding = _additive(key_padding, queries.dtype)[:, None, None, :]
        added = padding if added is None else added + padding
    return Masks(added, False)


def _additive(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(mask, -math.inf)


def _attend(
    heads: list[torch.Tensor], masks: Masks, dropout: float
) -> tuple[torch.Tensor, None]:
    y = functional.scaled_dot_product_attention(
        *heads, masks.added, dropout, masks.causal
    )
    return y, None


def _attend_and_weigh(
    heads: list[torch.Tensor], masks: Masks, dropout: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """With the weights [B, heads, T, S] of the values."""
    queries, keys, values = heads
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.mT
    if masks.added is not None:
        scores = scores + masks.added
    weights = functional.dropout(scores.softmax(-1), dropout, dropout > 0)
    return weights @ values, weights
