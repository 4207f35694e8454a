"""Convolutions: a sample's weight gradient is one product of its output gradient with
the patches of its input, or, of a depthwise one, a convolution of the two.
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
    trained,
)
from batchline.bench.noise.meter.step import Step, of_layer, of_rows
from batchline.kernels.op import Tensors
from batchline.kernels.statistics import accumulator

_AT_ONCE = 2**23  # elements of patches, or of samples' gradients, that exist at once
_FEW_POSITIONS = 64  # below it Gram matrices are faster than the samples' gradients: 22 and 116 ms at 16 positions


@dataclass(frozen=True)
class Form:
    """How a convolution goes over its input: per dimension of space. `kernel` is the
    weight's shape [O, I/groups, *size].
    """

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def size(self) -> tuple[int, ...]:
        return self.kernel[2:]

    @property
    def is_depthwise(self) -> bool:
        return self.groups > 1 and self.kernel[1] == 1

    def forward(self, x: torch.Tensor, weight, bias=None) -> torch.Tensor:
        return torch.convolution(x, weight, bias, *self._options)

    def backward(
        self, dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, of: int
    ) -> torch.Tensor:
        """The gradient of the input (of = 0) or of the weight (of = 1)."""
        wanted = [number == of for number in range(3)]
        return torch.ops.aten.convolution_backward(
            dy, x, weight, None, *self._options, wanted
        )[of]

    @property
    def _options(self) -> tuple:
        none = [0] * len(self.size)
        return self.stride, self.padding, self.dilation, False, none, self.groups

    def patches(self, x: torch.Tensor) -> torch.Tensor:
        """[b,C,*space] → [b, groups, K, L]: the K inputs of each of L output positions.

        A copy of strided views, which takes half as long as functional.unfold or less.
        """
        both_ends = [end for width in reversed(self.padding) for end in (width, width)]
        x = functional.pad(x, both_ends)
        space = len(self.size)
        for dim, (size, stride, dilation) in enumerate(
            zip(self.size, self.stride, self.dilation), start=2
        ):
            x = x.unfold(dim, (size - 1) * dilation + 1, stride)
            x = x[..., ::dilation]
        positions = range(2, 2 + space)
        inside = range(2 + space, 2 + 2 * space)
        x = x.permute(0, 1, *inside, *positions)
        return x.reshape(
            len(x), self.groups, math.prod(self.kernel[1:]), math.prod(x.shape[-space:])
        )


def convolution(
    layer: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d, forward: Callable, step: Step
) -> Callable:
    """The forward of x[B,C,*space] that reports to `step`; autocast as functional.conv
    has it.
    """
    weight = module.weight
    bias = module.bias
    own = trained((weight, bias))
    as_it_is = isinstance(module.padding, tuple) and module.padding_mode == "zeros"
    none = (0,) * (weight.dim() - 2)
    form = Form(
        tuple(weight.shape),
        module.stride,
        module.padding if as_it_is else none,
        module.dilation,
        module.groups,
    )
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    ends = module._reversed_padding_repeated_twice

    def call(input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return forward(input)
        alone = input.dim() < weight.dim()
        x = input[None] if alone else input
        step.calls(layer, x, own)
        x = as_autocast(x)
        if not as_it_is:
            x = functional.pad(x, ends, mode=mode)
        y = _Convolution.apply(x, weight, bias, step, form)
        return y[0] if alone else y

    return call


class _Convolution(torch.autograd.Function):
    """Where the pass is itself differentiated, its gradients are autograd's own."""

    @staticmethod
    def forward(ctx, x, weight, bias, step, form):
        ctx.step, ctx.form = step, form
        ctx.parameters = weight, bias  # a checkpoint's saved weight is another tensor
        ctx.save_for_backward(x, weight)
        bias = None if bias is None else bias.to(x.dtype)
        return form.forward(x, weight.to(x.dtype), bias)

    @staticmethod
    def backward(ctx, dy):
        x, weight = ctx.saved_tensors
        step, form = ctx.step, ctx.form
        parameter, bias = ctx.parameters
        needs_x, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        narrow = weight.to(dy.dtype)
        d_x = form.backward(dy, x, narrow, 0) if needs_x else None
        d_weight = d_bias = None
        if needs_weight:
            d_weight = returned(
                step,
                parameter,
                Patches(x.detach(), dy.detach(), form),
                lambda: form.backward(dy, x, narrow, 1),
            )
        if needs_bias:
            rows = dy.flatten(2).sum(2, dtype=accumulator(dy.dtype))
            d_bias = returned_bias(step, bias, rows)
        return d_x, d_weight, d_bias, None, None


