"""What is seen of one metered step while it runs: calls, contributions, and each
parameter's whole gradient; and what it leaves of each parameter, {ḡ, n, d}.

Of one call they come the layer's own compact way, by the kernel that the measured
dispatch names. Gradients of a parameter that is used several times in a step add up
before they are squared: the tokens of linear layers are put after each other, as if
they were one call's; any other mixture is written out, so many samples at a time as fit
a chunk.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn

from batchline.bench.errors import UsageError
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
_CHUNK = 2**23  # elements of per-sample gradients that exist at once


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


class Contribution(Protocol):
    """To the gradients of one parameter of P elements, by B samples."""

    dtype: torch.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        """[b, P] of these samples."""

    def statistics(self) -> Tensors:
        """ḡ[P] (in whatever shape), n[B] and d[B]; fp32, or fp64 for fp64."""


class Product(NamedTuple):
    """A linear layer's weight: sample b's gradient is dY_bᵀX_b, of X[B,T,I] and
    dY[B,T,O].
    """

    x: torch.Tensor
    dy: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.dy.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        wide = accumulator(self.dtype)
        return torch.bmm(
            self.dy[samples].to(wide).mT, self.x[samples].to(wide)
        ).flatten(1)

    def statistics(self) -> Tensors:
        return of_layer(self.x, self.dy)


class Rows(NamedTuple):
    """A parameter so small that its samples' gradients g[B,P] are kept: a bias, a
    normalisation's weight.
    """

    g: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.g.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        return self.g[samples].to(accumulator(self.dtype))

    def statistics(self) -> Tensors:
        return of_rows(self.g)


def combined(uses: Sequence[Contribution], batch: int, parameters: int) -> Tensors:
    """{ḡ, n, d} of all that the calls of a step added to one parameter's gradients."""
    if len(uses) == 1:
        return uses[0].statistics()
    if all(isinstance(use, Product) for use in uses):
        wide = accumulator(
            max((use.dtype for use in uses), key=lambda dtype: dtype.itemsize)
        )
        return Product(
            torch.cat([use.x.to(wide) for use in uses], 1),
            torch.cat([use.dy.to(wide) for use in uses], 1),
        ).statistics()
    return written_out(
        lambda samples: sum(use.gradients(samples) for use in uses), batch, parameters
    )


