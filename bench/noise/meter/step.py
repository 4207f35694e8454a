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
# Of 2²⁴ elements its n is 1e-3 too small on a CPU, which its own bound allows.
_RUNNING_SUM = "torch_materialize"
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
    to a library, and no running sum.
    """
    device = "cuda" if x.is_cuda else "cpu"
    variants = wgrad_stats.variants
    names = [wgrad_stats.dispatch.look_up(x, dy).variant]
    if not x.is_cuda:
        is_small = x.numel() * dy.shape[2] <= _SMALL
        if is_small or names[0] == _RUNNING_SUM:
            names.insert(0, "numba_cpu_fused")
        names = [name for name in names if name != _RUNNING_SUM]
    for variant in (variants[name] for name in names if name in variants):
        if (
            variant.why_not_here(device) is None
            and variant.why_unsupported(x, dy) is None
        ):
            return variant.function
    return wgrad_stats if x.is_cuda else _materialised


def _materialised(x: torch.Tensor, dy: torch.Tensor) -> Tensors:
    """`of_layer` by writing the samples' gradients."""
    mean, n, d = of_rows(torch.bmm(dy.mT, x).flatten(1))
    return mean.view(dy.shape[2], x.shape[2]), n, d


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
    dy_norm = torch.linalg.vector_norm(dy, dim=1)
    x_norm = torch.linalg.vector_norm(x, dim=1)
    weight = torch.mm(dy.t(), x)
    bias = dy.sum(0)
    along = torch.mm(x, weight.t()).mul_(dy).sum(1).div_(len(x))
    return (weight, x_norm.mul_(dy_norm).square_(), along), (
        bias,
        dy_norm.square(),
        torch.mv(dy, bias).div_(len(x)),
    )


def of_rows(g: torch.Tensor) -> Tensors:
    """Per-sample gradients g[B,P] → ḡ[P], n[B], d[B]; fp32, or fp64 for fp64."""
    g = g.resolve_neg()
    for variant in _row_kernels("cuda" if g.is_cuda else "cpu", dtype_name(g.dtype)):
        if variant.supports is None or variant.supports(g) is None:
            return variant.function(g)
    return grad_stats(g) if g.is_cuda else _three_passes(g)


def _three_passes(g: torch.Tensor) -> Tensors:
    """`of_rows` on a CPU without a kernel of ours."""
    g = g.to(accumulator(g.dtype))
    mean = g.mean(0)
    return mean, norm(g, dim=1).square().to(g.dtype), torch.mv(g, mean)