@dataclass(frozen=True)
class Patches:
    """A convolution's weight, of x[B,C,*space] and dy[B,O,*positions]."""

    x: torch.Tensor
    dy: torch.Tensor
    form: Form

    @property
    def dtype(self) -> torch.dtype:
        return self.dy.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        wide = accumulator(self.dtype)
        x, dy = self.x[samples].to(wide), self.dy[samples].to(wide)
        of_some = self._depthwise if self.form.is_depthwise else self._of_patches
        count = self._count(self._inputs_per_sample())
        if count >= len(x):
            return of_some(x, dy)
        parts = zip(x.split(count), dy.split(count))
        return torch.cat([of_some(*part) for part in parts])

    def _of_patches(self, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        patches = self.form.patches(x).flatten(0, 1)
        dy = dy.reshape(len(patches), -1, patches.shape[2])
        return torch.bmm(dy, patches.mT).view(len(x), -1)

    def _depthwise(self, x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        """Each channel of each sample convolved with its own output gradient, whose
        stride and dilation change places.
        """
        form = self.form
        each = x.reshape(1, -1, *x.shape[2:])
        kernels = dy.reshape(-1, 1, *dy.shape[2:])
        turned = Form(
            tuple(kernels.shape),
            form.dilation,
            form.padding,
            form.stride,
            each.shape[1],
        )
        g = turned.forward(each, kernels)
        for dim, size in enumerate(form.size, start=2):
            g = g.narrow(dim, 0, size)  # inputs that no position reaches give more
        return g.reshape(len(x), -1)

    def _inputs_per_sample(self) -> int:
        """Elements that the inputs of a product take for each sample."""
        if self.form.is_depthwise:
            return self.x[0].numel()
        return (
            self.form.groups
            * math.prod(self.form.kernel[1:])
            * math.prod(self.dy.shape[2:])
        )

    def _count(self, elements: int) -> int:
        """How many samples exist at once, of so many elements each."""
        return max(1, _AT_ONCE // max(1, elements))

    def statistics(self) -> Tensors:
        """By Gram matrices where there are few positions, else from the samples' own
        gradients, so many at a time as fit.
        """
        batch = len(self.x)
        parameters = math.prod(self.form.kernel)
        few = math.prod(self.dy.shape[2:]) < _FEW_POSITIONS
        fits = self._count(self._inputs_per_sample()) >= batch
        if few and fits and self.form.groups == 1:
            patches = self.form.patches(self.x)[:, 0]
            return of_layer(patches.mT, self.dy.flatten(2).mT)
        count = self._count(parameters)
        if count >= batch:
            return of_rows(self.gradients(slice(0, batch)))
        return self._by_chunks(count)

    def _by_chunks(self, count: int) -> Tensors:
        """d_b = ⟨dy_b, x_b convolved with ḡ⟩, for which no gradient is made again."""
        batch = len(self.x)
        total: torch.Tensor | int = 0
        n = []
        for start in range(0, batch, count):
            g = self.gradients(slice(start, min(start + count, batch)))
            total = total + g.sum(0, dtype=torch.float64)
            n.append(torch.linalg.vector_norm(g, dim=1, dtype=torch.float64).square())
        wide = accumulator(self.dtype)
        mean = (total / batch).to(wide)
        along = self.form.forward(self.x.to(wide), mean.view(self.form.kernel))
        d = (along * self.dy.to(wide)).flatten(1).sum(1, dtype=torch.float64)
        return mean, torch.cat(n), d
