"""Op and Variant: what a kernel computes, and the ways to compute it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from batchline.kernels import architectures, backends
from batchline.kernels.definition import (  # noqa: F401 (for the ops and their readers)
    FP8,
    WIDE,
    Audit,
    Calls,
    Control,
    Probe,
    Problems,
    Reference,
    Scenario,
    Tensors,
    Work,
)
from batchline.kernels.device import on_its_device, why_no_fp8, why_no_kernels
from batchline.kernels.discovery import LoadedWhenAsked, variant_files
from batchline.kernels.dispatch import DISPATCHED, Dispatch
from batchline.kernels.elements import dtype_name
from batchline.kernels.tuning import Tunable

ASKED_FOR = "asked for"  # the source of a configuration that a call was given


@dataclass(frozen=True)
class Variant:
    """One way to compute an op, and what it declares of itself. Calling it calls its
    function.

    Args:
        backend: one of kernels.backends.NAMES.
        dtypes: names of the input dtypes it takes; None is every dtype.
        needs: "cuda" or "cpu"; None is any device.
        architectures: the only ones that have its instructions, as (100,) of sm_100; None
            where nothing is said of them.
        supports: inputs → why it declines them, or None. What is not declared is
            supported.
        builds_on: the rung below it on the ladder: the variant whose idea it changes.
            Its gain is quoted over that one.
        tunable: its configurations, if more than one is worth timing. The function asks
            tunable.choose(*inputs).
        example: the (scenario, batch) whose launch represents it where only one is
            compiled; None is the op's.
        tolerance: as the op's, where it promises another accuracy than the op asks for;
            None is the op's.
        slow_start: whether it takes seconds before its first call on each shape, as a
            compiler does that tries what is fastest.
        detail: whether its gain over the rung below is a detail, which a short run
            leaves out.
        gives: how many of the op's outputs it returns first, where it can't return all
            (a peer's); None is all.
        idea: the first paragraph of its file's docstring.
    """

    op: "Op"
    function: Callable[..., torch.Tensor | Tensors]
    backend: str
    dtypes: tuple[str, ...] | None = None
    needs: str | None = None
    architectures: tuple[int, ...] | None = None
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
        for number in self.architectures or ():
            architectures.known(number)
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
        """The op's folder, which has the measurements of the variant."""
        return self.op.folder

    @property
    def file(self) -> Path:
        """The file of its function."""
        return Path(sys.modules[self.function.__module__].__file__)

    @property
    def below(self) -> str | None:
        """The id of the rung below."""
        return f"{self.op.name}/{self.builds_on}" if self.builds_on else None

    @property
    def own_tolerance(self) -> bool:
        """Whether it declares another error bound than the op's."""
        return self.tolerance is not None

    def __call__(self, *inputs: torch.Tensor):
        return self.function(*inputs)

    def with_config(self, config: Mapping | None) -> "Variant":
        """The variant where every call takes this configuration; itself for None."""
        if config is None:
            return self

        def function(*inputs):
            with self.tunable.forced(config):
                return self.function(*inputs)

        function.__name__ = self.name
        return replace(self, function=function)

    def configuration(self, inputs: Tensors, config: Mapping | None = None) -> dict:
        """The configuration that a call with these inputs takes, and its source; {} for
        a variant that has only one. `config` is what `with_config` was given.
        """
        if config is not None:
            return {"config": dict(config), "config_source": ASKED_FOR}
        if not self.tunable:
            return {}
        choice = self.tunable.look_up(*inputs)
        return {"config": dict(choice.config), "config_source": choice.source}

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


class OwnCall(Variant):
    """The op's own call as one more variant, so that its cost and gain are measured.

    Its configuration is the variant that it calls. A given one may have a "table", to
    choose by that one instead of the stored one, and a "variant", to call that one
    after a look-up all the same.
    """

    def with_config(self, config: Mapping | None) -> Variant:
        if config is None:
            return self
        dispatch = self._dispatch(config)
        if "variant" in config:
            return replace(self, function=dispatch.behind_look_up(config["variant"]))
        return replace(self, function=_call_by(dispatch))

    def configuration(self, inputs: Tensors, config: Mapping | None = None) -> dict:
        if config and "variant" in config:
            called, source = config["variant"], ASKED_FOR
        else:
            choice = self._dispatch(config or {}).look_up(*inputs)
            called, source = choice.variant, choice.source
        return {"config": {"variant": called}, "config_source": source}

    def _dispatch(self, config: Mapping) -> Dispatch:
        dispatch = self.op.dispatch
        return dispatch.by_table(config["table"]) if "table" in config else dispatch


def _call_by(dispatch: Dispatch) -> Callable:
    """A function that calls what is chosen for its inputs."""
    function = dispatch.function

    def dispatched(*inputs):
        return function(*inputs)(*inputs)

    return dispatched


class Op:
    """A function on tensors, its fp64 reference, and every variant in its folder.

    What it declares comes in tables (kernels.definition), and is read as the op's own
    attributes: `op.scenarios`, `op.reference(*inputs)`, `op.flops(*inputs)`.

    Args:
        package: the name of the op's package; its last part is the op's name.
        signature: the shapes of inputs and outputs, for people.
    """

    def __init__(
        self,
        package: str,
        *,
        signature: str,
        problems: Problems,
        reference: Reference,
        work: Work,
        calls: Calls,
        audit: Audit = Audit(),
    ):
        self.package = package
        self.name = package.rpartition(".")[2]
        self.signature = signature
        self.scenarios = {scenario.name: scenario for scenario in problems.scenarios}
        self.inputs = problems.inputs
        self.probes = dict(problems.probes)
        self.example = problems.example
        self.shared = problems.shared
        self.reference = reference.outputs
        self.tolerance = reference.tolerance
        self.typical = reference.typical
        self.dtypes = reference.dtypes
        self.rows = reference.rows
        self.regrouped = reference.regrouped
        self.nan_by_torch = reference.nan_by_torch
        self.flops = work.flops
        self.least_bytes = work.least_bytes
        self.baseline = calls.baseline
        self.describe = calls.describe
        self.audit = audit
        self.dispatch = Dispatch(self, calls.rule)
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
        """Register the decorated function as a variant of this op, and return it. One
        that needs CUDA is guarded first (kernels.device.on_its_device).

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
        """The folder of the op's files, its tuned configurations among them."""
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
        ) as error:  # it becomes a variant that fails, and does not end the caller
            return _unloadable(self, name, error)

    @property
    def conditions(self) -> Mapping[str, Probe]:
        """Inputs by name on which the accuracy of variants is compared."""
        return self.audit.conditions

    def output_dtypes(
        self, count: int, *inputs: torch.Tensor
    ) -> tuple[torch.dtype, ...]:
        """The dtype that each of the op's `count` outputs has on these inputs.

        Raises:
            ValueError: if the op declares another number of them.
        """
        dtypes = self.dtypes(*inputs)
        if not isinstance(dtypes, tuple):
            return (dtypes,) * count
        if len(dtypes) != count:
            raise ValueError(f"{len(dtypes)} dtypes are declared for {count} outputs")
        return dtypes

    def make_inputs(
        self, scenario: str, batch: int, dtype: str, device: str, seed: int = 0
    ) -> Tensors:
        """The named scenario's inputs, fresh for each seed; on device "meta" they are
        shapes and strides alone.
        """
        return self.inputs(
            self.scenarios[scenario], batch, getattr(torch, dtype), device, seed
        )

    def first_samples(self, batch: int, *inputs: torch.Tensor) -> Tensors:
        """The inputs of the first `batch` samples of these."""
        return tuple(
            tensor if number in self.shared else tensor[:batch]
            for number, tensor in enumerate(inputs)
        )

    def __call__(self, *inputs: torch.Tensor):
        """Run the op by the variant that was measured fastest here, or by rule;
        gradients by the baseline.
        """
        return self._function(*inputs)(*inputs)

    def _own_call(self) -> Variant:
        baseline = self.variants[self.baseline]
        # It may be the baseline that it calls, and is then no more accurate than that.
        return OwnCall(
            self,
            _call_by(self.dispatch),
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
