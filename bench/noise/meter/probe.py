"""Where a layer's inputs have their samples: seen in one forward pass without gradients
that leaves a sample out.

A size that is one smaller there is the samples'; one that is the same is not, though it
may be equal to the batch. A layer whose other rows change has samples that mix.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from batchline.bench.errors import UsageError

UNTOLD = -1
_NARROW = 0.2  # of a row's norm: what bf16 of another batch's kernels leaves of it
_WIDE = 1e-2


class Call(NamedTuple):
    """Of a layer, with a sample less: the shapes of the tensors in and out of it, and
    numbers[rows, 2] of the first input for each dimension that may be the samples'.
    """

    inputs: tuple[torch.Size, ...]
    outputs: tuple[torch.Size, ...]
    numbers: Mapping[int, torch.Tensor]


@dataclass
class Probe:
    """What a forward pass with a sample less has shown.

    `outputs` are the shapes of the model's. `random`: random numbers were drawn, so
    values are not those of the step. `mixed`: by layer, what values said of it without
    dropout, where it was not `unchecked`. `not_expanded`: why look-ups that all samples share can't be made each
    sample's. `failed`: why there was no pass.
    """

    calls: Mapping[str, list[Call]] = field(default_factory=dict)
    outputs: tuple[torch.Size, ...] = ()
    random: bool = False
    mixed: Mapping[str, str] = field(default_factory=dict)
    unchecked: bool = False
    not_expanded: str | None = None
    failed: str | None = None

    def __post_init__(self):
        self._dims: dict[tuple[str, int], int | None] = {}

    def dim(self, layer: str, call: int, x: torch.Tensor, batch: int) -> int | None:
        """The dimension of samples in the input x of a layer's call of this number,
        from 0, as `located` has it; None if x is the same for any batch. Where the call
        was not seen, dimension 0 is taken on trust.

        Raises:
            UsageError: if the values of x depend on samples that are not theirs.
        """
        key = layer, call
        if key not in self._dims:
            recorded = self._call(layer, call)
            found = UNTOLD
            if recorded and recorded.inputs:
                found = located(x.shape, recorded.inputs[0], batch)
                mixed = self.mixed.get(layer)
                if not self.random:
                    mixed = mixing(recorded, x, found)
                if mixed:
                    raise UsageError(f"{layer} {mixed}")
                if (
                    found is not None
                    and found < UNTOLD
                    and not self._in_order(recorded)
                ):
                    found = UNTOLD
            self._dims[key] = 0 if found == UNTOLD else found
        return self._dims[key]

    def _in_order(self, recorded: Call) -> bool:
        """Whether it was seen that rows are one sample's after another's: those of all
        but the last stay where they are, and are not all the same.
        """
        numbers = recorded.numbers.get(0)
        if numbers is None or self.unchecked or not torch.isfinite(numbers).all():
            return False
        return bool((numbers - numbers[0]).abs().amax() > 1e-6 * numbers.abs().amax())

    def dims(
        self, layer: str, call: int, shapes: Iterable[torch.Size], batch: int, out: bool
    ) -> list[int | None] | None:
        """The dimension of samples in each tensor in or out of a call; None where the
        call was not seen.
        """
        recorded = self._call(layer, call)
        shapes = list(shapes)
        if recorded is None:
            return None
        known = recorded.outputs if out else recorded.inputs
        if len(known) != len(shapes):
            return None
        return [located(shape, less, batch) for shape, less in zip(shapes, known)]

    def _call(self, layer: str, call: int) -> Call | None:
        calls = self.calls.get(layer)
        # a checkpoint's second forward pass counts on
        return calls[call % len(calls)] if calls else None


def mixing(less: Call, x: torch.Tensor, dim: int | None) -> str | None:
    """What is wrong with the values of x, whose samples are in `dim`, beside those with
    a sample less; None if nothing is.
    """
    in_rows = dim is not None and dim < UNTOLD
    axis_of_rows = 0 if in_rows else dim
    numbers = less.numbers.get(axis_of_rows)
    if numbers is None:
        return None
    rest = [size for axis, size in enumerate(x.shape) if axis != axis_of_rows]
    before = [size for axis, size in enumerate(less.inputs[0]) if axis != axis_of_rows]
    if rest != before:
        return None
    ours = _numbers(x, axis_of_rows)[: len(numbers)]
    if not torch.isfinite(ours).all():
        return None
    narrow = x.dtype in (torch.bfloat16, torch.float16)
    slack = _NARROW if narrow or torch.is_autocast_enabled(x.device.type) else _WIDE
    off = (ours - numbers).abs().amax(1) > slack * (ours[:, 0].abs() + 1e-30)
    if not off.any():
        return None
    if in_rows:
        return (
            f"is given samples and tokens as one dimension of {len(x)}, in which a sample's are not next to each "
            "other: transpose before it, so that samples come first"
        )
    return (
        f"is given other values for {int(off.sum())} of {len(off)} samples where one sample less is in the "
        "batch: samples mix before it, so they have no gradients of their own"
    )


def located(shape: torch.Size, less: torch.Size, batch: int) -> int | None:
    """The dimension that is the batch in `shape` and one smaller in `less`; None if the
    shapes are the same, UNTOLD if it can't be told. −k, of 2 or more, where dimension 0
    has k rows for each sample.
    """
    if len(shape) != len(less):
        return UNTOLD
    changed = [axis for axis, size in enumerate(shape) if size != less[axis]]
    if not changed:
        return None
    samples = [
        axis for axis in changed if shape[axis] == batch and less[axis] == batch - 1
    ]
    if samples:
        return samples[0]
    rows, left = divmod(shape[0], batch)
    in_rows = changed == [0] and not left and less[0] == rows * (batch - 1)
    return -rows if in_rows else UNTOLD


def samples_first(x: torch.Tensor, dim: int) -> torch.Tensor:
    """x with its samples, which `located` found in dim, in dimension 0."""
    return x.movedim(dim, 0) if dim >= 0 else x.unflatten(0, (-1, -dim))


def _numbers(x: torch.Tensor, dim: int) -> torch.Tensor:
    """[rows, 2] in fp64 for the rows of x along a dimension: the norm, and the product
    with a fixed vector that tells permuted entries apart.
    """
    rows = x.detach().movedim(dim, 0).flatten(1) if x.dim() > 1 else x.detach()[:, None]
    rows = rows.double()
    places = torch.arange(1, rows.shape[1] + 1, device=x.device, dtype=torch.float64)
    return torch.stack(
        [torch.linalg.vector_norm(rows, dim=1), rows @ torch.cos(places)], 1
    )


def probe(
    model: nn.Module,
    layers: Mapping[str, tuple[nn.Module, Callable]],
    forward: Callable,
    inputs: tuple[tuple, dict],
    batch: int,
    batch_dim: int,
) -> Probe:
    """Run the model's forward on all samples but the last.

    Random state, buffers and the modules' attributes are put back; hooks of the user's
    on inner modules run once more.

    Args:
        layers: name → a module to look at, and its own forward.
        forward: the model's own.
        inputs: args and kwargs of the model's call.
        batch: the number of samples, 2 or more.
        batch_dim: the dimension of samples in the inputs.
    """
    why = "none of its inputs has the samples"
    for less in _with_one_less(inputs, batch, batch_dim):
        passes = _Passes(model, layers, forward, inputs, less, batch)
        try:
            return passes.look()
        except Exception as error:  # whatever a model does with another batch
            first_line = str(error).strip().partition("\n")[0]
            why = f"{type(error).__name__}: {first_line}"
    return Probe(failed=why)


def _with_one_less(inputs, batch: int, dim: int) -> Iterator[tuple]:
    """The inputs without the last sample: all that have the batch's size, then the
    first such alone, for another may have it by chance.
    """
    leaves, form = pytree.tree_flatten(inputs)
    having = [
        number
        for number, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor)
        and leaf.dim() > dim
        and leaf.shape[dim] == batch
    ]
    for chosen in (having, having[:1]) if len(having) > 1 else (having,) * bool(having):
        cut = [
            leaf.narrow(dim, 0, batch - 1) if number in chosen else leaf
            for number, leaf in enumerate(leaves)
        ]
        yield pytree.tree_unflatten(cut, form)


@dataclass(frozen=True)
class _Passes:
    """The forward passes of one look at a model, on all samples or on one less."""

    model: nn.Module
    layers: Mapping[str, tuple[nn.Module, Callable]]
    forward: Callable
    all_of_them: tuple[tuple, dict]
    less: tuple[tuple, dict]
    batch: int

    def look(self) -> Probe:
        calls, outputs, random_numbers = self._run(self.less)
        found = Probe(calls, outputs, random_numbers)
        if random_numbers:
            mixed = self._compare_without_dropout()
            found.mixed = mixed or {}
            found.unchecked = mixed is None
        if any(
            isinstance(self.layers[name][0], nn.Embedding) and _may_be_shared(call)
            for name, of_layer in calls.items()
            for call in of_layer
        ):
            found.not_expanded = self._why_not_expanded(found)
        return found

    def _compare_without_dropout(self) -> dict[str, str] | None:
        """By layer, what is wrong; None where random numbers are drawn still."""
        with WithoutDropout():
            less, _, random_numbers = self._run(self.less)
            if random_numbers:
                return None
            mixed = {}

            def compare(name, number, x):
                dim = located(x.shape, less[name][number].inputs[0], self.batch)
                wrong = mixing(less[name][number], x, dim)
                if wrong:
                    mixed.setdefault(name, wrong)

            self._run(self.all_of_them, compare)
        return mixed

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
        args, kwargs = self.all_of_them
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
            first_line = str(error).strip().partition("\n")[0]
            return f"{type(error).__name__}: {first_line}"
        shapes = [tensor.shape for tensor in tensors(result)]
        same = len(shapes) == len(found.outputs) and all(
            located(shape, less, self.batch) != UNTOLD
            for shape, less in zip(shapes, found.outputs)
        )
        return None if same else "the model's output has another shape then"

    def _run(self, inputs, compare: Callable | None = None):
        """(calls by layer, shapes of the model's outputs, whether random numbers were
        drawn) of a pass on these inputs; `compare` is given each layer's first input
        and its number instead.
        """
        calls: dict[str, list[Call]] = defaultdict(list)
        forward = self.forward
        with unchanged(self.model) as drew:
            for name, (module, own) in self.layers.items():
                if compare:
                    look = _compared(functools.partial(compare, name), own)
                else:
                    look = _recorded(calls[name], own, self.batch)
                if module is self.model:
                    forward = look
                else:
                    module.__dict__["forward"] = look
            args, kwargs = inputs
            outputs = tuple(
                tensor.shape for tensor in tensors(forward(*args, **kwargs))
            )
            random_numbers = drew()
        return dict(calls), outputs, random_numbers


def _may_be_shared(call: Call) -> bool:
    """Whether a look-up's ids may be the same for all samples."""
    shape = call.inputs[0] if call.inputs else ()
    return len(shape) == 1 or (len(shape) > 1 and shape[0] == 1)


