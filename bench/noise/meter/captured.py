"""Layers that run as they are, their inputs and output gradients seen on the way:
normalisations and embeddings.

Autograd makes their gradients as always; the samples' own are a sum over tokens, or
rows of a table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise.meter.contributions import Rows
from batchline.bench.noise.meter.step import Step
from batchline.kernels.op import Tensors
from batchline.kernels.statistics import accumulator


def normalisation(
    layer: str, module: nn.LayerNorm | nn.RMSNorm, forward: Callable, step: Step
) -> Callable:
    """The forward of x[B,…,*shape] that reports Σ_t dy∘x̂ for the weight and Σ_t dy for
    the bias, of each sample.
    """
    weight, bias = module.weight, getattr(module, "bias", None)
    trained = [
        parameter
        for parameter in (weight, bias)
        if parameter is not None and parameter.requires_grad
    ]
    features = len(module.normalized_shape)
    normalised = (
        functional.rms_norm if isinstance(module, nn.RMSNorm) else functional.layer_norm
    )

    def call(input: torch.Tensor) -> torch.Tensor:
        y = forward(input)
        if not y.requires_grad:
            return y
        step.calls(layer, input if input.dim() > features else input[None], trained)
        x = input.detach()

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = dy.detach().to(wide := accumulator(dy.dtype))
            if weight is not None and weight.requires_grad:
                x_hat = normalised(x.to(wide), module.normalized_shape, eps=module.eps)
                step.adds(weight, Rows(_over_tokens(dy * x_hat, features)))
            if bias is not None and bias.requires_grad:
                step.adds(bias, Rows(_over_tokens(dy, features)))

        y.register_hook(backward)
        return y

    return call


def _over_tokens(g: torch.Tensor, features: int) -> torch.Tensor:
    """[B,…,*shape] summed over all between → [B,P]."""
    g = g.flatten(-features)
    return g if g.dim() == 2 else g.flatten(1, -2).sum(1)


def embedding(
    layer: str, module: nn.Embedding, forward: Callable, step: Step
) -> Callable:
    """The forward of ids[B,…] → y[B,…,D] that reports the rows of the table that each
    sample adds to.
    """
    weight = module.weight

    def call(input: torch.Tensor) -> torch.Tensor:
        y = forward(input)
        if not y.requires_grad:
            return y
        step.calls(layer, input, (weight,))
        ids = input.detach().view(len(input), -1) if input.dim() else input[None, None]

        def backward(dy: torch.Tensor) -> None:
            if not step.backpropagates():
                return
            dy = dy.detach().reshape(*ids.shape, -1)
            if module.padding_idx is not None:
                dy = dy.masked_fill((ids == module.padding_idx)[..., None], 0)
            step.adds(weight, Lookup(ids, dy, module.num_embeddings))

        y.register_hook(backward)
        return y

    return call


@dataclass(frozen=True)
class Lookup:
    """An embedding's table[V,D]: sample b adds dy[b,t] to row ids[b,t], for ids[B,T]
    and dy[B,T,D].
    """

    ids: torch.Tensor
    dy: torch.Tensor
    vocabulary: int

    @property
    def dtype(self) -> torch.dtype:
        return self.dy.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        ids, dy = self.ids[samples], self.dy[samples].to(accumulator(self.dtype))
        keys = (
            ids + self.vocabulary * torch.arange(len(ids), device=ids.device)[:, None]
        )
        return _rows(dy.flatten(0, 1), keys.flatten(), self.vocabulary * len(ids)).view(
            len(ids), -1
        )

    def statistics(self) -> Tensors:
        """Rows of equal (sample, id) summed before they are squared: O(B·T·D) and no
        table a sample, no atomics.
        """
        (batch, tokens), dy = self.ids.shape, self.dy.to(accumulator(self.dtype))
        mean = _rows(dy.flatten(0, 1), self.ids.flatten(), self.vocabulary).div_(batch)
        d = (dy * mean[self.ids]).sum((1, 2))
        ids, order = self.ids.sort(1)
        first = torch.ones_like(ids, dtype=torch.bool)
        torch.ne(ids[:, 1:], ids[:, :-1], out=first[:, 1:])
        groups = first.flatten().cumsum(0) - 1
        ordered = dy.gather(1, order[..., None].expand_as(dy)).flatten(0, 1)
        squares = _rows(ordered, groups, batch * tokens).square().sum(1)
        return mean, (squares[groups].view(batch, tokens) * first).sum(1), d


def _rows(source: torch.Tensor, ids: torch.Tensor, rows: int) -> torch.Tensor:
    """[N,D] → [rows,D]: the rows of equal id summed, in one order from run to run."""
    return torch.ops.aten.embedding_dense_backward(source, ids, rows, -1, False)
