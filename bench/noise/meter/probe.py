"""Where a layer's inputs have their samples, and whether these mix: seen where the model
is run on parts of the batch.

A size that is as much smaller there as the part is the samples'; one that is the same is
not, though it may be equal to the batch. Whatever a sample has in the whole batch it has
in any part of it: its values before each layer and at the model's end, and the gradients
of each layer's output for made-up ones at the model's end. Where that is not so, samples
mix.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from batchline.bench.errors import UsageError
from batchline.kernels.statistics import accumulator

UNTOLD = -1
# Of a row's norm: what another batch's kernels leave of it.
_EXACT = 1e-6
_SINGLE = 1e-3
_TENSOR_CORES = 1e-2
_NARROW = 0.2
_WAY_OUT = (
    "(if values depend on a sample's row or on random numbers of the model's own instead, or the loss leaves out what "
    "mixes, vouch for it: samples_apart=True)"
)
_KINKS = 1e-2  # in gradients: an activation near 0 that rounding puts on its other side


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
    `vouched`: the user says that samples don't mix. `overruled`: the first difference
    that was seen all the same.
    """

    parts: Sequence[Pass] = ()
    mixed: Mapping[str, str] | None = None
    coupled: str | None = None
    unchecked: bool = False
    differentiated: bool = False
    not_expanded: str | None = None
    trusted: tuple[str, ...] = ()
    failed: str | None = None
    vouched: bool = False
    overruled: str | None = None
    _dims: dict[tuple[str, int], int | None] = field(default_factory=dict)
    _are_outputs_seen: bool = False

    def dim(self, layer: str, call: int, x: torch.Tensor, batch: int) -> int | None:
        """The dimension of samples in the input x of a layer's call of this number,
        from 0, as `located` has it; None if x is the same for any batch. Where the call
        was not seen, dimension 0 is taken on trust.

        Raises:
            UsageError: if the values of x depend on samples that are not theirs, and
            nobody vouches for the model; or if a sample's rows are not together.
        """
        key = layer, call
        if key not in self._dims:
            recorded = self._recorded(layer, call)
            dim = UNTOLD
            if recorded and recorded.first:
                dim = located(x.shape, recorded.inputs[0], batch, self._count)
                in_rows = dim is not None and dim < UNTOLD
                mixed = self._mixing(layer, call, x, batch)
                if mixed and in_rows:
                    raise UsageError(f"{layer} {mixed}")
                if mixed:
                    self._refuse(f"{layer} {mixed}")
                if in_rows and not self._in_order(recorded):
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

    def check_outputs(self, outputs: Iterable[torch.Tensor], batch: int) -> None:
        """Look at the outputs of the model's call. Of the first call in this shape:
        others are taken to be like it.

        Raises:
            UsageError: if samples mix in them or in gradients, and nobody vouches for
            the model.
        """
        if self.mixed is None and not self._are_outputs_seen:
            rows = [Rows.of(x.detach(), batch) for x in outputs]
            self.coupled = _mixed_outputs(rows, self.parts, batch)
        self._are_outputs_seen = True
        if self.coupled:
            self._refuse(self.coupled)

    def _refuse(self, difference: str) -> None:
        if not self.vouched:
            raise UsageError(f"{difference} {_WAY_OUT}")
        self.overruled = self.overruled or difference.partition(":")[0]

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
    tokens_first: bool = False,
) -> set[int]:
    """The samples whose rows in the whole batch are not those of the parts.

    Args:
        slack: of a row's norm, that two ways to the same may differ by; None for that of
            the dtype.
        zero: what any number may be off by.
        tokens_first: in a dimension of samples and tokens, a sample's rows are as far
            apart as there are samples, not next to each other.
    """
    if slack is None:
        slack = whole.slack
    off = set()
    for samples, part in parts:
        axis = located(whole.shape, part.shape, batch, len(samples))
        each = -axis if axis is not None and axis < UNTOLD else 1
        axis = 0 if each > 1 else axis
        ours, theirs = whole.numbers.get(axis), part.numbers.get(axis)
        if ours is None or theirs is None:
            continue
        if other_sizes(whole.shape, axis) != other_sizes(part.shape, axis):
            continue
        rows = rows_of(samples, each)
        if tokens_first:
            rows = rows_of(range(each), batch).view(each, batch)[:, samples].flatten()
        ours = ours[rows.to(ours.device)]
        if not torch.isfinite(ours).all():
            continue
        wrong = (ours - theirs).abs().amax(1) > slack * ours[:, 0].abs() + zero
        wrong = wrong.view(each, -1).T if tokens_first else wrong.view(-1, each)
        off |= set(itertools.compress(samples, wrong.any(1).tolist()))
    return off


def other_sizes(shape: torch.Size, axis: int) -> list[int]:
    return [size for other, size in enumerate(shape) if other != axis]


def rows_of(samples: Sequence[int], each: int) -> torch.Tensor:
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


def mixed_before(whole: Pass, parts: Sequence[Pass], batch: int) -> dict[str, str]:
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


def mixed_behind(whole: Pass, parts: Sequence[Pass], batch: int) -> str | None:
    """What is wrong with the model's outputs, or with the gradients of the last layer
    where something is; None if nothing.
    """
    return _mixed_outputs(whole.outputs, parts, batch) or _mixed_gradients(
        whole, parts, batch
    )


def _mixed_gradients(whole: Pass, parts: Sequence[Pass], batch: int) -> str | None:
    every = [
        (name, number, place, rows)
        for name, calls in whole.calls.items()
        for number, call in enumerate(calls)
        for place, rows in call.gradients.items()
    ]
    slack = _slack_of_gradients(whole)
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


def _slack_of_gradients(whole: Pass) -> float:
    """Of a row's norm: that of the narrowest dtype, for a gradient has come through it."""
    calls = [call for of_layer in whole.calls.values() for call in of_layer]
    seen = [one for call in calls for one in (call.first, *call.gradients.values())]
    slack = max((one.slack for one in seen if one), default=_EXACT)
    return slack if slack == _EXACT else max(slack, _KINKS)


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
        if off and samples_off(rows, of_parts, batch, tokens_first=True):
            return (
                f"the model gives other outputs for {len(off)} of {batch} samples where the batch is run in parts: "
                "samples mix behind its last layer, so they have no gradients of their own"
            )
    return None


def _largest(rows: Rows) -> float:
    """The largest norm of a row; 0 of rows that are not finite."""
    norms = [numbers[:, 0].amax().item() for numbers in rows.numbers.values()]
    return max((norm for norm in norms if norm < float("inf")), default=0.0)