def _compared(compare: Callable, forward: Callable) -> Callable:
    numbers = itertools.count()

    def call(*args, **kwargs):
        given = tensors((args, kwargs))
        number = next(numbers)
        if given:
            compare(number, given[0])
        return forward(*args, **kwargs)

    return call


class WithoutDropout(TorchFunctionMode):
    """Dropout does nothing inside, wherever torch.nn.functional has it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is functional.scaled_dot_product_attention:
            args = args[:4] + (0.0,) * (len(args) > 4) + args[5:]
            kwargs.pop("dropout_p", None)
        if func is functional.multi_head_attention_forward:
            kwargs["training"] = False
        return func(*args, **kwargs)


_DROPOUTS = frozenset(
    [
        functional.dropout,
        functional.dropout1d,
        functional.dropout2d,
        functional.dropout3d,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
        torch.dropout,
    ]
)


def _recorded(calls: list[Call], forward: Callable, batch: int) -> Callable:
    def call(*args, **kwargs):
        given = tensors((args, kwargs))
        numbers = {}
        if given:
            numbers = {
                axis: _numbers(given[0], axis)
                for axis, size in enumerate(given[0].shape)
                if given[0].numel()
                and (size == batch - 1 or (axis == 0 and size % (batch - 1) == 0))
            }
        result = forward(*args, **kwargs)
        calls.append(
            Call(
                tuple(tensor.shape for tensor in given),
                tuple(tensor.shape for tensor in tensors(result)),
                numbers,
            )
        )
        return result

    return call


def tensors(tree: object) -> list[torch.Tensor]:
    """The tensors of nested tuples, lists and dicts, in order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


