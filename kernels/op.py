"""Op and Variant: what a kernel computes, and the ways to compute it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from batchline.kernels import backends
from batchline.kernels.device import on_its_device, why_no_fp8, why_no_kernels
from batchline.kernels.discovery import LoadedWhenAsked, variant_files
from batchline.kernels.dispatch import DISPATCHED, Dispatch
from batchline.kernels.elements import dtype_name
from batchline.kernels.rounding import Typical
from batchline.kernels.tuning import Tunable

Tensors = tuple[torch.Tensor, ...]
Probe = Callable[[torch.dtype, str, int], Tensors]
WIDE = ("float32", "float16", "bfloat16", "float64")
FP8 = "float8_e4m3fn"


@dataclass(frozen=True)
class Scenario:
    """A shape worth measuring: the sizes of everything but the batch, and whose sizes
    they are.

    `name` is part of every case id, so renaming one loses its history. `dtypes` are
    those it is defined in. `detail`: it fills in a range that other scenarios span, so
    a short run can do without it. Ops subclass this with what else they need.
    """

    name: str
    title: str
    sizes: Mapping[str, int]
    dtypes: tuple[str, ...] = WIDE
    detail: bool = False


@dataclass(frozen=True)
class Variant:
    """One way to compute an op, and what it declares of itself. Calling it calls its
    function.

    Args:
        backend: one of kernels.backends.NAMES.
        dtypes: names of the input dtypes it takes; None is every dtype.
        needs: "cuda" or "cpu"; None is any device.
        supports: inputs → why it declines them, or None. What is not declared is
        supported.
        builds_on: the rung below it on the ladder: the variant whose idea it changes,
        and its gain is quoted over. tunable: its configurations, if more than one is
        worth timing; the function asks tunable.choose(*inputs). example: the (scenario,
        batch) whose launch stands for it where one must do; None is the op's.
        tolerance: as the op's, where it promises another accuracy than the op asks;
        None is the op's. slow_start: it takes seconds before its first call on each
        shape, as a compiler does that tries what is fastest. detail: what it shows over
        the rung below is a detail, which a short run can do without. gives: the first
        so many of the op's outputs, where it can't give all (a peer's); None is all.
        idea: the first line of its file.
    """

    op: "Op"
    function: Callable[..., torch.Tensor | Tensors]
    backend: str
    dtypes: tuple[str, ...] | None = None
    needs: str | None = None
    supports: Callable[..., str | None] | None = None
    builds_on: str | None = None
    tunable: Tunable | None = None
    example: tuple[str, int] | None = None
    tolerance: Callable | None = None
    slow_start: bool = False
    detail: bool = False
    gives: int | None = None
    idea: str = field(default="")

    def __post_init__(self):
        if self.backend not in backends.NAMES:
            raise ValueError(
                f"backend {self.backend!r} is none of {', '.join(backends.NAMES)}"
            )
        if self.needs not in (None, "cpu", "cuda"):
            raise ValueError(f"needs={self.needs!r} is none of None, 'cpu', 'cuda'")
        if unknown := [name for name in self.dtypes or () if not is_dtype(name)]:
            raise ValueError(f"dtypes: {unknown[0]!r} is no dtype of torch")
        if self.tunable:
            self.tunable.bind(self.op.folder, self.name, self.op.describe)

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def id(self) -> str:
        return f"{self.op.name}/{self.name}"

    @property
    def folder(self) -> Path:
        """Its op's, where what was measured of it is kept."""
        return self.op.folder

    @property
    def file(self) -> Path:
        """Where its function is."""
        return Path(sys.modules[self.function.__module__].__file__)

    @property
    def below(self) -> str | None:
        """The id of the rung below."""
        return f"{self.op.name}/{self.builds_on}" if self.builds_on else None

    @property
    def own_tolerance(self) -> bool:
        """Whether it is held to another error bound than the op's."""
        return self.tolerance is not None

    def __call__(self, *inputs: torch.Tensor):
        return self.function(*inputs)

    def why_not_here(self, device: str, dtype: str | None = None) -> str | None:
        """Why this variant can't run on `device` ("cpu" or "cuda"; in `dtype`) in this
        environment, or None.
        """
        return why_not_here(self.backend, self.needs, device, dtype)

    def why_unsupported(self, *inputs: torch.Tensor) -> str | None:
        """Why this variant declines these inputs, or None. Inputs on the meta device
        are enough.
        """
        dtype = dtype_name(inputs[0].dtype)
        if self.dtypes is not None and dtype not in self.dtypes:
            return f"{dtype} is not among its dtypes ({', '.join(self.dtypes)})"
        return self.supports(*inputs) if self.supports else None


class Op:
    """A function on tensors, its fp64 reference, and every variant found beside it.

    Args (all keyword, the functions take the op's inputs):
        signature: shapes in and out, for people.
        inputs: (scenario, batch, dtype, device, seed) → the inputs; device "meta" gives
        shapes alone. reference: the result in fp64 (a tensor, or a tuple where the op
        has several outputs).
        tolerance: (expected, *inputs) → the largest |output − expected| of correct
        arithmetic, elementwise, in fp64. typical: inputs → for each output what the
        root mean square of its errors may be (kernels.rounding.Typical). flops:
        floating-point operations of the definition, whatever way a variant takes.
        least_bytes: bytes of each distinct input element read once and each output
        written once. output_dtype: the inputs' dtype → the outputs'; by default the
        same.
        rows: the outputs, by number, of which row b is a function of row b of the
        inputs alone. regrouped: the outputs, by number, that may be NaN where an
        infinity is expected: ways to compute them group the
            terms otherwise, or add products of padding, and meet ∞ − ∞ or 0 · ∞ within
            the same row.
        scenarios: what is benchmarked.
        probes: name → inputs on which every variant is checked before it is timed; most
            are small enough for an interpreter.
        conditions: name → inputs that are hard on arithmetic, on which ways of
        computing are compared, not refused. example: the (scenario, batch) whose launch
        stands for the op where one must do: its compiled code is shown. baseline: the
        variant that all others are compared with.
        rule: inputs → names of variants that a call prefers where nothing near was
        measured (kernels.dispatch). describe: inputs → (traits, sizes): what a tuned
        configuration depends on. Only inputs of equal traits can
            share one, and of those the nearest in size do.
    """

    def __init__(
        self,
        package: str,
        *,
        signature: str,
        inputs: Callable[..., Tensors],
        reference: Callable,
        tolerance: Callable,
        flops: Callable[..., int],
        least_bytes: Callable[..., int],
        scenarios: Sequence[Scenario],
        probes: Mapping[str, Probe],
        example: tuple[str, int],
        baseline: str,
        describe: Callable[..., tuple[str, tuple[int, ...]]] | None = None,
        conditions: Mapping[str, Probe] = {},
        rule: Callable[..., Sequence[str]] = lambda *inputs: (),
        output_dtype: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype,
        rows: Sequence[int] = (),
        regrouped: Sequence[int] = (),
        typical: Callable[..., Sequence[Typical]] | None = None,
    ):
        self.package = package
        self.name = package.rpartition(".")[2]
        self.signature = signature
        self.inputs = inputs
        self.reference = reference
        self.tolerance = tolerance
        self.flops = flops
        self.least_bytes = least_bytes
        self.scenarios = {scenario.name: scenario for scenario in scenarios}
        self.probes = dict(probes)
        self.conditions = dict(conditions)
        self.example = example
        self.baseline = baseline
        self.describe = describe or _shapes
        self.output_dtype = output_dtype
        self.rows = tuple(rows)
        self.regrouped = tuple(regrouped)
        self.typical = typical
        self.dispatch = Dispatch(self, rule)
        self._function = self.dispatch.function
        self._registered: dict[str, Variant] = {}
        self._variants = LoadedWhenAsked(self._names, self._load)

    def variant(
        self,
        *,
        dtypes: Sequence[str] | None = None,
        example: tuple[str, int] | None = None,
        **declared,
    ):
        """Register the decorated function as a variant of this op, and return it: one
        that needs CUDA guarded (kernels.device.on_its_device), any other as it is.

        Takes what Variant takes, by keyword: backend, dtypes, needs, supports…

        Raises:
            ValueError: for an unknown backend or device, a name already taken, or a
            name that is not its file's.
        """

        def register(function):
            package, _, file = function.__module__.rpartition(".")
            if package == self.package and file != function.__name__:
                raise ValueError(
                    f"{file}.py registers {function.__name__!r}: a variant is named after its file"
                )
            if function.__name__ in self._registered:
                raise ValueError(
                    f"{self.name} has a variant named {function.__name__!r} already"
                )
            if declared.get("needs") == "cuda":
                function = on_its_device(function)
            module_doc = sys.modules[function.__module__].__doc__ or ""
            self._registered[function.__name__] = Variant(
                self,
                function,
                dtypes=tuple(dtypes) if dtypes is not None else None,
                example=example or self.example,
                idea=" ".join(module_doc.partition("\n\n")[0].split()),
                **declared,
            )
            return function

        return register

    @property
    def folder(self) -> Path:
        """Where the op's files are, its tuned configurations among them."""
        return Path(sys.modules[self.package].__file__).parent

    @property
    def variants(self) -> Mapping[str, Variant]:
        """Every variant by name, the baseline first. A file is imported when its
        variant is first asked for.
        """
        return self._variants

    def _names(self) -> list[str]:
        names = {*self._files(), *self._registered, DISPATCHED}
        return sorted(names, key=lambda name: (name != self.baseline, name))

    def _files(self) -> list[str]:
        package = sys.modules.get(self.package)
        return variant_files(package.__path__) if package else []

    def _load(self, name: str) -> Variant:
        if name == DISPATCHED:
            return self._own_call()
        try:
            if name in self._files():
                importlib.import_module(f"{self.package}.{name}")
            if name not in self._registered:
                raise ValueError(
                    f"{name}.py registers no variant (start its name with _ if it is a helper)"
                )
            return self._registered[name]
        except (
            Exception,
            SystemExit,
        ) as error:  # it must not end who asked for it: it becomes a variant that fails
            return _unloadable(self, name, error)

    def make_inputs(
        self, scenario: str, batch: int, dtype: str, device: str, seed: int = 0
    ) -> Tensors:
        """The named scenario's inputs, fresh for each seed; on device "meta" they are
        shapes and strides alone.
        """
        return self.inputs(
            self.scenarios[scenario], batch, getattr(torch, dtype), device, seed
        )

    def __call__(self, *inputs: torch.Tensor):
        """Run the op by the variant that was measured fastest here, or by rule;
        gradients by the baseline.
        """
        return self._function(*inputs)(*inputs)

    def _own_call(self) -> Variant:
        """The call itself as one more variant: what it costs and gains is measured like
        any other.
        """
        function = self.dispatch.function

        def dispatched(*inputs):
            return function(*inputs)(*inputs)

        baseline = self.variants[self.baseline]
        # It may be the baseline that it calls, and is then no more accurate than that.
        return Variant(
            self,
            dispatched,
            backend=backends.DISPATCH,
            dtypes=baseline.dtypes,
            tolerance=baseline.tolerance,
            builds_on=self.baseline,
            detail=True,
            example=self.example,
            idea="The op's own call: what was measured fastest near the inputs on this device, or a rule.",
        )

    def __repr__(self) -> str:
        return f"<Op {self.name}: {self.signature}>"


def is_dtype(name: object) -> bool:
    """Whether it names a dtype of torch."""
    return isinstance(name, str) and isinstance(getattr(torch, name, None), torch.dtype)


def why_not_here(
    backend: str, needs: str | None, device: str, dtype: str | None = None
) -> str | None:
    """Why what has this backend and needs can't run on `device` ("cpu" or "cuda"; in
    `dtype`) here, or None.
    """
    absent = backends.why_absent(backend)
    if absent:
        return absent
    if needs not in (None, device) and not (
        needs == "cuda" and backends.interpreted(backend)
    ):
        return f"needs {needs.upper()}"
    if backend in backends.INTERPRETED_BACKENDS and (why := why_no_kernels(device)):
        return why
    return why_no_fp8(device) if dtype == FP8 else None


def _unloadable(op: Op, file: str, error: BaseException) -> Variant:
    def function(*inputs):
        raise ImportError(
            f"{file}.py does not load: {type(error).__name__}: {error}"
        ) from error

    function.__name__ = file
    return Variant(op, function, backend="torch", idea="(does not load)")


def _shapes(*inputs: torch.Tensor) -> tuple[str, tuple[int, ...]]:
    """(the first input's dtype, all sizes): what configurations depend on where an op
    doesn't say better.
    """
    return dtype_name(inputs[0].dtype), tuple(
        size for tensor in inputs for size in tensor.shape
    )
