"""Numerics audit: how far each way of computing an op is from fp64, on the op's
conditions.

Beside the variants stand the op's controls (kernels.definition.Control), ways that
people write and that are none of this suite's. `jobs` and `row` take declarations
alone; the rest runs what is audited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from batchline import kernels
from batchline.bench import texts
from batchline.bench.declared import Declared, DeclaredAudit
from batchline.bench.measure.checking.check import as_tuple
from batchline.kernels import backends
from batchline.kernels.op import Control, Tensors, Variant

DTYPES = ("float32", "bfloat16")
_RAISED = (Exception, SystemExit)


@dataclass(frozen=True)
class Subject:
    """What a row is of: an op's variant ("ours" or a "peer") or a negative "control",
    its dtypes (None is all), and the names of the op's errors.
    """

    op: str
    variant: str
    whose: str
    dtypes: Sequence[str] | None
    errors: Sequence[str]


def subjects(
    variants: Sequence[Variant | Declared], audits: Mapping[str, DeclaredAudit]
) -> list[Subject]:
    """What there is to audit: the variants of these ops, then the negative controls of
    each op that has one of the variants.
    """
    audited = [
        _subject(variant, audits[variant.folder.name])
        for variant in variants
        if variant.folder.name in audits
    ]
    ops = dict.fromkeys(subject.op for subject in audited)
    return [
        *audited,
        *(subject for op in ops for subject in _controls_of(op, audits[op])),
    ]


def _subject(variant: Variant | Declared, audit: DeclaredAudit) -> Subject:
    whose = "peer" if variant.backend in backends.PEERS else "ours"
    op = variant.folder.name
    return Subject(op, variant.name, whose, variant.dtypes, audit.errors)


def _controls_of(op: str, audit: DeclaredAudit) -> Iterator[Subject]:
    for name, dtypes in audit.controls.items():
        yield Subject(op, name, "control", dtypes, audit.errors)


def jobs(
    variants: Sequence[Variant | Declared], audits: Mapping[str, DeclaredAudit]
) -> list[tuple[Subject, str]]:
    """(subject, dtype) of each audit; `audits` has the ops that declare conditions."""
    return [
        (subject, dtype)
        for subject in subjects(variants, audits)
        for dtype in DTYPES
        if subject.dtypes is None or dtype in subject.dtypes
    ]


def row(subject: Subject, dtype: str, **facts) -> dict:
    """What every row of an audit has."""
    return {
        "op": subject.op,
        "variant": subject.variant,
        "dtype": dtype,
        "whose": subject.whose,
        "condition": None,
        **dict.fromkeys(subject.errors),
        "failed": None,
        "impossible": False,
        "not_run": None,
        **facts,
    }


def controls(op: str) -> dict[str, Variant]:
    """The op's negative controls by name: variants that are not registered, so nothing
    times or ranks them.
    """
    the_op = kernels.ops[op]
    return {
        control.name: Variant(
            the_op,
            control.function,
            "torch",
            dtypes=control.dtypes,
            needs=control.needs,
            gives=control.gives,
        )
        for control in the_op.audit.controls
    }


def audit(
    variant: Variant,
    dtype: str,
    device: str,
    tell: Callable[[str], None] = lambda condition: None,
    require_device: Callable[[BaseException], None] = lambda error: None,
) -> list[dict]:
    """One row for each of the op's conditions that the variant supports and the dtype
    can hold.

    The errors are the op's (kernels.definition.Audit), None for what the variant does
    not give. `failed` says what disqualifies a row: what no rounding can explain or a
    NaN where the reference has none (both are `impossible` too), an infinity, or what
    was raised. Nothing is clamped. A variant that can't run here has one row, with why
    it is `not_run`.

    Args:
        tell: told each condition's name before it.
        require_device: called with what the variant raised, to raise if the device is
        lost.
    """
    op = variant.op
    control = {one.function: one for one in op.audit.controls}.get(variant.function)
    whose = "peer" if variant.backend in backends.PEERS else "ours"
    subject = Subject(
        op.name,
        variant.name,
        "control" if control else whose,
        variant.dtypes,
        op.audit.names,
    )
    why_not = variant.why_not_here(device, dtype)
    if why_not:
        return [row(subject, dtype, not_run=why_not)]
    rows = []
    for condition, make_inputs in op.conditions.items():
        inputs = make_inputs(getattr(torch, dtype), device, 0)
        if variant.why_unsupported(*inputs) or not all(map(_fits, inputs)):
            continue
        tell(condition)
        try:
            facts = _compare(variant, inputs, control)
        except _RAISED as error:
            require_device(error)
            facts = {"failed": texts.error_line(error)}
        rows.append(row(subject, dtype, condition=condition, **facts))
    return rows


def _fits(tensor: torch.Tensor) -> bool:
    """Whether the dtype could hold the condition's magnitudes: neither infinite, nor
    all zero.
    """
    return bool(tensor.isfinite().all() and tensor.any())


def _compare(variant: Variant, inputs: Tensors, control: Control | None) -> dict:
    """The errors of what the variant returns, and what disqualifies it."""
    audit = variant.op.audit
    expected = _in_fp64(variant.op.reference(*inputs))
    returned = _in_fp64(variant(*inputs))
    outputs = returned[: variant.gives]
    if failure := _not_finite(audit.names, outputs):
        return failure
    if control and control.errors:
        errors = control.errors(returned, expected)
    else:
        errors = audit.errors_of(outputs, expected)
    facts = {name: one if math.isfinite(one) else None for name, one in errors.items()}
    infinite = [name.replace("_", " ") for name, one in facts.items() if one is None]
    if why := audit.why_impossible(outputs):
        return facts | {"failed": why, "impossible": True}
    return facts | ({"failed": f"the {infinite[0]} is infinite"} if infinite else {})


def _in_fp64(outputs: torch.Tensor | Tensors) -> Tensors:
    return tuple(tensor.double() for tensor in as_tuple(outputs))


def _not_finite(names: Sequence[str], outputs: Tensors) -> dict:
    """Why a row fails whose outputs have NaN or an infinity; {} if none has."""
    for name, output in zip(names, outputs):
        if count := int(output.isnan().sum()):
            failed = f"{name} is NaN in {count} of {output.numel()}"
            return {"failed": failed, "impossible": True}
        if count := int(output.isinf().sum()):
            return {"failed": f"{name} is infinite in {count} of {output.numel()}"}
    return {}