def written_out(
    gradients: Callable[[slice], torch.Tensor], batch: int, parameters: int
) -> Tensors:
    """{ḡ, n, d} of gradients(samples) → [b, P]: at once, or chunk by chunk and then
    again for d, which needs ḡ.
    """
    count = max(1, _CHUNK // max(1, parameters))
    if count >= batch:
        return of_rows(gradients(slice(0, batch)))
    chunks = [
        slice(start, min(start + count, batch)) for start in range(0, batch, count)
    ]
    total = 0
    n = []
    for chunk in chunks:
        g = gradients(chunk)
        total = total + g.sum(0, dtype=torch.float64)
        n.append(torch.linalg.vector_norm(g, dim=1, dtype=torch.float64).square())
    mean = total / batch
    d = [gradients(chunk).double() @ mean for chunk in chunks]
    return mean, torch.cat(n), torch.cat(d)


class Step:
    """What one metered step has recorded. Layers report their calls and contributions;
    hooks on the parameters report autograd's gradients.

    Args:
        names: every parameter that is measured, and its name.
    """

    def __init__(self, names: Mapping[nn.Parameter, str]):
        self.batch: int | None = None
        self._whose_batch = ""
        self._names = names
        self._calls: dict[nn.Parameter, int] = dict.fromkeys(names, 0)
        self._uses: dict[nn.Parameter, list[Contribution]] = defaultdict(list)
        self._replaced: dict[nn.Parameter, tuple[int, int]] = {}
        self._totals: dict[nn.Parameter, torch.Tensor] = {}
        self._statistics: dict[nn.Parameter, ParameterStatistics] = {}
        self._astray: list[str] = []
        self._pass: int | None = None
        self._over = False

    def sees_batch(self, whose: str, size: int) -> None:
        """The first dimension of a call's input. The first one told is the batch.

        Raises:
            UsageError: if it is another one than before: the samples are mixed, or in
            another dimension.
        """
        if self.batch is None:
            self.batch = size
            self._whose_batch = whose
            if not size:
                raise UsageError(
                    f"{whose} was given a batch of no samples: there is no gradient to measure"
                )
        elif size != self.batch:
            raise UsageError(
                f"{whose} has first dimension {size}, and {self._whose_batch} {self.batch}: samples must "
                "stay apart in dimension 0 of every layer (reshape to [batch, …], or expand over it)"
            )

    def calls(
        self, layer: str, x: torch.Tensor, parameters: Iterable[nn.Parameter]
    ) -> None:
        """A layer's forward call, with input x[B,…]."""
        size = len(x) if x.dim() else 1
        if size != self.batch or not size:
            self.sees_batch(layer, size)
        for parameter in parameters:
            self._calls[parameter] += 1

    def once(self, parameter: nn.Parameter) -> bool:
        """Whether one call alone has used it so far. Asked in the backward pass, that
        is: in the step.
        """
        return self._calls[parameter] == 1

    def backpropagates(self) -> bool:
        """Told by whatever runs within a backward pass; whether that still counts: a
        graph may outlive the step.

        Raises:
            UsageError: in a second backward pass.
        """
        if self._over:
            return False
        # torch counts its backward passes and has no public name for it;
        # utils.checkpoint relies on the same number.
        number = torch._C._current_graph_task_id()
        if self._pass is None:
            self._pass = number
        elif number != self._pass:
            raise UsageError(
                "two backward passes in one metered step: add the losses and call backward once, or "
                "measure each pass in a `with` of its own (checkpointing needs use_reentrant=False)"
            )
        return True

    def end(self) -> None:
        """Take in nothing from now on."""
        self._over = True

    def adds(self, parameter: nn.Parameter, use: Contribution) -> None:
        """What a call contributes to the samples' gradients of a parameter."""
        self._uses[parameter].append(use)

    def replaces(
        self,
        parameter: nn.Parameter,
        gradient: torch.Tensor,
        n: torch.Tensor,
        d: torch.Tensor,
    ) -> torch.Tensor:
        """The gradient that a parameter's only call returns to autograd, which is B·ḡ,
        and n and d beside it.
        """
        self._statistics[parameter] = ParameterStatistics(
            torch.linalg.vector_norm(gradient), n, d
        )
        if gradient.dtype != parameter.dtype:
            gradient = gradient.to(parameter.dtype)
        self._replaced[parameter] = gradient.data_ptr(), gradient._version
        return gradient

    def receives(self, parameter: nn.Parameter, total: torch.Tensor) -> None:
        """The sum of all gradients that autograd has for a parameter, before it goes to
        .grad.
        """
        ours = self._replaced.get(parameter)
        if ours is None:
            self._totals[parameter] = total.detach()
        elif ours != (
            total.data_ptr(),
            total._version,
        ):  # another one was added, into its memory or elsewhere
            self._astray.append(self._names[parameter])

    def finish(self) -> dict[str, ParameterStatistics]:
        """{‖B·ḡ‖, n, d} of what the samples contributed to each parameter's gradient.

        Raises:
            UsageError: if there was no backward pass, or a parameter had a gradient
            from outside its layer.
        """
        self._astray += [
            self._names[parameter]
            for parameter in self._totals
            if parameter not in self._uses
        ]
        if self._astray:
            raise UsageError(
                f"{', '.join(self._astray)}: used outside its own module's call (or changed by a hook), "
                "so its samples' gradients can't be seen; call the module, or freeze the parameter"
            )
        if self._pass is None:
            raise UsageError(
                "no backward pass was seen in the metered step: both the model's call and loss.backward() "
                "belong inside the `with`, with gradients enabled"
            )
        for parameter, uses in self._uses.items():
            mean, n, d = combined(uses, self.batch, parameter.numel())
            gradient = mean.reshape(-1) * self.batch
            total = self._totals.get(parameter)
            gap = (
                None
                if total is None
                else torch.linalg.vector_norm(
                    total.to(mean.dtype).reshape(-1) - gradient
                )
            )
            coarsest = max(
                torch.finfo(dtype).eps
                for dtype in (parameter.dtype, *(use.dtype for use in uses))
            )
            self._statistics[parameter] = ParameterStatistics(
                torch.linalg.vector_norm(gradient), n, d, gap, coarsest
            )
        return {
            name: self._statistics[parameter]
            for parameter, name in self._names.items()
            if parameter in self._statistics
        }


class ParameterStatistics(NamedTuple):
    """Of the samples' contributions to a gradient: its own norm ‖B·ḡ‖ (a scalar), n[B]
    and d[B].

    `gap` is how far B·ḡ is from what autograd has for the parameter; None where
    autograd has it from here. `eps` is the coarsest spacing of the dtypes that took
    part.
    """

    norm: torch.Tensor
    squared_norms: torch.Tensor
    inner_products: torch.Tensor
    gap: torch.Tensor | None = None
    eps: float = 0.0
