"""Which variant an op's call runs: the one measured fastest on this device near these
inputs, or else by rule.

`batchline dispatch --run RUN` turns a run's evidence into
kernels/<op>/dispatch/<device>.json: for each measured problem the variants that were
significantly faster than the baseline, and by how much. A call only looks up.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.autograd import forward_ad

from batchline.kernels import backends, plain
from batchline.kernels.device_files import file_for, nearby, stored
from batchline.kernels.forks import why_no_threads

DISPATCHED = "dispatched"  # the name of the variant that is the op's own call
VERSIONS = (
    "torch",
    "triton",
    "numba",
    "numba-cuda",
)  # a measurement holds for the same versions of these
MEASURED, NEARBY, RULE, BASELINE = (
    "measured",
    "measured nearby",
    "by rule",
    "the baseline",
)
_MOST_REMEMBERED = (
    4096  # problems; a caller whose sizes never repeat must not fill the memory
)
_is_compiling, _is_grad_enabled = (
    torch.compiler.is_dynamo_compiling,
    torch.is_grad_enabled,
)
_dispatch_modes, _function_modes, _any_autocast = (
    plain.dispatch_modes,
    plain.function_modes,
    plain.any_autocast,
)
_TYPES = plain.TYPES
_LOW = (
    2**32
)  # bytes: the address of a tensor with no memory is its offset, and real memory has higher ones


@dataclass(frozen=True)
class Choice:
    """The name of a variant, and why it is this one: MEASURED, NEARBY, RULE, or
    BASELINE with a reason.
    """

    variant: str
    source: str


class Dispatch:
    """The choice among an op's variants that keep the op's own error bound.

    Near a problem that was not measured it is a variant that beat the baseline on every
    measured problem within a factor of four in size, the one that did so by most; if
    none did, the baseline. The baseline alone runs where PyTorch has to see the work
    (gradients of any mode, transforms, autocast, compilation, tracing, modes), where an
    input is more or less than plain memory (subclasses, lazy bits, wrappers), or where
    PyTorch refuses the inputs.

    Args:
        op: the kernels.op.Op.
        rule: inputs → names of variants to prefer where nothing near was measured on
            the device, the best first.
        table: the measurements to choose by, instead of the stored ones.
    """

    def __init__(
        self, op, rule: Callable[..., Sequence[str]], table: Mapping | None = None
    ):
        self._op, self._rule, self._given = op, rule, table
        self._known: dict[tuple, Callable] = {}
        self._baseline_function: Callable | None = None
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                after_in_child=self._known.clear
            )  # a child may have no threads

    def function(self, *inputs: torch.Tensor) -> Callable:
        """What to call on these inputs. Remembered for their shapes, strides, dtypes
        and devices.

        Inputs that share a key are told apart here; `look_up` tests everything else. A
        sparse tensor, or one of functorch's, raises. While torch.jit traces, sizes are
        tensors, which are never remembered.
        """
        if _is_compiling():
            return self._baseline()
        try:  # two microseconds: as few calls as do, and no frame of its own
            if (
                _dispatch_modes()
                or _function_modes()
                or _any_autocast()
                or forward_ad._current_level >= 0
            ) and plain.why_watched():
                return self._baseline()
            graded, key = _is_grad_enabled(), None
            for tensor in inputs:
                if (
                    type(tensor) not in _TYPES
                    or tensor.is_neg()
                    or graded
                    and tensor.requires_grad
                    or tensor.data_ptr() < _LOW
                    and plain.why_not_plain(tensor)
                ):
                    return self._baseline()
                key = key, tensor.shape, tensor.stride(), tensor.dtype, tensor.device
            return self._known[key]
        except KeyError:
            return self._remembered(key, inputs)
        except (
            RuntimeError
        ):  # no strides or no memory: for PyTorch to take or to refuse
            return self._baseline()

    def _remembered(self, key: tuple, inputs: Sequence[torch.Tensor]) -> Callable:
        if torch.jit.is_tracing():
            return self._baseline()
        chosen = self._op.variants[self.look_up(*inputs).variant].function
        if len(self._known) >= _MOST_REMEMBERED:
            self._known.clear()
        self._known[key] = chosen
        return chosen

    def by_table(self, table: Mapping) -> "Dispatch":
        """The choice by a table that is not stored, to try it before it is."""
        return Dispatch(self._op, self._rule, table)

    def behind_look_up(self, name: str) -> Callable:
        """A function that makes the look-up and then calls the variant of that name
        whatever the result: it times the look-up.
        """
        look_up, function = self.function, self._op.variants[name].function

        def looked_up_first(*inputs):
            look_up(*inputs)
            return function(*inputs)

        looked_up_first.__name__ = DISPATCHED
        return looked_up_first

    def look_up(self, *inputs: torch.Tensor) -> Choice:
        """The choice for these inputs.

        Raises:
            ValueError: if the device's table is damaged.
        """
        if why := self._why_baseline(inputs):
            return Choice(self._op.baseline, f"{BASELINE}: {why}")
        device = inputs[0].device.type
        near = nearby(
            self.table(device).get("winners", ()), *self._op.describe(*inputs)
        )
        if not near:
            name = next(
                (name for name in self._rule(*inputs) if self._takes(name, inputs)),
                self._op.baseline,
            )
            return Choice(name, RULE)
        exact = near[0][0] == 0
        gains = [
            entry["faster"] for distance, entry in near if distance == 0 or not exact
        ]
        name = next(
            (name for name in _by_gain(gains) if self._takes(name, inputs)),
            self._op.baseline,
        )
        return Choice(name, MEASURED if exact else NEARBY)

    def table(self, device: str) -> Mapping:
        """What was measured on this machine's "cpu" or "cuda", by the versions that are
        installed; {} where nothing.

        Raises:
            ValueError: if the file is damaged.
        """
        if self._given is not None:
            return self._given
        document = stored(file_for(self._op.folder, "dispatch", device))
        return {} if document and why_stale(document) else document

    @functools.cached_property
    def candidates(self) -> Mapping[str, object]:
        """The variants to choose from, by name; a file is imported when its variant is
        asked for.
        """
        return _Candidates(self._op)

    def _baseline(self) -> Callable:
        """The baseline's function."""
        self._find_baseline()
        return self._baseline_function

    def _find_baseline(self) -> None:
        if self._baseline_function is None:
            self._baseline_function = self._op.variants[self._op.baseline].function

    # torch.compile calls it instead of tracing how an op's files are listed and
    # imported. This mark is torch.compiler.assume_constant_result, which would import
    # all of the compiler first.
    _find_baseline._dynamo_marked_constant = True

    def _takes(self, name: str, inputs: Sequence[torch.Tensor]) -> bool:
        variant = self.candidates.get(name)
        return (
            variant is not None
            and variant.why_not_here(inputs[0].device.type) is None
            and variant.why_unsupported(*inputs) is None
        )

    def _why_baseline(self, inputs: Sequence[torch.Tensor]) -> str | None:
        """Why nothing but the baseline can be called, or None."""
        if not inputs:
            return "no inputs"
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            return "a gradient is asked for"
        if any(type(tensor) not in plain.TYPES for tensor in inputs):
            return "a subclass of Tensor"
        device = inputs[0].device
        if device.type not in ("cpu", "cuda") or any(
            tensor.device != device for tensor in inputs
        ):
            return f"tensors on {', '.join(sorted({str(tensor.device) for tensor in inputs}))}"
        if why := plain.why_watched() or next(
            filter(None, map(plain.why_not_plain, inputs)), None
        ):
            return why
        if device.type == "cpu" and (why := why_no_threads()):
            return why
        if device.type == "cuda" and device.index and _gpu(device.index) != _gpu(0):
            return "what was measured is of the first GPU, and this is another model"
        try:  # kernels trust the shapes that they are given
            self._baseline()(
                *(
                    torch.empty_strided(
                        tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
                    )
                    for tensor in inputs
                )
            )
        except Exception as error:
            return f"it refuses these inputs ({error})"
        return None


