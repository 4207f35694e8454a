"""Passes of a model on parts of a batch, forward and back: what they show of where its
samples are, and of whether these mix.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from batchline.bench.noise.meter.probe import (
    UNTOLD,
    Call,
    Pass,
    Probe,
    Rows,
    located,
    mixed_before,
    mixed_behind,
    other_sizes,
    rows_of,
)
from batchline.bench.noise.meter.states import (
    WithoutDropout,
    hide_graphs_from_hooks,
    unchanged,
    without_fast_path,
)
from batchline.bench.noise.meter.step import backward_pass

_NO_GRADIENTS = "no output of the model has a gradient for each sample"
_SEEDS = (1, 0)  # of the parts: in one or the other, each two of 4 samples are apart


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
    on inner modules run in each pass. No parameter gets a gradient, and its hooks don't
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


def _not_tried(why: str) -> str:
    return f"samples stay apart in the backward pass, which can't be tried ({why})"


def _first_line(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first_line}"


def _cuts(inputs, samples: Sequence[Sequence[int]], dim: int) -> Iterator[tuple]:
    """Whether the parts make up the batch; and two drawings of them, which for each have
    its rows and the inputs of these: of all inputs that have the batch's size, then of
    the first such alone, for another may have it by chance.
    """
    batch = sum(map(len, samples))
    leaves, form = pytree.tree_flatten(inputs, is_leaf=_is_list_of_values)
    having = [number for number, leaf in enumerate(leaves) if _size(leaf, dim) == batch]

    def cut(chosen, part):
        rows = sorted(itertools.chain.from_iterable(samples[one] for one in part))
        leaves_of_part = [
            _rows(leaf, rows, dim) if number in chosen else leaf
            for number, leaf in enumerate(leaves)
        ]
        return tuple(rows), pytree.tree_unflatten(leaves_of_part, form)

    count = len(samples)
    candidates = (having, having[:1]) if len(having) > 1 else (having,) * bool(having)
    half = count // 2
    odd = half - 1 if half % 2 == 0 and half > 2 else half
    ways = [(True, [_parts(count, n, seed) for seed in _SEEDS]) for n in (odd, half)]
    ways.append((False, [[range(count - 1)]] * len(_SEEDS)))
    for is_whole, drawings in ways:
        for chosen in candidates:
            yield is_whole, *(
                [cut(chosen, part) for part in parts] for parts in drawings
            )


def _is_list_of_values(leaf: object) -> bool:
    """Whether it may have a number or a text of each sample, as lengths are told."""
    return isinstance(leaf, list) and all(
        isinstance(one, (int, float, str)) for one in leaf
    )


def _size(leaf: object, dim: int) -> int | None:
    if isinstance(leaf, list):
        return len(leaf)
    if isinstance(leaf, (torch.Tensor, np.ndarray)) and leaf.ndim > dim:
        return leaf.shape[dim]
    return None


def _rows(leaf: torch.Tensor | np.ndarray | list, rows: list[int], dim: int):
    if isinstance(leaf, list):
        return [leaf[row] for row in rows]
    if isinstance(leaf, np.ndarray):
        return leaf.take(rows, dim)
    index = torch.tensor(rows, device=leaf.device)
    return leaf.detach().index_select(dim, index)


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
        if differentiate and not any(rows.numbers for rows in parts[-1].outputs):
            # a loss alone: not tried anew in each shape, which takes as long as the step
            differentiate = False
            found.trusted += (_not_tried(_NO_GRADIENTS),)
        if differentiate:
            try:
                found = self._compare(found, True)
            except Exception as error:  # whatever a model's backward pass does
                found = self._compare(found, False)
                found.trusted += (_not_tried(_first_line(error)),)
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

        def of_whole(shapes):
            return _axes(found.parts, self.batch, shapes)

        def of_part(_):
            return of_whole([rows.shape for rows in whole.outputs])

        whole = self._run(
            tuple(range(self.batch)),
            self.inputs,
            of_whole if differentiate else None,
            True,
        )
        parts = [
            self._run(*part, of_part if differentiate else None, True)
            for part in self.others
        ]
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
        mixed = mixed_before(whole, parts, self.batch)
        first = next((f"{layer} {words}" for layer, words in mixed.items()), None)
        coupled = first or mixed_behind(whole, parts, self.batch)
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
        args, kwargs = pytree.tree_map_only(torch.Tensor, _copied, self.inputs)
        try:
            with unchanged(self.model), without_fast_path():
                for module in self.model.modules():
                    if module is not self.model:
                        own = next(
                            (o for m, o in self.layers.values() if m is module), None
                        )
                        if own is not None:
                            module.__dict__["forward"] = wrappers.get(module, own)
                self.model.__dict__["forward"] = self.forward
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
            without_fast_path(),
            without_dropout,
        ):
            if axes:
                hide_graphs_from_hooks(self.model)
                root = torch.zeros((), device=device, requires_grad=True)
            for name, (module, own) in self.layers.items():
                look = _recorded(calls[name], own, len(samples), root)
                if module is self.model:
                    forward = look
                else:
                    module.__dict__["forward"] = look
            self.model.__dict__["forward"] = forward  # a model may call itself
            args, kwargs = pytree.tree_map_only(torch.Tensor, _copied, inputs)
            results = tensors(forward(*args, **kwargs))
            outputs = tuple(Rows.of(x.detach(), len(samples)) for x in results)
            is_random = drew()
            if axes:
                axes_of_results = axes([x.shape for x in results])
                _go_back(results, axes_of_results, samples, root)
        return Pass(samples, dict(calls), outputs, is_random)


def _copied(x: torch.Tensor) -> torch.Tensor:
    """For a model that changes its inputs in place."""
    return x.detach().clone().requires_grad_(x.requires_grad)


def _saved_as_they_are() -> contextlib.AbstractContextManager:
    """Inside, autograd keeps tensors itself: those of a checkpoint around the model are
    the step's own.
    """
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


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
    return axis if other_sizes(shape, rows) == other_sizes(part, rows) else None


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
        raise ValueError(_NO_GRADIENTS)
    ends, gradients = zip(*pairs)
    with torch.autocast(root.device.type, enabled=False):
        torch.autograd.grad(ends, [root], gradients, allow_unused=True)


def _made_up(x: torch.Tensor, axis: int, samples: tuple[int, ...]) -> torch.Tensor:
    """A gradient of an output, whose rows depend on the sample, not on which others are
    in the batch; all rows are alike where samples and tokens are one dimension, for
    either may come first there.
    """
    each = max(1, -axis)
    axis = max(axis, 0)
    others = other_sizes(x.shape, axis)
    rows = rows_of(samples, each).to(x.device) * (each == 1)
    places = torch.arange(1, 1 + math.prod(others), device=x.device)
    gradient = torch.outer(2 + rows.cos(), places.cos())
    return gradient.view(-1, *others).movedim(0, axis).to(x.dtype)


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
        given = tensors((args, kwargs))
        is_again = backward_pass() >= 0  # by a checkpoint
        first = Rows.of(given[0].detach(), count) if given and not is_again else None
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
        if not is_again:
            shapes = [
                tuple(tensor.shape for tensor in some)
                for some in (given, tensors(result))
            ]
            calls.append(Call(*shapes, first, gradients))
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
