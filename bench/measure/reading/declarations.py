"""What an op or a variant says of itself, read in a process that imports its file:
data, or why there is none.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from batchline.bench.measure.checking.check import refusal_of
from batchline.bench.measure.checking.fence import Fence
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.reading.forked import Begin, Job
from batchline.bench.statuses import FAILED, UNSUPPORTED, WRONG, NotMeasured
from batchline.kernels.op import Audit, Op, Scenario, Tensors, Variant

_RAISED = (Exception, SystemExit)
_OP_FUNCTIONS = (
    "inputs",
    "reference",
    "tolerance",
    "flops",
    "least_bytes",
    "describe",
    "dtypes",
)
_OUTPUT = re.compile(r"\w+\[")
_FEW = 8  # names, which are all told


@dataclass(frozen=True)
class Request:
    """The problems to look at: those of all scenarios in these `dtypes` at these
    `batches`, or those named.

    `details`: also those scenarios that fill in a range. A problem of more than so many
    `flops` or `bytes` is left out. `problems`: (op, scenario, dtype, batch) each.
    `configs`: also the configurations of each tunable variant on each. `variants`: the
    only ones that are read, as op/variant, and of ops only theirs; None reads all.
    """

    dtypes: Sequence[str] = ()
    batches: Sequence[int] = ()
    details: bool = False
    flops: float = float("inf")
    bytes: float = float("inf")
    problems: Sequence[Sequence] | None = None
    configs: bool = False
    variants: Sequence[str] | None = None

    def reads_op(self, name: str) -> bool:
        """Whether an op is read."""
        return self.variants is None or any(
            one.partition("/")[0] == name for one in self.variants
        )

    def reads_variant(self, op: str, name: str) -> bool:
        """Whether a variant is read."""
        return self.variants is None or f"{op}/{name}" in self.variants


def op_job(name: str, file: str, request: Request, fence: Fence) -> Job:
    """Reads an op: what it declares, with its problems and those that are over the
    limits.
    """

    def work(begin: Begin) -> Iterator[dict]:
        begin("importing it")
        fence.accept()
        op = _op(name)
        _require_unchanged(fence)
        _require_op(op)
        problems, left_out = [], []
        for scenario, dtype, batch in _problems(op, request):
            begin(f"the problem {scenario} at B={batch}")
            one = _problem(op, scenario, dtype, batch)
            is_over = one["flops"] > request.flops or one["least_bytes"] > request.bytes
            (left_out if is_over else problems).append(one)
        yield _declared_op(op) | {"problems": problems, "left_out": left_out}

    return Job(file, work)


def variant_job(
    op_name: str,
    name: str,
    file: str,
    problems: Sequence[Mapping],
    configs: bool,
    fence: Fence,
) -> Job:
    """Reads a variant: what it declares, then why it does not take each problem, and
    its configurations there.
    """

    def work(begin: Begin) -> Iterator[dict]:
        begin("importing it")
        op = _op(op_name)
        fence.accept()
        fence.keep_ops()
        variant = _variant(op, name)
        _require_unchanged(fence)
        _require_variant(variant)
        yield _declared_variant(variant)
        refusals, configurations = [], []
        for problem in problems:
            begin(f"supports on {problem['scenario']} at B={problem['batch']}")
            inputs = op.make_inputs(
                problem["scenario"], problem["batch"], problem["dtype"], "meta"
            )
            refusals.append(_refusal(variant, inputs))
            takes_it = variant.tunable and not refusals[-1]
            configurations.append(
                _configs(variant, inputs) if configs and takes_it else []
            )
        yield {"refusals": refusals, "configs": configurations}

    return Job(file, work)


def _op(name: str) -> Op:
    op = getattr(_imported(f"batchline.kernels.{name}"), name, None)
    if not isinstance(op, Op):
        raise NotMeasured(
            FAILED,
            f"it makes no Op called {name} (a folder that is no op begins with _)",
        )
    return op


def _variant(op: Op, name: str) -> Variant:
    if name in _modules(op):
        _imported(
            f"{op.package}.{name}"
        )  # for the error itself, which op.variants keeps for its first call
    variant = op.variants[name]
    if name in _modules(op) and variant.function.__module__ != f"{op.package}.{name}":
        raise NotMeasured(
            FAILED,
            "it registers no variant (the name of a file that is none begins with _)",
        )
    return variant


def _imported(module: str):
    try:
        return importlib.import_module(module)
    except _RAISED as error:
        refusal = refusal_of(error)
        raise NotMeasured(
            refusal.status, f"it does not load: {refusal.reason}"
        ) from error


def _require_unchanged(fence: Fence) -> None:
    """Raise NotMeasured if what was just imported has left the process otherwise than
    it was.
    """
    try:
        fence.look(None)
    except Tampered as tampered:
        raise NotMeasured(
            WRONG, f"when it is imported, {tampered.reason}"
        ) from tampered


def _modules(op: Op) -> list[str]:
    """The names of the files in an op's folder that should be variants, whatever they
    are called.
    """
    folders = sys.modules[op.package].__path__
    return [
        module.name
        for module in pkgutil.iter_modules(folders)
        if not module.name.startswith("_")
    ]


def _require_op(op: Op) -> None:
    for field in _OP_FUNCTIONS:
        _require(
            callable(getattr(op, field)),
            f"{field}={getattr(op, field)!r} is no function",
        )
    _require(op.scenarios, "scenarios: there are none")
    for scenario in op.scenarios.values():
        _require_scenario(scenario)
    _require(
        op.baseline in op.variants,
        f"baseline={op.baseline!r} names no variant{_meant(op.baseline, op.variants)}",
    )
    _require_example(op, op.example)


def _require_scenario(scenario: Scenario) -> None:
    _require(
        _is_name(scenario.name),
        f"scenarios: {scenario.name!r} can't be part of a case id: only ASCII letters, "
        "digits and _ can",
    )
    for dtype in scenario.dtypes:
        _require(
            isinstance(getattr(torch, dtype, None), torch.dtype),
            f"scenarios: {scenario.name}: {dtype!r} is no dtype of torch",
        )


def _require_example(op: Op, example: tuple[str, int]) -> None:
    scenario, batch = example
    _require(
        scenario in op.scenarios,
        f"example={example!r} names no scenario{_meant(scenario, op.scenarios)}",
    )
    _require(
        isinstance(batch, int) and batch > 0, f"example={example!r} has no batch size"
    )


def _require_variant(variant: Variant) -> None:
    op = variant.op
    others = [name for name in op.variants if name != variant.name]
    _require(
        variant.builds_on is None or variant.builds_on in others,
        f"builds_on={variant.builds_on!r} names no other variant of {op.name}{_meant(variant.builds_on, others)}",
    )
    for field in ("supports", "tolerance"):
        value = getattr(variant, field)
        _require(value is None or callable(value), f"{field}={value!r} is no function")
    _require_example(op, variant.example)
    if variant.gives is not None:
        most = _outputs(op) or variant.gives
        _require(
            isinstance(variant.gives, int) and 1 <= variant.gives <= most,
            f"gives={variant.gives!r} is no number of outputs of {op.signature}",
        )


def _require(holds: object, line: str) -> None:
    if not holds:
        raise NotMeasured(FAILED, line)


def _is_name(name: str) -> bool:
    return name.isascii() and name.isidentifier()


def _meant(name: object, names: Sequence[str] | Mapping[str, object]) -> str:
    """What may have been meant, or all that there is where that is little to say."""
    if close := difflib.get_close_matches(str(name), list(names), n=1):
        return f": did you mean {close[0]!r}?"
    return f" (there is {', '.join(names)})" if 0 < len(names) < _FEW else ""


def _outputs(op: Op) -> int | None:
    """How many outputs the op's signature shows; None where it is not that plain."""
    right = op.signature.partition("→")[2]
    return None if "…" in right else len(_OUTPUT.findall(right)) or None


