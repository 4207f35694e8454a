"""Which kernel makes {ḡ, n, d}: the measured dispatch for layers, one read for
per-sample gradients that exist.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch

from batchline.kernels.elements import dtype_name
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.op import Tensors, Variant
from batchline.kernels.statistics import accumulator
from batchline.kernels.wgrad_stats import wgrad_stats

_ONE_READ = ("numba_cpu_one_read", "triton_one_read")
_SMALL = (
    2**18
)  # multiply-adds in all, which the fused kernel does in one thread: calls take longer than they do
_MOST_CHOICES = 1024
_choices: dict[tuple, Callable[..., Tensors]] = {}


def forget_choices() -> None:
    """Let the dispatch be asked anew for every shape: it may say something else now."""
    _choices.clear()


def of_layer(x: torch.Tensor, dy: torch.Tensor) -> Tensors:
    """X[B,T,I] and dY[B,T,O] → ḡ[O,I], n[B], d[B] of the products dY_bᵀX_b; fp32, or
    fp64 for fp64 inputs.
    """
    x, dy = (
        x.resolve_neg(),
        dy.resolve_neg(),
    )  # kernels read the memory, where a lazy sign is not
    if not x.is_cuda and x.dtype != (wide := accumulator(x.dtype)):
        x, dy = x.to(wide), dy.to(
            wide
        )  # the CPU's fused kernel knows no narrow dtype; the others hold B·O·I numbers
    if torch.is_autocast_enabled(x.device.type):
        with autocast_off(x.device.type):
            return _function(x, dy)(x, dy)
    return _function(x, dy)(x, dy)


def _function(x: torch.Tensor, dy: torch.Tensor) -> Callable[..., Tensors]:
    key = x.shape, dy.shape, x.dtype, x.device
    function = _choices.get(key)
    if function is None:
        if len(_choices) >= _MOST_CHOICES:  # as many lengths of text as there are
            _choices.clear()
        function = _choices[key] = _choose(x, dy)
    return function


def _choose(x: torch.Tensor, dy: torch.Tensor) -> Callable[..., Tensors]:
    """What the dispatch chooses; for a small problem on a CPU one call instead of nine
    to a library.
    """
    device = "cuda" if x.is_cuda else "cpu"
    variants = wgrad_stats.variants
    names = [wgrad_stats.dispatch.look_up(x, dy).variant]
    if not x.is_cuda and x.numel() * dy.shape[2] <= _SMALL:
        names.insert(0, "numba_cpu_fused")
    for variant in (variants[name] for name in names if name in variants):
        if (
            variant.why_not_here(device) is None
            and variant.why_unsupported(x, dy) is None
        ):
            return variant.function
    return wgrad_stats


def takes_one_token(dy: torch.Tensor) -> bool:
    """Whether `of_one_token` is the way for dY[B,O]: on a CPU, where a GPU has a kernel
    of its own.
    """
    return not dy.is_cuda and not torch.is_autocast_enabled(dy.device.type)


def of_one_token(x: torch.Tensor, dy: torch.Tensor) -> tuple[Tensors, Tensors]:
    """X[B,I] and dY[B,O] → {B·ḡ, n, d} of the weight[O,I] and of the bias[O], whose
    gradients are dy xᵀ and dy.

    `wgrad_stats/torch_rank_one`'s closed form, which a CPU's dispatch takes for one
    token: the bias shares ‖dy‖, and the sum over the batch is never divided and
    multiplied again. Small layers wait for calls: these are half as many.
    """
    x, dy = (tensor.to(accumulator(tensor.dtype)) for tensor in (x, dy))
    norm = torch.linalg.vector_norm(dy, dim=1)
    x_norm = torch.linalg.vector_norm(x, dim=1)
    weight = torch.mm(dy.t(), x)
    bias = dy.sum(0)
    along = torch.mm(x, weight.t()).mul_(dy).sum(1).div_(len(x))
    return (weight, x_norm.mul_(norm).square_(), along), (
        bias,
        norm.square(),
        torch.mv(dy, bias).div_(len(x)),
    )


def of_rows(g: torch.Tensor) -> Tensors:
    """Per-sample gradients g[B,P] → ḡ[P], n[B], d[B]; fp32, or fp64 for fp64."""
    g = g.resolve_neg()
    for variant in _row_kernels("cuda" if g.is_cuda else "cpu", dtype_name(g.dtype)):
        if variant.supports is None or variant.supports(g) is None:
            return variant.function(g)
    return grad_stats(g)


def autocast_off(device: str) -> contextlib.AbstractContextManager:
    """Statistics are sums in fp32 and more, also where the backward pass runs under
    autocast.
    """
    return (
        torch.autocast(device, enabled=False)
        if torch.is_autocast_enabled(device)
        else contextlib.nullcontext()
    )


@functools.cache
def _row_kernels(device: str, dtype: str) -> tuple[Variant, ...]:
    variants = [
        grad_stats.variants[name] for name in _ONE_READ if name in grad_stats.variants
    ]
    return tuple(
        variant
        for variant in variants
        if variant.why_not_here(device, dtype) is None
        and (variant.dtypes is None or dtype in variant.dtypes)
    )