def norm(x: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """‖x‖ over a dimension or all of it, in fp64: torch's fp32 norm on a CPU is a running
    sum for each lane of a vector, which is 7e-4 too small for 2²⁴ elements.
    """
    return torch.linalg.vector_norm(x, dim=dim, dtype=torch.float64)


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
    dY[B,T,O]. `known`: its {ḡ, n, d}, where they were taken already.
    """

    x: torch.Tensor
    dy: torch.Tensor
    known: Tensors | None = None

    @property
    def dtype(self) -> torch.dtype:
        return self.dy.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        wide = accumulator(self.dtype)
        return torch.bmm(
            self.dy[samples].to(wide).mT, self.x[samples].to(wide)
        ).flatten(1)

    def statistics(self) -> Tensors:
        return of_layer(self.x, self.dy) if self.known is None else self.known

    def along(self, direction: torch.Tensor) -> torch.Tensor:
        """[B]: each sample's gradient times direction[O·I]."""
        x = self.x.to(direction.dtype)
        dy = self.dy.to(direction.dtype)
        weight = direction.view(dy.shape[-1], x.shape[-1])
        return (torch.matmul(x, weight.T) * dy).sum((1, 2))

    def scaled_norms(self, scale: torch.Tensor) -> torch.Tensor:
        """[B]: the squared norm of each sample's gradient times scale[O·I]; of one token
        Σ s²_oi dy²_o x²_i, a product.
        """
        if self.x.shape[1] > 1:
            return in_chunks(self.gradients, scale, len(self.x))
        x = self.x[:, 0].to(scale.dtype).square()
        dy = self.dy[:, 0].to(scale.dtype).square()
        squares = scale.square().view(dy.shape[1], x.shape[1])
        return (torch.mm(x, squares.T) * dy).sum(1, dtype=torch.float64)


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


class Fold:
    """Which rows of the model's input are one sample's: order[B,p], p of each.

    Args:
        owners: [R], the sample of each row, from 0; every sample has equally many.
    """

    def __init__(self, owners: torch.Tensor):
        counts = torch.bincount(owners)
        if owners.dim() != 1 or counts.min() != counts.max():
            raise UsageError(
                "samples= says for each row of the model's input which sample it belongs to, from 0, and each "
                f"sample has equally many rows: these have {int(counts.min())} to {int(counts.max())}"
            )
        order = torch.argsort(owners, stable=True)
        self.order = order.view(len(counts), -1)
        self.rows = len(owners)
        self._indices: dict[tuple, torch.Tensor] = {}

    @property
    def samples(self) -> int:
        return len(self.order)

    def index(self, samples: slice) -> torch.Tensor:
        """The rows of these samples; the same tensor each time, for replays remember
        by it.
        """
        key = samples.start, samples.stop
        if key not in self._indices:
            self._indices[key] = self.order[samples].flatten()
        return self._indices[key]


class Folded(NamedTuple):
    """A contribution whose rows are put together by sample."""

    use: Contribution
    fold: Fold

    @property
    def dtype(self) -> torch.dtype:
        return self.use.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        g = self.use.gradients(self.fold.index(samples))
        return g.view(-1, self.fold.order.shape[1], g.shape[1]).sum(1)

    def statistics(self) -> Tensors:
        numel = self.use.gradients(self.fold.index(slice(0, 1))).shape[1]
        return written_out(self.gradients, self.fold.samples, numel)


def folded(use: Contribution, fold: Fold) -> Contribution:
    """The contribution with one entry for each sample, not for each row."""
    order = fold.order
    if isinstance(use, Product):
        order = order.to(use.x.device)
        return Product(use.x[order].flatten(1, 2), use.dy[order].flatten(1, 2))
    if isinstance(use, Rows):
        order = order.to(use.g.device)
        return Rows(use.g[order].sum(1, dtype=accumulator(use.dtype)))
    return Folded(use, fold)


def along(
    uses: Sequence[Contribution], direction: torch.Tensor, batch: int
) -> torch.Tensor:
    """[B]: what each sample contributed, times direction[P]."""
    dots = 0
    for use in uses:
        if isinstance(use, Product):
            dots = dots + use.along(direction)
            continue
        count = max(1, _CHUNK // max(1, len(direction)))
        chunks = [
            slice(start, min(start + count, batch)) for start in range(0, batch, count)
        ]
        dots = dots + torch.cat(
            [use.gradients(chunk).to(direction.dtype) @ direction for chunk in chunks]
        )
    return dots


def scaled_norms(
    uses: Sequence[Contribution], scale: torch.Tensor, batch: int
) -> torch.Tensor:
    """[B], fp64: the squared norm of what each sample contributed, times scale[P]
    element by element.

    Such a norm is no product of Gram matrices, so the samples' gradients are made, so
    many at a time as fit a chunk; but of one token, and of an embedding's own rows.
    """
    if len(uses) == 1 and hasattr(uses[0], "scaled_norms"):
        return uses[0].scaled_norms(scale)
    return in_chunks(
        lambda samples: sum(use.gradients(samples) for use in uses), scale, batch
    )


def in_chunks(
    gradients: Callable[[slice], torch.Tensor], scale: torch.Tensor, batch: int
) -> torch.Tensor:
    """[B], fp64: the squared norms of gradients(samples) → [b, P] times scale[P]."""
    count = max(1, _CHUNK // max(1, len(scale)))
    norms = []
    for start in range(0, batch, count):
        g = gradients(slice(start, min(start + count, batch))) * scale
        norms.append(norm(g, dim=1).square())
    return torch.cat(norms)


def combined(uses: Sequence[Contribution], batch: int, parameters: int) -> Tensors:
    """{ḡ, n, d} of all that the calls of a step added to one parameter's gradients."""
    if len(uses) == 1:
        return uses[0].statistics()
    products = [use for use in uses if isinstance(use, Product)]
    others = [use for use in uses if not isinstance(use, Product)]
    if not others:
        return joined(products).statistics()
    if all(hasattr(use, "beside") for use in others):
        first, *rest = others
        return first.joined(rest).beside(joined(products) if products else None)
    return written_out(
        lambda samples: sum(use.gradients(samples) for use in uses), batch, parameters
    )


def joined(products: Sequence[Product]) -> Product:
    """Their tokens after each other, as if they were one call's."""
    if len(products) == 1:
        return products[0]
    wide = accumulator(
        max((one.dtype for one in products), key=lambda dtype: dtype.itemsize)
    )
    return Product(
        torch.cat([one.x.to(wide) for one in products], 1),
        torch.cat([one.dy.to(wide) for one in products], 1),
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
        n.append(norm(g, dim=1).square())
    mean = total / batch
    d = [gradients(chunk).double() @ mean for chunk in chunks]
    return mean, torch.cat(n), torch.cat(d)


class Step:
    """What one call of the model, and its backward pass, have recorded. Layers report
    their calls and contributions. `located` says where the samples are in each
    layer's inputs, as far as it was seen.

    Args:
        names: every parameter that is measured, and its name.
        gradients: where the gradients that layers return to autograd are told.
        fold: which rows are one sample's, if not each is a sample.
    """

    keeps_parameters = True  # until it is over: what a replay needs

    def __init__(
        self,
        names: Mapping[nn.Parameter, str],
        gradients: Gradients | None = None,
        fold: Fold | None = None,
    ):
        self.batch: int | None = None
        self.located: Located | None = None
        self.gradients = gradients or Gradients(names)
        self.shares = fold is not None
        self._fold = fold
        self._whose_batch = ""
        self._names = names
        self._calls: dict[nn.Parameter, int] = defaultdict(int)
        self._lookups: dict[nn.Parameter, int] = defaultdict(int)
        self._coarsest: dict[nn.Parameter, float] = {}
        self._uses: dict[nn.Parameter, list[Contribution]] = defaultdict(list)
        self._replaced: dict[nn.Parameter, Contributed] = {}
        self._nth: dict[str, int] = defaultdict(int)
        self._pass: int | None = None
        self._over = False

    @property
    def samples(self) -> int:
        """How many there are: rows of the batch, where they are not put together."""
        return self._fold.samples if self._fold else self.batch

    @property
    def differentiated(self) -> bool:
        """Whether its backward pass has begun."""
        return self._pass is not None

    @property
    def is_overruled(self) -> bool:
        """Whether a sample alone may have other values than in the batch, which the user
        vouches for.
        """
        return self.located is not None and self.located.overruled is not None

    @property
    def used_again(self) -> bool:
        """Whether a parameter was used by several calls."""
        return any(count > 1 for count in self._calls.values())

    def calls_model(self, located: Located | None) -> None:
        """A call of the model, of whose layers so much was seen."""
        self.located = located
        self._nth.clear()

    def unfold(self) -> None:
        """Take each row for a sample after all."""
        self._fold = None

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
            if self._fold and size != self._fold.rows:
                raise UsageError(
                    f"{whose} has {size} rows, and samples= tells of {self._fold.rows}"
                )
        elif size != self.batch:
            raise UsageError(
                f"{whose} has first dimension {size}, and {self._whose_batch} {self.batch}: samples must "
                "stay apart in dimension 0 of every layer (reshape to [batch, …], or expand over it)"
            )

    def locates(self, layer: str, x: torch.Tensor) -> int | None:
        """The dimension of samples in the input x of a layer's call that comes next, −k
        where dimension 0 has k rows for each; None where it has none: it is the same
        for any batch. 0 where that was not seen.
        """
        if self.located is None or self.batch is None:
            unbatched = x.dim() and len(x) == 1 and (self.batch or 1) > 1
            return None if unbatched else 0
        return self.located.dim(layer, self._nth[layer], x, self.batch)

    def dims(
        self, layer: str, inputs: Sequence[torch.Size], outputs: Sequence[torch.Size]
    ) -> tuple[list[int | None] | None, list[int | None] | None]:
        """The dimension of samples in each tensor in and out of a layer's call that
        comes next; None for what was not seen.
        """
        if self.located is None or self.batch is None:
            return None, None
        number = self._nth[layer]
        return tuple(
            self.located.dims(layer, number, shapes, self.batch, out)
            for shapes, out in ((inputs, False), (outputs, True))
        )

    def expanded(self, layer: str, ids: torch.Tensor) -> torch.Tensor:
        """ids[1,…] or [T] that a look-up has for all samples, for each of them.

        Raises:
            UsageError: if that would change what the look-up's output is for.
        """
        why_not = self.located.not_expanded if self.located is not None else None
        shared = ids.dim() == 1 or (ids.dim() > 1 and len(ids) == 1)
        if why_not or not shared:
            raise UsageError(_misplaced(layer, ids, None))
        return ids.expand(self.batch or 1, *ids.shape[ids.dim() > 1 :])

    def calls(
        self,
        layer: str,
        x: torch.Tensor,
        parameters: Iterable[nn.Parameter],
        moved: bool = False,
    ) -> None:
        """A layer's forward call, with input x[B,…].

        Args:
            moved: the layer has asked `locates`, and put the samples first.

        Raises:
            UsageError: if samples are elsewhere, or not to be seen.
        """
        if self.located is not None and not moved:
            where = self.locates(layer, x)
            if where != 0:
                raise UsageError(_misplaced(layer, x, where))
        self._nth[layer] += 1
        size = len(x) if x.dim() else 1
        if size != self.batch or not size:
            self.sees_batch(layer, size)
        eps = _eps(x)
        for parameter in parameters:
            self._calls[parameter] += 1
            if eps > self._coarsest.get(parameter, 0.0):
                self._coarsest[parameter] = eps

    def once(self, parameter: nn.Parameter) -> bool:
        """Whether one call alone has used it so far. Asked in the backward pass, that
        is: in the step.
        """
        return self._calls[parameter] == 1 and not self.shares

    def looks_up(self, parameter: nn.Parameter) -> None:
        """That a call which was told is a look-up in a table."""
        self._lookups[parameter] += 1

    def once_beside_lookups(self, parameter: nn.Parameter) -> bool:
        """As `once`, where look-ups in the parameter don't count."""
        calls = self._calls[parameter] - self._lookups[parameter]
        return calls == 1 and not self.shares

    def backpropagates(self) -> bool:
        """Told by whatever runs within a backward pass; whether that still counts: a
        graph may outlive the step.

        Raises:
            UsageError: in a second backward pass.
        """
        if self._over:
            return False
        number = backward_pass()
        if self._pass is None:
            self._pass = number
        elif number != self._pass:
            raise UsageError(
                "two backward passes through one call of the model in a metered step: micro-batches go "
                "into `with meter.step(accumulate=…)`, each with a call of the model of its own; other "
                "passes into a `with` of their own (checkpointing needs use_reentrant=False)"
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
        self._replaced[parameter] = Contributed(
            norm(gradient), n, d, self.gradients.keeps(gradient)
        )
        if gradient.dtype != parameter.dtype:
            gradient = gradient.to(parameter.dtype)
        self.gradients.replaces(parameter, gradient)
        return gradient

    def knows(self, parameter: nn.Parameter) -> bool:
        """Whether a call contributed to the parameter's gradient, beside `replaces`."""
        return parameter in self._uses

    def contributed(self, parameter: nn.Parameter) -> Contributed | None:
        """What its samples contributed to a parameter's gradient; None if nothing."""
        if parameter in self._replaced:
            return self._replaced[parameter]
        if parameter not in self._uses:
            return None
        uses = self._contributions(parameter)
        mean, n, d = combined(uses, self.samples, parameter.numel())
        total = mean.reshape(-1) * self.samples
        eps = max(
            self._coarsest.get(parameter, 0.0),
            *(
                torch.finfo(dtype).eps
                for dtype in (parameter.dtype, *(use.dtype for use in uses))
            ),
        )
        return Contributed(norm(total), n, d, total, eps)

    def along(self, parameter: nn.Parameter, direction: torch.Tensor) -> torch.Tensor:
        """[B]: what each sample contributed to the gradient, times direction[P]."""
        return along(self._contributions(parameter), direction, self.samples)

    def scaled_norms(
        self, parameter: nn.Parameter, scale: torch.Tensor
    ) -> torch.Tensor:
        """[B]: the squared norm of what each sample contributed, times scale[P]."""
        return scaled_norms(self._contributions(parameter), scale, self.samples)

    def _contributions(self, parameter: nn.Parameter) -> list[Contribution]:
        uses = self._uses[parameter]
        return [folded(use, self._fold) for use in uses] if self._fold else uses

    def forgets(self) -> None:
        """Let go of what was recorded: it has been taken in."""
        self._uses.clear()
        self._replaced.clear()


def backward_pass() -> int:
    """The number of the backward pass that runs, -1 where none does."""
    # torch counts its backward passes and has no public name for it;
    # utils.checkpoint relies on the same number.
    return torch._C._current_graph_task_id()


def _eps(x: torch.Tensor) -> float:
    """The coarsest spacing of what a layer computes with: x's dtype, or autocast's."""
    dtypes = [x.dtype] if x.is_floating_point() else []
    if torch.is_autocast_enabled(x.device.type):
        dtypes.append(torch.get_autocast_dtype(x.device.type))
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def _misplaced(layer: str, x: torch.Tensor, dim: int | None) -> str:
    if dim is None:
        return (
            f"{layer} is given {list(x.shape)} whatever the number of samples: they are not apart in it "
            "(reshape to [batch, …], expand over the batch, or leave it out by layers=)"
        )
    if dim < 0:
        return (
            f"{layer} is given {list(x.shape)}, with {-dim} rows for each sample, and is measured with samples in "
            "a dimension of their own: reshape to [batch, …] before it, or leave it out by layers="
        )
    return (
        f"{layer} has its samples in dimension {dim} of {list(x.shape)}, and is measured with them in "
        "dimension 0: transpose before it, or leave it out by layers="
    )


class Located(Protocol):
    """Where the samples are in layers' inputs, and why look-ups that all samples share
    can't be made each sample's; and what speaks against the user's word that they are
    apart.
    """

    not_expanded: str | None
    overruled: str | None

    def dim(self, layer: str, call: int, x: torch.Tensor, batch: int) -> int | None:
        """In the input x of a layer's call of this number, from 0."""

    def dims(
        self, layer: str, call: int, shapes: Sequence[torch.Size], batch: int, out: bool
    ) -> list[int | None] | None:
        """In each tensor in or out of it."""


class Contributed(NamedTuple):
    """By the samples of a step to one parameter's gradient: the norm ‖B·ḡ‖ (a scalar),
    n[B], d[B] with their own ḡ, B·ḡ[P] where it is kept, and the coarsest spacing of
    the dtypes that took part.
    """

    norm: torch.Tensor
    squared_norms: torch.Tensor
    inner_products: torch.Tensor
    total: torch.Tensor | None = None
    eps: float = 0.0


class Gradients:
    """Autograd's gradients in one metered step: what layers return to it, and what
    hooks on the parameters see of it.

    Args:
        keep: keep what layers return, to be added to that of other passes.
    """

    def __init__(self, names: Mapping[nn.Parameter, str], keep: bool = False):
        self.totals: dict[nn.Parameter, torch.Tensor] = {}
        self.astray: list[str] = []
        self.copies = keep
        self._names = names
        self._keep = keep
        self._replaced: dict[nn.Parameter, tuple[int, int]] = {}

    def keeps(self, gradient: torch.Tensor) -> torch.Tensor | None:
        return gradient.detach().flatten().clone() if self._keep else None

    def replaces(self, parameter: nn.Parameter, gradient: torch.Tensor) -> None:
        self._replaced[parameter] = gradient.data_ptr(), gradient._version

    def receives(self, parameter: nn.Parameter, total: torch.Tensor) -> None:
        """The sum of all gradients that a pass of autograd has for a parameter, before
        it goes to .grad.
        """
        ours = self._replaced.pop(parameter, None)
        if ours is None:
            total = total.detach()
            if parameter in self.totals:
                total = total + self.totals[parameter]
            elif self.copies:
                total = total.clone()
            self.totals[parameter] = total
        elif ours != (
            total.data_ptr(),
            total._version,
        ):  # another one was added, into its memory or elsewhere
            self.astray.append(self._names[parameter])


class ParameterStatistics(NamedTuple):
    """Of the samples' contributions to a gradient: its own norm ‖B·ḡ‖ (a scalar), n[B]
    and d[B].

    d is None where it was not asked for. `gap` is how far B·ḡ is from what autograd has
    for the parameter; None where autograd has it from here. `eps` is the coarsest
    spacing of the dtypes that took part.
    """

    norm: torch.Tensor
    squared_norms: torch.Tensor
    inner_products: torch.Tensor | None
    gap: torch.Tensor | None = None
    eps: float = 0.0


ScaleOf = Callable[[nn.Parameter], torch.Tensor | None]


class Sums:
    """Puts the samples of all calls and backward passes of a metered step together.

    Args:
        names: every parameter that is measured, and its name.
        dots: whether d is wanted where there are several calls: their contributions
            are kept until the end.
        scale_of: a parameter's scale[P] of the preconditioned gradients, None where it
            has none; or None, where these are not wanted.
    """

    def __init__(
        self,
        names: Mapping[nn.Parameter, str],
        dots: bool,
        scale_of: ScaleOf | None = None,
    ):
        self._names = names
        self._dots = dots
        self._scale_of = scale_of
        self._scaled_norms: dict[nn.Parameter, dict[int, torch.Tensor]] = defaultdict(
            dict
        )
        self._steps: list[Step] = []
        self._totals: dict[nn.Parameter, torch.Tensor] = {}
        self._norms: dict[nn.Parameter, dict[int, torch.Tensor]] = defaultdict(dict)
        self._gaps: dict[nn.Parameter, torch.Tensor] = {}
        self._eps: dict[nn.Parameter, float] = {}

    @property
    def steps(self) -> Sequence[Step]:
        """Of each call."""
        return self._steps

    @property
    def samples(self) -> list[int]:
        """Of each call."""
        return [step.samples for step in self._steps]

    @property
    def parameters(self) -> Iterable[nn.Parameter]:
        """Those that had a gradient."""
        return self._totals.keys()

    def take(self, steps: Sequence[Step], gradients: Gradients) -> None:
        """Take in the calls that backward passes have gone through since the last time."""
        for parameter in self._names:
            pass_total = 0
            for number, step in enumerate(steps, len(self._steps)):
                one = step.contributed(parameter)
                if one is None:
                    continue
                pass_total = pass_total + one.total
                self._norms[parameter][number] = one.squared_norms
                self._eps[parameter] = max(one.eps, self._eps.get(parameter, 0.0))
                scale = self._scale_of(parameter) if self._scale_of else None
                if scale is not None:
                    norms = step.scaled_norms(parameter, scale)
                    self._scaled_norms[parameter][number] = norms
            if not isinstance(pass_total, torch.Tensor):
                continue
            self._totals[parameter] = self._totals.get(parameter, 0) + pass_total
            if parameter in gradients.totals:
                seen = gradients.totals.pop(parameter).reshape(-1)
                gap = norm(seen.to(pass_total.dtype) - pass_total)
                self._gaps[parameter] = self._gaps.get(parameter, 0) + gap
        self._steps += steps
        if not self._dots:
            for step in steps:
                step.forgets()

    def statistics(self) -> dict[str, ParameterStatistics]:
        """Of each parameter that had a gradient, over all samples."""
        return {
            self._names[parameter]: self._of(parameter, total)
            for parameter, total in self._totals.items()
        }

    def preconditioned(self) -> dict[str, ParameterStatistics]:
        """Of each parameter that has a scale, of gradients times it."""
        statistics = {}
        for parameter, norms in self._scaled_norms.items():
            scale = self._scale_of(parameter)
            total = self._totals[parameter] * scale
            dots = self._along(parameter, norms, total * scale) if self._dots else None
            statistics[self._names[parameter]] = ParameterStatistics(
                norm(total), self._of_all(norms, total), dots
            )
        return statistics

    def _of(self, parameter: nn.Parameter, total: torch.Tensor) -> ParameterStatistics:
        norms = self._norms[parameter]
        return ParameterStatistics(
            norm(total),
            self._of_all(norms, total),
            self._along(parameter, norms, total) if self._dots else None,
            self._gaps.get(parameter),
            self._eps[parameter],
        )

    def _of_all(
        self, norms: Mapping[int, torch.Tensor], like: torch.Tensor
    ) -> torch.Tensor:
        """n[B] of all calls' samples: 0 of a call that contributed nothing."""
        parts = [
            norms.get(number, like.new_zeros(step.samples))
            for number, step in enumerate(self._steps)
        ]
        return torch.cat([part.to(like.dtype) for part in parts])

    def _along(
        self,
        parameter: nn.Parameter,
        norms: Mapping[int, torch.Tensor],
        total: torch.Tensor,
    ) -> torch.Tensor:
        """[B]: what all calls' samples contributed, times the mean of total[P]."""
        mean = total / sum(self.samples)
        return torch.cat(
            [
                (
                    step.along(parameter, mean)
                    if number in norms
                    else total.new_zeros(step.samples)
                )
                for number, step in enumerate(self._steps)
            ]
        )


def finish(step: Step, names: Mapping[nn.Parameter, str]) -> dict:
    """{‖B·ḡ‖, n, d} of what the samples of one call contributed to each parameter's
    gradient, by name.
    """
    statistics = {}
    for parameter, name in names.items():
        one = step.contributed(parameter)
        if one is None:
            continue
        total = step.gradients.totals.get(parameter)
        gap = None
        if total is not None and one.total is not None:
            gap = norm(total.to(one.total.dtype).reshape(-1) - one.total)
        statistics[name] = ParameterStatistics(
            one.norm, one.squared_norms, one.inner_products, gap, one.eps
        )
    return statistics


def check_passes(
    steps: Sequence[Step], gradients: Gradients, names: Mapping[nn.Parameter, str]
) -> None:
    """That there was a backward pass, and none of its gradients from outside a layer.

    Raises:
        UsageError: if not.
    """
    astray = gradients.astray + [
        names[parameter]
        for parameter in gradients.totals
        if not any(step.knows(parameter) for step in steps)
    ]
    if astray:
        raise UsageError(
            f"{', '.join(astray)}: used outside its own module's call (or changed by a hook), "
            "so its samples' gradients can't be seen; call the module, or freeze the parameter"
        )
    if not all(step.differentiated for step in steps):
        raise UsageError(
            "no backward pass was seen in the metered step: both the model's call and loss.backward() "
            "belong inside the `with`, with gradients enabled"
        )