def _declared_op(op: Op) -> dict:
    scenarios = [
        {
            "name": scenario.name,
            "title": scenario.title,
            "sizes": dict(scenario.sizes),
            "dtypes": list(scenario.dtypes),
            "detail": bool(scenario.detail),
        }
        for scenario in op.scenarios.values()
    ]
    return {
        "folder": str(op.folder),
        "signature": op.signature,
        "baseline": op.baseline,
        "scenarios": scenarios,
        "audit": _declared_audit(op.audit) if op.conditions else None,
        "variants": list(op.variants),
        "misnamed": [name for name in _modules(op) if not _is_name(name)],
    }


def _declared_audit(audit: Audit) -> dict:
    return {
        "errors": list(audit.names),
        "controls": {control.name: control.dtypes for control in audit.controls},
    }


def _declared_variant(variant: Variant) -> dict:
    return {
        "backend": variant.backend,
        "dtypes": variant.dtypes,
        "needs": variant.needs,
        "builds_on": variant.builds_on,
        "example": variant.example,
        "tunable": variant.tunable is not None,
        "own_tolerance": variant.tolerance is not None,
        "slow_start": bool(variant.slow_start),
        "detail": bool(variant.detail),
        "gives": variant.gives,
        "idea": variant.idea,
    }


def _problems(op: Op, request: Request) -> Iterator[tuple[str, str, int]]:
    """(scenario, dtype, batch) of each that is asked for."""
    if request.problems is not None:
        asked = (problem for name, *problem in request.problems if name == op.name)
        yield from (tuple(problem) for problem in asked if problem[0] in op.scenarios)
        return
    for scenario in op.scenarios.values():
        if request.details or not scenario.detail:
            for dtype in filter(scenario.dtypes.__contains__, request.dtypes):
                yield from ((scenario.name, dtype, batch) for batch in request.batches)


def _problem(op: Op, scenario: str, dtype: str, batch: int) -> dict:
    where = f"on {scenario} at B={batch} in {dtype}"
    inputs = _asked(
        "inputs", where, lambda: op.make_inputs(scenario, batch, dtype, "meta")
    )
    traits, sizes = _asked("describe", where, lambda: op.describe(*inputs))
    return {
        "scenario": scenario,
        "dtype": dtype,
        "batch": batch,
        "traits": str(traits),
        "sizes": list(map(int, sizes)),
        "flops": _asked("flops", where, lambda: float(op.flops(*inputs))),
        "least_bytes": _asked(
            "least_bytes", where, lambda: float(op.least_bytes(*inputs))
        ),
    }


def _asked(field: str, where: str, function: Callable[[], object]):
    """What an op's function returns."""
    try:
        return function()
    except _RAISED as error:
        refusal = refusal_of(error)
        raise NotMeasured(
            refusal.status, f"{field} {where}: {refusal.reason}"
        ) from error


def _refusal(variant: Variant, inputs: Tensors) -> tuple[str, str] | None:
    try:
        why = variant.why_unsupported(*inputs)
    except _RAISED as error:
        refusal = refusal_of(error)
        return refusal.status, f"supports raised {refusal.reason}"
    return (UNSUPPORTED, str(why)) if why else None


def _configs(variant: Variant, inputs: Tensors) -> list[dict]:
    """The variant's configurations on these inputs, the rule's first."""
    rule = dict(variant.tunable.rule(*inputs))
    return [
        rule,
        *(
            dict(one)
            for one in variant.tunable.candidates(*inputs)
            if dict(one) != rule
        ),
    ]
