"""Gradient reduction: g[B,P] → the mean gradient ḡ[P], accumulated in fp32 or wider, in
g's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from batchline.kernels import digits
from batchline.kernels.draw import Draw, with_infinities, with_nan
from batchline.kernels.elements import (
    distinct_bytes,
    mean_over_batch,
    subnormal_step,
    unit_roundoff,
)
from batchline.kernels.op import Calls, Op, Problems, Reference, Scenario, Work
from batchline.kernels.rounding import Typical, sum_in_any_order


@dataclass(frozen=True)
class GradientScenario(Scenario):
    """sizes has P, the parameters. `real` takes the digits MLP's own per-sample
    gradients.
    """

    real: bool = False


SCENARIOS = (
    GradientScenario(
        "digits",
        "real: per-sample gradients of the digits MLP, all its 9,610 parameters",
        {"P": digits.PARAMETERS},
        real=True,
    ),
    GradientScenario(
        "layer_norm", "weight and bias of one GPT-2 small layer norm", {"P": 1536}
    ),
    GradientScenario("linear_512", "one 512x512 linear layer", {"P": 512 * 512}),
    GradientScenario(
        "odd_100003",
        "a prime number of parameters: no vector width divides a row",
        {"P": 100_003},
    ),
    GradientScenario(
        "transformer_block", "one whole GPT-2 small block", {"P": 7_087_872}
    ),
)


def inputs(
    scenario: GradientScenario, batch: int, dtype: torch.dtype, device: str, seed: int
):
    """g[B,P]: real, or a common direction plus unit noise a sample, as gradients early
    in training look.
    """
    if scenario.real:
        return (digits.per_sample_gradients(batch, dtype, device, seed),)
    draw = Draw(dtype, device, seed)
    return (
        draw.normal(batch, scenario.sizes["P"]).add_(
            draw.normal(scenario.sizes["P"], scale=0.1)
        ),
    )


def reference(g: torch.Tensor) -> torch.Tensor:
    """ḡ[P] in fp64. B = 0 gives NaN, as torch.mean does: nothing has no mean."""
    return mean_over_batch(g)


def tolerance(mean: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """|ḡ − mean| that fp32 accumulation in any order can give, elementwise:
    (B+2)·u₃₂·mean|g| + u_out·|mean|.

    Higham, Accuracy and Stability of Numerical Algorithms (2nd ed.), §4.2: B − 1
    additions, then 1/B and its product.
    """
    accumulator = torch.float64 if g.dtype == torch.float64 else torch.float32
    growth = (g.shape[0] + 2) * unit_roundoff(accumulator)
    magnitudes = mean_over_batch(g, torch.abs)
    return 1.01 * (
        growth * magnitudes + unit_roundoff(g.dtype) * mean.abs()
    ) + subnormal_step(g.dtype)


def typical(g: torch.Tensor) -> tuple[Typical]:
    """Of sums of B numbers, and the rounding to g's dtype."""
    accumulator = torch.float64 if g.dtype == torch.float64 else torch.float32
    return (sum_in_any_order(len(g), accumulator, g.dtype),)


def flops(g: torch.Tensor) -> int:
    """B·P: the additions, and the division."""
    return g.numel()


def least_bytes(g: torch.Tensor) -> int:
    """g read once, ḡ written once."""
    return distinct_bytes(g) + g.shape[1] * g.element_size()


def _probe(batch, parameters, scale=1.0):
    def make(dtype, device, seed):
        return (Draw(dtype, device, seed).uniform(batch, parameters, scale=scale),)

    return make


def _sliced(dtype, device, seed):
    """Every second sample, an inner window of the parameters."""
    return (Draw(dtype, device, seed).uniform(14, 90)[::2, 3:77],)


def _transposed(dtype, device, seed):
    """Samples along memory's fast dimension."""
    return (Draw(dtype, device, seed).uniform(67, 9).T,)


def _repeated(dtype, device, seed):
    """One gradient seen as a batch of five (stride 0)."""
    return (Draw(dtype, device, seed).uniform(1, 70).expand(5, -1),)


def _large(dtype, device, seed):
    """All of one sign and near the top of the dtype's range (of fp32's over B, for
    those as wide as it).
    """
    top = min(torch.finfo(dtype).max, torch.finfo(torch.float32).max / 64)
    return (Draw(dtype, device, seed).uniform(33, 130, scale=top / 4).add_(top / 2),)


def _spoiled(spoil):
    """Numbers that are not finite: they belong in their parameters' means, and nowhere
    else.
    """

    def make(dtype, device, seed):
        return (spoil(Draw(dtype, device, seed).uniform(9, 131)),)

    return make


def _subnormal(dtype, device, seed):
    """Eight samples, so that the mean is rounded once."""
    return (Draw(dtype, device, seed).subnormal(8, 75),)


# The last ones are too large for an interpreter to walk.
PROBES = {
    "ragged": _probe(7, 261),
    "one_sample": _probe(1, 19),
    "one_parameter": _probe(37, 1),
    "tall": _probe(67, 3),
    "sliced": _sliced,
    "transposed": _transposed,
    "repeated": _repeated,
    "large": _large,
    "nan": _spoiled(with_nan),
    "infinite": _spoiled(with_infinities),
    "subnormal": _subnormal,
    "empty_batch": _probe(0, 9),
    "empty_parameters": _probe(4, 0),
    "blocks": _probe(13, 5037),
    "wide": _probe(5, 1_000_003),
    "deep": _probe(5003, 517),
}

grad_reduce = Op(
    __name__,
    signature="g[B,P] → ḡ[P]",
    problems=Problems(SCENARIOS, inputs, PROBES, example=("linear_512", 64)),
    reference=Reference(reference, tolerance, typical),
    work=Work(flops, least_bytes),
    calls=Calls("torch_mean"),
)
