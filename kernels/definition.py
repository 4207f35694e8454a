"""What an op declares of itself, in a few tables: its problems, what is right, its
work, how it is called, and how its accuracy is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from batchline.kernels.elements import dtype_name
from batchline.kernels.rounding import Typical

Tensors = tuple[torch.Tensor, ...]
Probe = Callable[[torch.dtype, str, int], Tensors]
WIDE = ("float32", "float16", "bfloat16", "float64")
FP8 = "float8_e4m3fn"


@dataclass(frozen=True)
class Scenario:
    """A shape worth measuring: the sizes of everything but the batch, and where they
    occur.

    Ops subclass this with what else they need.

    Args:
        name: part of every case id, so a rename loses the scenario's history.
        dtypes: the names of those that it is defined in.
        detail: whether it fills in a range that other scenarios span. A short run
            leaves it out.
    """

    name: str
    title: str
    sizes: Mapping[str, int]
    dtypes: tuple[str, ...] = WIDE
    detail: bool = False


@dataclass(frozen=True)
class Problems:
    """The inputs that an op is measured and checked on.

    Args:
        scenarios: what is benchmarked.
        inputs: (scenario, batch, dtype, device, seed) → the inputs. Device "meta" gives
            shapes and strides alone.
        probes: name → (dtype, device, seed) → inputs on which every variant is checked
            before it is timed. Most are small enough for an interpreter.
        example: the (scenario, batch) whose launch represents the op where only one is
            compiled.
        shared: the inputs, by number, that all samples share, as a weight is. The first
            dimension of every other input is the batch.
    """

    scenarios: Sequence[Scenario]
    inputs: Callable[..., Tensors]
    probes: Mapping[str, Probe]
    example: tuple[str, int]
    shared: tuple[int, ...] = ()


def same_dtype(*inputs: torch.Tensor) -> torch.dtype:
    """The first input's dtype."""
    return inputs[0].dtype


@dataclass(frozen=True)
class Reference:
    """What a variant must return. The functions take the op's inputs.

    Args:
        outputs: the result in fp64: a tensor, or a tuple where the op has several
            outputs.
        tolerance: (expected, *inputs) → the largest |output − expected| of correct
            arithmetic, elementwise, in fp64. A tensor, or a tuple as `outputs` gives.
        typical: for each output, what the root mean square of its errors may be. None
            where only `tolerance` is asked for.
        dtypes: the dtype of every output, or a tuple with one for each.
        rows: the outputs, by number, whose row b is a function of row b of the inputs
            alone.
        regrouped: the outputs, by number, that may be NaN where an infinity is
            expected. Some ways to compute them group the terms otherwise, or add
            products of padding, and meet ∞ − ∞ or 0 · ∞ within the same row.
        nan_by_torch: for each output, the elements that PyTorch's library makes NaN on
            these inputs and this machine though they are none; None where it does not.
            Only variants that call the library may have NaN there.
    """

    outputs: Callable[..., torch.Tensor | Tensors]
    tolerance: Callable[..., torch.Tensor | Tensors]
    typical: Callable[..., Sequence[Typical]] | None = None
    dtypes: Callable[..., torch.dtype | tuple[torch.dtype, ...]] = same_dtype
    rows: tuple[int, ...] = ()
    regrouped: tuple[int, ...] = ()
    nan_by_torch: Callable[..., Tensors | None] = lambda *inputs: None


@dataclass(frozen=True)
class Work:
    """What the definition costs, whatever a variant does.

    Args:
        flops: inputs → floating-point operations.
        least_bytes: inputs → bytes, with each distinct input element read once and each
            output element written once.
    """

    flops: Callable[..., int]
    least_bytes: Callable[..., int]


def shapes(*inputs: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """(the first input's dtype, the sizes of all inputs)."""
    sizes = tuple(size for tensor in inputs for size in tensor.shape)
    return dtype_name(inputs[0].dtype), sizes


@dataclass(frozen=True)
class Calls:
    """How a call of the op chooses a variant, and a variant its configuration.

    Args:
        baseline: the variant that all others are compared with. It runs what no other
            may.
        describe: inputs → (traits, sizes). Measurements apply to inputs of equal
            traits, and of those to the nearest in size.
        rule: inputs → the names of variants to prefer where nothing was measured near
            them, the best first.
    """

    baseline: str
    describe: Callable[..., tuple[str, tuple[int, ...]]] = shapes
    rule: Callable[..., Sequence[str]] = lambda *inputs: ()


@dataclass(frozen=True)
class Control:
    """A way to compute the op that people write and that loses accuracy. The audit
    compares it with the variants; it is never timed or ranked.

    Args:
        dtypes: names of the input dtypes it takes; None is every dtype.
        needs: "cuda" or "cpu"; None is any device.
        gives: how many of the op's outputs it returns first; None is all.
        errors: as `Audit.errors`, for what it returns; None is the op's.
    """

    function: Callable
    dtypes: tuple[str, ...] | None = None
    needs: str | None = None
    gives: int | None = None
    errors: Callable[[Tensors, Tensors], Mapping[str, float]] | None = None

    @property
    def name(self) -> str:
        return self.function.__name__


@dataclass(frozen=True)
class Audit:
    """How accurate each way of computing is where arithmetic is hard. It compares, and
    refuses nothing.

    Args:
        conditions: name → (dtype, device, seed) → inputs.
        names: of the errors in a report: the outputs' in their order, then any others
            that `errors` gives.
        errors: (outputs, expected), all in fp64 → the errors by name. A way may return
            fewer outputs than the op has. None is ‖output − expected‖/‖expected‖ of
            each.
        why_impossible: outputs → what no rounding can explain, or None.
        controls: ways that should show large errors.
    """

    conditions: Mapping[str, Probe] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    errors: Callable[[Tensors, Tensors], Mapping[str, float]] | None = None
    why_impossible: Callable[[Tensors], str | None] = lambda outputs: None
    controls: tuple[Control, ...] = ()

    def errors_of(self, outputs: Tensors, expected: Tensors) -> Mapping[str, float]:
        """The errors by name, of as many outputs as there are."""
        if self.errors is not None:
            return self.errors(outputs, expected)
        return {
            name: float((output - exact).norm() / exact.norm())
            for name, output, exact in zip(self.names, outputs, expected)
        }
