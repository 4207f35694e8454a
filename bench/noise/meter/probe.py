"""Where a layer's inputs have their samples, and whether these mix: seen where the model
is run on parts of the batch.

A size that is as much smaller there as the part is the samples'; one that is the same is
not, though it may be equal to the batch. Whatever a sample has in the whole batch it has
in any part of it: its values before each layer and at the model's end, and the gradients
of each layer's output for made-up ones at the model's end. Where that is not so, samples
mix.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.utils import _pytree as pytree

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.states import WithoutDropout, unchanged
from batchline.bench.noise.meter.step import backward_pass
from batchline.kernels.statistics import accumulator

UNTOLD = -1
# Of a row's norm: what another batch's kernels leave of it.
_EXACT = 1e-6
_SINGLE = 1e-3
_TENSOR_CORES = 1e-2
_NARROW = 0.2
_KINKS = 1e-2  # in gradients: an activation near 0 that rounding puts on its other side
_SEEDS = (1, 0)  # of the parts: in one or the other, each two of 4 samples are apart


class Rows(NamedTuple):
    """What is kept of a tensor: numbers[rows, 2] for each dimension that may be the
    samples', and how far two ways to a row may be apart, of its norm.
    """

    shape: torch.Size
    slack: float
    numbers: Mapping[int, torch.Tensor]

    @classmethod
    def of(cls, x: torch.Tensor, count: int) -> Rows:
        """Of a tensor in a pass on so many samples."""
        axes = [
            axis
            for axis, size in enumerate(x.shape)
            if size == count or (axis == 0 and size % count == 0)
        ]
        if not x.numel() or x.layout is not torch.strided:
            axes = []
        return cls(x.shape, _slack(x), {axis: _numbers(x, axis) for axis in axes})


def _slack(x: torch.Tensor) -> float:
    dtype = x.dtype.to_real() if x.is_complex() else x.dtype
    if not dtype.is_floating_point or dtype == torch.float64:
        return _EXACT
    device = x.device.type
    if torch.is_autocast_enabled(device) or torch.finfo(dtype).bits < 32:
        return _NARROW
    exact = device == "cpu" and torch.get_float32_matmul_precision() == "highest"
    return _SINGLE if exact else _TENSOR_CORES


class Call(NamedTuple):
    """Of a layer: the shapes of the tensors in and out of it, the first input, and the
    gradients of the outputs by their place, where they were asked for.
    """

    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]
    first: Rows | None
    gradients: dict[int, Rows]


class Pass(NamedTuple):
    """What a pass on these samples, by their numbers in the batch, has shown: calls by
    layer, the model's outputs, and whether random numbers were drawn.
    """

    samples: tuple[int, ...]
    calls: Mapping[str, Sequence[Call]]
    outputs: tuple[Rows, ...]
    is_random: bool

    def call(self, layer: str, number: int) -> Call | None:
        """The layer's call of this number, from 0; None where it was not seen."""
        calls = self.calls.get(layer)
        # a checkpoint's second forward pass counts on
        return calls[number % len(calls)] if calls else None