class _Candidates(Mapping):
    """Those of an op's variants that are candidates."""

    def __init__(self, op):
        self._op = op

    def __getitem__(self, name: str):
        variant = self._op.variants[name]
        if not is_candidate(variant):
            raise KeyError(name)
        return variant

    def __iter__(self) -> Iterator[str]:
        return (
            name for name, variant in self._op.variants.items() if is_candidate(variant)
        )

    def __len__(self) -> int:
        return sum(1 for _ in self)


def is_candidate(variant) -> bool:
    """Whether a call may choose the variant: it returns all outputs within the op's
    bound, and has no slow start.
    """
    return (
        variant.backend not in (backends.DISPATCH, *backends.PEERS)
        and not variant.own_tolerance
        and variant.gives is None
        and not variant.slow_start
    )


def why_stale(document: Mapping) -> str | None:
    """Why a table does not apply to the installed libraries, or None."""
    for name, version in document["versions"].items():
        if name in VERSIONS and version != _installed(name):
            return (
                f"measured with {name} {version}, and {_installed(name)} is installed"
            )
    return None


@functools.cache
def _installed(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


@functools.cache
def _gpu(index: int) -> str:
    return torch.cuda.get_device_name(index)


def _by_gain(gains: Sequence[Mapping[str, float]]) -> list[str]:
    """The names that are in all of `gains`, those with the largest product of them
    first.
    """

    def product(name: str) -> float:
        whole = 1.0
        for gain in gains:
            whole *= gain[name]
        return whole

    common = set(gains[0]).intersection(*gains[1:])
    return sorted(common, key=lambda name: (-product(name), name))