@contextlib.contextmanager
def unchanged(model: nn.Module):
    """Whatever runs inside leaves random states, buffers and the modules' attributes as
    they were; yields a function that says whether random numbers were drawn so far.

    What a module changes inside a list, a dict or another object stays changed.
    """
    attributes = [
        (there, dict(there))
        for module in model.modules()
        for there in (module.__dict__, module._buffers)
    ]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    device = next(model.parameters()).device
    devices = [] if device.type == "cpu" else [device]
    of_python = random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = numpy.random.get_state() if numpy else None
    before = random_state(device)
    fork = torch.random.fork_rng(
        devices, device_type=device.type if devices else "cuda"
    )
    with torch.no_grad(), fork:
        try:
            yield lambda: (
                not same_state(before, random_state(device))
                or random.getstate() != of_python
            )
        finally:
            for there, values in attributes:
                there.clear()
                there.update(values)
            for buffer, version, copy in buffers:
                if buffer._version != version:
                    buffer.copy_(copy)
            random.setstate(of_python)
            if numpy:
                numpy.random.set_state(of_numpy)


def random_state(device: torch.device) -> tuple[torch.Tensor, ...]:
    """Of torch's generators that a module on this device draws from."""
    states = [torch.get_rng_state()]
    if device.type != "cpu":
        states.append(torch.get_device_module(device.type).get_rng_state(device))
    return tuple(states)


def same_state(one: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other))


@contextlib.contextmanager
def as_drawn(states: tuple[torch.Tensor, ...], device: torch.device):
    """Draw again from these states of `random_state`; afterwards the generators are as
    they were.
    """
    devices = [] if device.type == "cpu" else [device]
    fork = torch.random.fork_rng(
        devices, device_type=device.type if devices else "cuda"
    )
    with fork:
        torch.set_rng_state(states[0])
        for state in states[1:]:
            torch.get_device_module(device.type).set_rng_state(state, device)
        yield