@dataclass
class Probe:
    """What passes on parts of the batch have shown.

    `mixed`: by layer, what values said of it; None where they are compared with those
    of the step. `coupled`: what the model's outputs or the gradients said.
    `unchecked`: values could not be compared. `differentiated`: gradients were.
    `not_expanded`: why look-ups that all samples share can't be made each sample's.
    `trusted`: what was not seen, and why. `failed`: why there was no pass.
    """

    parts: Sequence[Pass] = ()
    mixed: Mapping[str, str] | None = None
    coupled: str | None = None
    unchecked: bool = False
    differentiated: bool = False
    not_expanded: str | None = None
    trusted: tuple[str, ...] = ()
    failed: str | None = None
    _dims: dict[tuple[str, int], int | None] = field(default_factory=dict)
    _are_outputs_seen: bool = False

    def dim(self, layer: str, call: int, x: torch.Tensor, batch: int) -> int | None:
        """The dimension of samples in the input x of a layer's call of this number,
        from 0, as `located` has it; None if x is the same for any batch. Where the call
        was not seen, dimension 0 is taken on trust.

        Raises:
            UsageError: if the values of x depend on samples that are not theirs.
        """
        key = layer, call
        if key not in self._dims:
            recorded = self._recorded(layer, call)
            dim = UNTOLD
            if recorded and recorded.first:
                dim = located(x.shape, recorded.inputs[0], batch, self._count)
                mixed = self._mixing(layer, call, x, batch)
                if mixed:
                    raise UsageError(f"{layer} {mixed}")
                if dim is not None and dim < UNTOLD and not self._in_order(recorded):
                    dim = UNTOLD
            self._dims[key] = 0 if dim == UNTOLD else dim
        return self._dims[key]

    def dims(
        self, layer: str, call: int, shapes: Iterable[torch.Size], batch: int, out: bool
    ) -> list[int | None] | None:
        """The dimension of samples in each tensor in or out of a call; None where the
        call was not seen.
        """
        recorded = self._recorded(layer, call)
        shapes = list(shapes)
        if recorded is None:
            return None
        known = recorded.outputs if out else recorded.inputs
        if len(known) != len(shapes):
            return None
        return [
            located(shape, part, batch, self._count)
            for shape, part in zip(shapes, known)
        ]

    def mixed_behind(self, outputs: Iterable[torch.Tensor], batch: int) -> str | None:
        """What is wrong with the outputs of the model's call, or with gradients; None if
        nothing is. Of the first call in this shape: others are taken to be like it.
        """
        if self.mixed is None and not self._are_outputs_seen:
            rows = [Rows.of(x.detach(), batch) for x in outputs]
            self.coupled = _mixed_outputs(rows, self.parts, batch)
        self._are_outputs_seen = True
        return self.coupled

    def _mixing(self, layer: str, call: int, x: torch.Tensor, batch: int) -> str | None:
        if self.mixed is not None:
            return self.mixed.get(layer)
        parts = [(part.samples, part.call(layer, call)) for part in self.parts]
        return mixing(
            Rows.of(x.detach(), batch),
            [(samples, one.first) for samples, one in parts if one and one.first],
            batch,
        )

    def _in_order(self, recorded: Call) -> bool:
        """Whether it was seen that rows are one sample's after another's: those of each
        part are where they belong, and are not all the same.
        """
        numbers = recorded.first.numbers.get(0)
        if numbers is None or self.unchecked or not torch.isfinite(numbers).all():
            return False
        return bool((numbers - numbers[0]).abs().amax() > 1e-6 * numbers.abs().amax())

    @property
    def _count(self) -> int:
        return len(self.parts[-1].samples)

    def _recorded(self, layer: str, call: int) -> Call | None:
        """In the largest part, which is the last."""
        return self.parts[-1].call(layer, call) if self.parts else None


Parts = Sequence[tuple[tuple[int, ...], Rows]]


def mixing(whole: Rows, parts: Parts, batch: int) -> str | None:
    """What is wrong with the values before a layer in the whole batch, beside those of
    its parts; None if nothing is.
    """
    off = samples_off(whole, parts, batch)
    if not off:
        return None
    _, part = parts[-1]
    dim = located(whole.shape, part.shape, batch, len(parts[-1][0]))
    if dim is not None and dim < UNTOLD:
        return (
            f"is given samples and tokens as one dimension of {whole.shape[0]}, in which a sample's are not next to "
            "each other: transpose before it, so that samples come first"
        )
    return (
        f"is given other values for {len(off)} of {batch} samples where the batch is run in parts: "
        "samples mix before it, so they have no gradients of their own"
    )


def samples_off(
    whole: Rows,
    parts: Parts,
    batch: int,
    slack: float | None = None,
    zero: float = 1e-30,
) -> set[int]:
    """The samples whose rows in the whole batch are not those of the parts.

    Args:
        slack: of a row's norm, that two ways to the same may differ by; None for that of
            the dtype.
        zero: what any number may be off by.
    """
    if slack is None:
        slack = whole.slack
    off = set()
    for samples, part in parts:
        axis = located(whole.shape, part.shape, batch, len(samples))
        each = -axis if axis is not None and axis < UNTOLD else 1
        axis = 0 if each > 1 else axis
        theirs = part.numbers.get(axis)
        if theirs is None or _rest(whole.shape, axis) != _rest(part.shape, axis):
            continue
        ours = whole.numbers[axis][_rows_of(samples, each).to(theirs.device)]
        if not torch.isfinite(ours).all():
            continue
        wrong = (ours - theirs).abs().amax(1) > slack * ours[:, 0].abs() + zero
        of_samples = wrong.view(-1, each).any(1).tolist()
        off |= set(itertools.compress(samples, of_samples))
    return off


