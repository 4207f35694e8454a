"""Numerics audit: how far each way of computing {ḡ, n, d} is from fp64, on an op's
conditions.

Beside the variants stand CONTROLS, ways that people write and that are none of this
suite's. `jobs` and `row` take declarations alone; the rest runs what is audited.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch

from batchline import kernels
from batchline.bench.declared import Declared
from batchline.bench.measure import outcome
from batchline.bench.stats.noise_scale import NoiseScale, noise_scale
from batchline.kernels import backends, precision
from batchline.kernels.op import Tensors, Variant

DTYPES = ("float32", "bfloat16")
ERRORS = ("mean", "n", "d", "noise_scale")
_RAISED = (Exception, SystemExit)


def gram_in_own_dtype(x, dy):
    """Ghost norms whose two Grams are rounded to the inputs' dtype; their products are
    summed in fp32.
    """
    n = (torch.bmm(x, x.mT).float() * torch.bmm(dy, dy.mT)).sum((1, 2))
    return _mean_gradient(x, dy), n


def gradients_in_own_dtype(x, dy):
    """Per-sample gradients kept in the inputs' dtype, and then the usual passes in
    fp32.
    """
    g = torch.bmm(dy.mT, x).flatten(1).float()
    mean = g.mean(0)
    return mean.view(dy.shape[2], x.shape[2]), g.square().sum(1), g @ mean


def tf32_products(x, dy):
    """Per-sample gradients by tf32 tensor cores, which round the inputs to 11 bits."""
    with precision.tf32_products():
        return gradients_in_own_dtype(x, dy)


def mean_of_squares(g):
    """ḡ and tr Σ = Σ_p (E[g_p²] − ḡ_p²) in fp32, as BackPACK has its variance: a
    difference, element by element.
    """
    g = g.float()
    mean = g.mean(0)
    return mean, (g.square().mean(0) - mean.square()).sum()


def _mean_gradient(x, dy):
    return dy.flatten(0, 1).float().T @ x.flatten(0, 1).float() / len(x)


CONTROLS: dict[str, tuple[Callable, ...]] = {
    "grad_stats": (mean_of_squares,),
    "wgrad_stats": (gram_in_own_dtype, gradients_in_own_dtype, tf32_products),
}
_DECLARED: dict[Callable, dict] = {
    mean_of_squares: {"dtypes": DTYPES, "gives": 1},
    gram_in_own_dtype: {"dtypes": ("bfloat16",), "gives": 2},
    gradients_in_own_dtype: {"dtypes": ("bfloat16",)},
    tf32_products: {"dtypes": ("float32",), "needs": "cuda"},
}


@dataclass(frozen=True)
class Subject:
    """Whom a row is of: an op's variant ("ours" or a "peer") or a negative "control",
    and its dtypes (None is all).
    """

    op: str
    variant: str
    whose: str
    dtypes: Sequence[str] | None


def subjects(
    variants: Sequence[Variant | Declared], ops: Collection[str]
) -> list[Subject]:
    """What there is to audit: those of the variants that are of these ops, and the
    negative controls of their ops.
    """
    audited = [_subject(variant) for variant in variants if variant.folder.name in ops]
    found = dict.fromkeys(subject.op for subject in audited)
    return [
        *audited,
        *(
            Subject(op, function.__name__, "control", _DECLARED[function]["dtypes"])
            for op in found
            for function in CONTROLS.get(op, ())
        ),
    ]


def jobs(
    variants: Sequence[Variant | Declared], ops: Collection[str]
) -> list[tuple[Subject, str]]:
    """(subject, dtype) of each audit; `ops` are those that have conditions."""
    return [
        (subject, dtype)
        for subject in subjects(variants, ops)
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
        **dict.fromkeys(ERRORS),
        "failed": None,
        "impossible": False,
        "not_run": None,
        **facts,
    }


def controls(op: str) -> dict[str, Variant]:
    """The op's negative controls by name: variants that are not registered, so nothing
    times or ranks them.
    """
    return {
        function.__name__: Variant(
            kernels.ops[op], function, "torch", **_DECLARED[function]
        )
        for function in CONTROLS.get(op, ())
    }


def _subject(variant: Variant | Declared) -> Subject:
    op = variant.folder.name
    if variant.name in {function.__name__ for function in CONTROLS.get(op, ())}:
        return Subject(op, variant.name, "control", variant.dtypes)
    return Subject(
        op,
        variant.name,
        "peer" if variant.backend in backends.PEERS else "ours",
        variant.dtypes,
    )


def audit(
    variant: Variant,
    dtype: str,
    device: str,
    tell: Callable[[str], None] = lambda condition: None,
    require_device: Callable[[BaseException], None] = lambda error: None,
) -> list[dict]:
    """A row for each of the op's conditions that the variant supports and the dtype can
    hold.

    `mean` is ‖Δḡ‖/‖ḡ‖, `n` max |Δn_b|/n_b, `d` max |Δd_b|/(‖g_b‖·‖ḡ‖) and `noise_scale`
    |ΔB|/|B| of the simple noise scale; None of what it does not give. `failed` says
    what disqualifies a row: a squared norm below zero or a NaN where the reference has
    none (both are `impossible` too), an infinity, or what was raised. Nothing is
    clamped. What can't run here has one row, with why it is `not_run`.

    Args:
        tell: told each condition's name before it.
        require_device: called with what the variant raised, to raise if the device is
        lost.
    """
    subject = _subject(variant)
    why_not = variant.why_not_here(device, dtype)
    if why_not:
        return [row(subject, dtype, not_run=why_not)]
    rows = []
    for condition, make_inputs in variant.op.conditions.items():
        inputs = make_inputs(getattr(torch, dtype), device, 0)
        if variant.why_unsupported(*inputs) or not all(
            _held(tensor) for tensor in inputs
        ):
            continue
        tell(condition)
        try:
            found = _compared(variant, inputs)
        except _RAISED as error:
            require_device(error)
            found = {"failed": outcome.one_line(error)}
        rows.append(row(subject, dtype, condition=condition, **found))
    return rows


def _held(tensor: torch.Tensor) -> bool:
    """Whether the dtype could hold the condition's magnitudes: neither infinite, nor
    all zero.
    """
    return bool(tensor.isfinite().all() and tensor.any())


def _compared(variant: Variant, inputs: Tensors) -> dict:
    expected = [tensor.double() for tensor in variant.op.reference(*inputs)]
    returned = variant(*inputs)
    returned = [
        tensor.double()
        for tensor in (returned if isinstance(returned, tuple) else (returned,))
    ]
    outputs = returned[: variant.gives]
    for name, output in zip(ERRORS, outputs):
        if bad := int(output.isnan().sum()):
            return {
                "failed": f"{name} is NaN in {bad} of {output.numel()}",
                "impossible": True,
            }
        if bad := int(output.isinf().sum()):
            return {"failed": f"{name} is infinite in {bad} of {output.numel()}"}
    (mean, n, _), norm = expected, expected[0].norm()
    off = (outputs[0] - mean).norm(), *(
        output - right for output, right in zip(outputs[1:], expected[1:])
    )
    found = {
        name: float((difference.abs() / unit).max())
        for name, difference, unit in zip(ERRORS, off, (norm, n, n.sqrt() * norm))
    }
    if len(outputs) > 1 and (below := int((outputs[1] < 0).sum())):
        found |= {"failed": f"n is negative in {below} of {len(n)}", "impossible": True}
    if len(returned) < 2:
        return found
    right = _noise_scale(mean, n).simple
    given = (
        _noise_scale(*outputs[:2])
        if len(outputs) > 1
        else _from_variance(*returned, batch=len(n))
    )
    error = abs(given.simple - right) / abs(right)
    return found | (
        {"noise_scale": error}
        if math.isfinite(error)
        else {"failed": "the noise scale is infinite"}
    )


def _noise_scale(mean: torch.Tensor, n: torch.Tensor) -> NoiseScale:
    return noise_scale(float(mean.square().sum()), n.tolist())


def _from_variance(
    mean: torch.Tensor, variance: torch.Tensor, batch: int
) -> NoiseScale:
    """The noise scale of ḡ and a variance over B, without Bessel's factor, that is
    summed over the parameters.
    """
    trace = float(variance) * batch / (batch - 1)
    return NoiseScale(trace, float(mean.square().sum()) - trace / batch)