def _rest(shape: torch.Size, axis: int) -> list[int]:
    return [size for other, size in enumerate(shape) if other != axis]


def _rows_of(samples: Sequence[int], each: int) -> torch.Tensor:
    """The rows of these samples, each of which has so many, next to each other."""
    numbers = torch.tensor(samples)[:, None] * each + torch.arange(each)
    return numbers.flatten()


def located(shape: torch.Size, part: torch.Size, batch: int, count: int) -> int | None:
    """The dimension that is the batch in `shape` and `count` in `part`; None if the
    shapes are the same, UNTOLD if it can't be told. −k, of 2 or more, where dimension 0
    has k rows for each sample.
    """
    if len(shape) != len(part):
        return UNTOLD
    changed = [axis for axis, size in enumerate(shape) if size != part[axis]]
    if not changed:
        return None
    samples = [axis for axis in changed if shape[axis] == batch and part[axis] == count]
    if samples:
        return samples[0]
    rows, left = divmod(shape[0], batch)
    in_rows = changed == [0] and not left and part[0] == rows * count
    return -rows if in_rows else UNTOLD


def samples_first(x: torch.Tensor, dim: int) -> torch.Tensor:
    """x with its samples, which `located` found in dim, in dimension 0."""
    return x.movedim(dim, 0) if dim >= 0 else x.unflatten(0, (-1, -dim))


def _numbers(x: torch.Tensor, dim: int) -> torch.Tensor:
    """[rows, 2] in fp64 for the rows of x along a dimension: the norm, and the product
    with a fixed vector that tells permuted entries apart.
    """
    x = x.detach()
    x = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    rows = x.movedim(dim, 0).flatten(1) if x.dim() > 1 else x[:, None]
    rows = rows.to(accumulator(x.dtype) if x.is_floating_point() else torch.float64)
    places = torch.arange(1, rows.shape[1] + 1, device=x.device, dtype=torch.float64)
    with torch.autocast(x.device.type, enabled=False):
        along = rows @ torch.cos(places).to(rows.dtype)
    return torch.stack([torch.linalg.vector_norm(rows, dim=1), along], 1).double()


def probe(
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, Callable]],
    forward: Callable,
    inputs: tuple[tuple, dict],
    samples: Sequence[Sequence[int]],
    batch_dim: int,
    differentiate: bool,
) -> Probe:
    """Run the model's forward on parts of the batch.

    Random state, buffers and the modules' attributes are put back; hooks of the user's
    on inner modules run once more. No parameter gets a gradient, and its hooks don't
    run.

    Args:
        layers: name → a module to look at, and its own forward.
        forward: the model's own.
        inputs: args and kwargs of the model's call.
        samples: the rows of each in the inputs, of 2 or more.
        batch_dim: the dimension of samples in the inputs.
        differentiate: run backward too, for gradients made up at the model's outputs.
    """
    batch = sum(map(len, samples))
    why = None
    for is_whole, parts, others in _cuts(inputs, samples, batch_dim):
        passes = _Passes(model, layers, forward, inputs, parts, others, batch)
        try:
            found = passes.look(differentiate)
        except Exception as error:  # whatever a model does with another batch
            why = why or _first_line(error)
            continue
        if not is_whole:
            found.trusted += (
                "no sample depends on those before it in the batch, for the model runs on one sample less, and "
                f"not on each half of them ({why})",
            )
        return found
    return Probe(failed=why or "none of its inputs has the samples")


def _first_line(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def _cuts(inputs, samples: Sequence[Sequence[int]], dim: int) -> Iterator[tuple]:
    """Whether the parts make up the batch; and two drawings of them, which for each have
    its rows and the inputs of these: of all inputs that have the batch's size, then of
    the first such alone, for another may have it by chance.
    """
    batch = sum(map(len, samples))
    leaves, form = pytree.tree_flatten(inputs)
    having = [
        number
        for number, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
        and leaf.dim() > dim
        and leaf.shape[dim] == batch
    ]

    def cut(chosen, part):
        rows = sorted(itertools.chain.from_iterable(samples[one] for one in part))
        index = torch.tensor(rows)
        leaves_of_part = [
            (
                leaf.detach().index_select(dim, index.to(leaf.device))
                if number in chosen
                else leaf
            )
            for number, leaf in enumerate(leaves)
        ]
        return tuple(rows), pytree.tree_unflatten(leaves_of_part, form)

    candidates = (having, having[:1]) if len(having) > 1 else (having,) * bool(having)
    half = len(samples) // 2
    odd = half - 1 if half % 2 == 0 and half > 2 else half
    whole = [
        [_parts(len(samples), size, seed) for seed in _SEEDS] for size in (odd, half)
    ]
    all_but_one = [[range(len(samples) - 1)]] * len(_SEEDS)
    for is_whole, drawings in (
        (True, whole[0]),
        (True, whole[1]),
        (False, all_but_one),
    ):
        for chosen in candidates:
            yield is_whole, *(
                [cut(chosen, part) for part in parts] for parts in drawings
            )


def _parts(samples: int, half: int, seed: int) -> tuple[list[int], ...]:
    """Two samples, which have few others to mix with, and the two halves of a batch.

    They are drawn, so that no pattern of the batch survives in them. A half is odd where
    it can be: what takes a half of the samples takes another one then. Rows keep the
    order of the batch, for a packed sequence needs its lengths sorted.
    """
    order = random.Random(seed).sample(range(samples), samples)
    return order[: min(2, half)], order[:half], order[half:]


@dataclass(frozen=True)
class _Passes:
    """The passes of one look at a model, on all samples and on parts of them.

    `parts`: of each the samples, and the inputs. `others` are drawn differently.
    """

    model: nn.Module
    layers: Mapping[str, tuple[nn.Module, Callable]]
    forward: Callable
    inputs: tuple[tuple, dict]
    parts: Sequence[tuple[tuple[int, ...], tuple]]
    others: Sequence[tuple[tuple[int, ...], tuple]]
    batch: int

    def look(self, differentiate: bool) -> Probe:
        parts = [self._run(samples, inputs) for samples, inputs in self.parts]
        found = Probe(parts)
        if differentiate:
            try:
                found = self._compare(found, True)
            except Exception as error:  # whatever a model's backward pass does
                found = self._compare(found, False)
                found.trusted += (
                    f"samples stay apart in the backward pass, which can't be tried ({_first_line(error)})",
                )
        elif any(part.is_random for part in parts):
            found = self._compare(found, False)
        if any(
            isinstance(self.layers[name][0], nn.Embedding) and _may_be_shared(call)
            for name, of_layer in parts[-1].calls.items()
            for call in of_layer
        ):
            found.not_expanded = self._why_not_expanded(found)
        return found

    def _compare(self, found: Probe, differentiate: bool) -> Probe:
        """With the whole batch and its parts run without dropout.

        Raises:
            ValueError: if none of the model's outputs has a gradient for each sample.
        """
        everyone = tuple(range(self.batch))
        axes = None
        if differentiate:
            axes = functools.partial(_axes, found.parts, self.batch)
        whole = self._run(everyone, self.inputs, axes, still=True)
        if differentiate:
            known = axes([rows.shape for rows in whole.outputs])
            axes = lambda _: known  # noqa: E731
        parts = [self._run(*part, axes, still=True) for part in self.others]
        if not any(part.is_random for part in found.parts):
            parts += found.parts
        if whole.is_random or any(part.is_random for part in parts):
            why = (
                "samples don't mix in the model, which draws random numbers that can't be held still, so its values "
                "can't be compared"
            )
            return replace(
                found, mixed={}, unchecked=True, differentiated=True, trusted=(why,)
            )
        mixed = _mixed_before(whole, parts, self.batch)
        coupled = None
        if not mixed:
            coupled = _mixed_behind(whole, parts, self.batch)
        return replace(
            found, mixed=mixed, coupled=coupled, differentiated=differentiate
        )

    def _why_not_expanded(self, found: Probe) -> str | None:
        """Try it: None if the model's outputs are as large as without."""
        wrappers = {}

        def expanding(name, own):
            numbers = itertools.count()

            def call(ids):
                dim = found.dims(name, next(numbers), [ids.shape], self.batch, False)
                alone = dim == [None] and (ids.dim() == 1 or len(ids) == 1)
                if alone:
                    ids = ids.expand(self.batch, *ids.shape[ids.dim() > 1 :])
                return own(ids)

            return call

        for name, (module, own) in self.layers.items():
            if isinstance(module, nn.Embedding) and module is not self.model:
                wrappers[module] = expanding(name, own)
        args, kwargs = self.inputs
        try:
            with unchanged(self.model):
                for module in self.model.modules():
                    if module is not self.model:
                        own = next(
                            (o for m, o in self.layers.values() if m is module), None
                        )
                        if own is not None:
                            module.__dict__["forward"] = wrappers.get(module, own)
                result = self.forward(*args, **kwargs)
        except Exception as error:
            return _first_line(error)
        shapes = [tensor.shape for tensor in tensors(result)]
        part = found.parts[-1]
        same = len(shapes) == len(part.outputs) and all(
            located(shape, rows.shape, self.batch, len(part.samples)) != UNTOLD
            for shape, rows in zip(shapes, part.outputs)
        )
        return None if same else "the model's output has another shape then"

    def _run(
        self,
        samples: tuple[int, ...],
        inputs: tuple[tuple, dict],
        axes: Callable[[list[torch.Size]], list[int | None]] | None = None,
        still: bool = False,
    ) -> Pass:
        """A pass on the inputs of these samples; and back, if it is told from the shapes
        of the model's outputs where each has the samples, None for one to leave out.
        `still`: without dropout.
        """
        calls: dict[str, list[Call]] = defaultdict(list)
        forward = self.forward
        root = None
        device = next(self.model.parameters()).device
        without_dropout = WithoutDropout(device) if still else contextlib.nullcontext()
        with (
            unchanged(self.model) as drew,
            torch.set_grad_enabled(axes is not None),
            _saved_as_they_are(),
            without_dropout,
        ):
            if axes:
                root = torch.zeros((), device=device, requires_grad=True)
            for name, (module, own) in self.layers.items():
                look = _recorded(calls[name], own, len(samples), root)
                if module is self.model:
                    forward = look
                else:
                    module.__dict__["forward"] = look
            args, kwargs = inputs
            results = tensors(forward(*args, **kwargs))
            outputs = tuple(Rows.of(x.detach(), len(samples)) for x in results)
            is_random = drew()
            if axes:
                axes_of_results = axes([x.shape for x in results])
                _go_back(results, axes_of_results, samples, root)
        return Pass(samples, dict(calls), outputs, is_random)


def _saved_as_they_are() -> contextlib.AbstractContextManager:
    """Inside, autograd keeps tensors itself: those of a checkpoint around the model are
    the step's own.
    """
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


def _mixed_before(whole: Pass, parts: Sequence[Pass], batch: int) -> dict[str, str]:
    """By layer, what is wrong with the values that it is given."""
    mixed = {}
    for name, calls in whole.calls.items():
        for number, call in enumerate(calls):
            of_parts = [(part.samples, part.call(name, number)) for part in parts]
            of_parts = [(s, one.first) for s, one in of_parts if one and one.first]
            wrong = call.first and mixing(call.first, of_parts, batch)
            if wrong:
                mixed.setdefault(name, wrong)
    return mixed


def _mixed_behind(whole: Pass, parts: Sequence[Pass], batch: int) -> str | None:
    """What is wrong with the model's outputs, or with the gradients of the last layer
    where something is; None if nothing.
    """
    wrong = _mixed_outputs(whole.outputs, parts, batch)
    if wrong:
        return wrong
    every = [
        (name, number, place, rows)
        for name, calls in whole.calls.items()
        for number, call in enumerate(calls)
        for place, rows in call.gradients.items()
    ]
    slack = max(
        (
            one.slack
            for calls in whole.calls.values()
            for call in calls
            for one in (call.first, *call.gradients.values())
            if one
        ),
        default=0.0,
    )
    if slack > _EXACT:
        slack = max(slack, _KINKS)
    # what rounding leaves where the gradient itself is 0
    zero = slack**2 * max((_largest(rows) for *_, rows in every), default=0.0)
    for name, number, place, rows in reversed(every):
        calls = [(part.samples, part.call(name, number)) for part in parts]
        of_parts = [
            (samples, call.gradients[place])
            for samples, call in calls
            if call and place in call.gradients
        ]
        off = samples_off(rows, of_parts, batch, slack, zero)
        if off:
            return (
                f"{name} gets other gradients for {len(off)} of {batch} samples where the batch is run in parts: "
                "samples mix behind it, so they have no gradients of their own"
            )
    return None


def _mixed_outputs(
    outputs: Sequence[Rows], parts: Sequence[Pass], batch: int
) -> str | None:
    """What is wrong with the model's outputs; None if nothing is."""
    for place, rows in enumerate(outputs):
        of_parts = [
            (part.samples, part.outputs[place])
            for part in parts
            if place < len(part.outputs)
        ]
        off = samples_off(rows, of_parts, batch)
        if off:
            return (
                f"the model gives other outputs for {len(off)} of {batch} samples where the batch is run in parts: "
                "samples mix behind its last layer, so they have no gradients of their own"
            )
    return None


def _largest(rows: Rows) -> float:
    """The largest norm of a row; 0 of rows that are not finite."""
    norms = [numbers[:, 0].amax().item() for numbers in rows.numbers.values()]
    return max((norm for norm in norms if norm < float("inf")), default=0.0)


def _axes(
    parts: Sequence[Pass], batch: int, shapes: Sequence[torch.Size]
) -> list[int | None]:
    """Of the model's outputs of these shapes: where each has the samples, None where
    that differs among the parts, or another size too.
    """
    axes = []
    for place, shape in enumerate(shapes):
        found = {
            _axis(shape, part.outputs[place].shape, batch, len(part.samples))
            for part in parts
            if place < len(part.outputs)
        }
        axes.append(found.pop() if len(found) == 1 else None)
    return axes


def _axis(shape: torch.Size, part: torch.Size, batch: int, count: int) -> int | None:
    axis = located(shape, part, batch, count)
    if axis is None or axis == UNTOLD:
        return None
    rows = max(axis, 0)
    return axis if _rest(shape, rows) == _rest(part, rows) else None


def _go_back(
    results: Sequence[torch.Tensor],
    axes: Sequence[int | None],
    samples: tuple[int, ...],
    root: torch.Tensor,
) -> None:
    """A backward pass from made-up gradients of the outputs to `root`, which all layers'
    outputs have been added to.

    Raises:
        ValueError: if no output can have one.
    """
    pairs = [
        (x, _made_up(x, axis, samples))
        for x, axis in zip(results, axes)
        if axis is not None and x.requires_grad
    ]
    if not pairs:
        raise ValueError("no output of the model has a gradient for each sample")
    ends, gradients = zip(*pairs)
    with torch.autocast(root.device.type, enabled=False):
        torch.autograd.grad(ends, [root], gradients, allow_unused=True)


def _made_up(x: torch.Tensor, axis: int, samples: tuple[int, ...]) -> torch.Tensor:
    """A gradient of an output, whose rows depend on the sample, not on which others are
    in the batch.
    """
    each = max(1, -axis)
    axis = max(axis, 0)
    rest = _rest(x.shape, axis)
    rows = _rows_of(samples, each).to(x.device)
    places = torch.arange(1, 1 + math.prod(rest), device=x.device)
    gradient = torch.outer(2 + rows.cos(), places.cos())
    return gradient.view(-1, *rest).movedim(0, axis).to(x.dtype)


def _may_be_shared(call: Call) -> bool:
    """Whether a look-up's ids may be the same for all samples."""
    shape = call.inputs[0] if call.inputs else ()
    return len(shape) == 1 or (len(shape) > 1 and shape[0] == 1)


def _recorded(
    calls: list[Call], forward: Callable, count: int, root: torch.Tensor | None
) -> Callable:
    """A layer's forward that tells of its calls; and of the gradients of its outputs,
    which get `root` added, a zero, so that a backward pass to it takes them in.
    """

    def call(*args, **kwargs):
        result = forward(*args, **kwargs)
        leaves, form = pytree.tree_flatten(result)
        gradients: dict[int, Rows] = {}
        if root is not None:
            leaves = [
                (
                    _watched(leaf + root, place, gradients, count)
                    if isinstance(leaf, torch.Tensor) and leaf.requires_grad
                    else leaf
                )
                for place, leaf in enumerate(leaves)
            ]
            result = pytree.tree_unflatten(leaves, form)
        if backward_pass() < 0:  # else a checkpoint runs it again
            given = tensors((args, kwargs))
            calls.append(
                Call(
                    tuple(tensor.shape for tensor in given),
                    tuple(tensor.shape for tensor in tensors(result)),
                    Rows.of(given[0].detach(), count) if given else None,
                    gradients,
                )
            )
        return result

    return call


def _watched(
    x: torch.Tensor, place: int, gradients: dict[int, Rows], count: int
) -> torch.Tensor:
    def receive(gradient: torch.Tensor) -> None:
        gradients[place] = Rows.of(gradient.detach(), count)

    x.register_hook(receive)
    return x


def tensors(tree: object) -> list[torch.Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
