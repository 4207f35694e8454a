"""Gradient reduction of several parameters: g_1[B,P_1], …, g_k[B,P_k] → their means
ḡ_1[P_1], …, ḡ_k[P_k].

What `grad_reduce` is for each of them, in g's dtype; here the cost of a launch for each
is part of the problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from batchline.kernels import digits, grad_reduce
from batchline.kernels.draw import Draw, with_infinities, with_nan
from batchline.kernels.op import (
    Calls,
    Op,
    Problems,
    Reference,
    Scenario,
    Tensors,
    Work,
)
from batchline.kernels.rounding import Typical


@dataclass(frozen=True)
class ParametersScenario(Scenario):
    """sizes has each parameter's number of elements, in order. `real` takes the digits
    MLP's own gradients.
    """

    real: bool = False


_DIGITS = {
    "w1": digits.PIXELS * digits.HIDDEN,
    "b1": digits.HIDDEN,
    "w2": digits.HIDDEN * digits.CLASSES,
    "b2": digits.CLASSES,
}
_WIDTH = 768  # GPT-2 small's
_BLOCK = {
    "ln_1.weight": _WIDTH,
    "ln_1.bias": _WIDTH,
    "attn.c_attn.weight": _WIDTH * 3 * _WIDTH,
    "attn.c_attn.bias": 3 * _WIDTH,
    "attn.c_proj.weight": _WIDTH * _WIDTH,
    "attn.c_proj.bias": _WIDTH,
    "ln_2.weight": _WIDTH,
    "ln_2.bias": _WIDTH,
    "mlp.c_fc.weight": _WIDTH * 4 * _WIDTH,
    "mlp.c_fc.bias": 4 * _WIDTH,
    "mlp.c_proj.weight": 4 * _WIDTH * _WIDTH,
    "mlp.c_proj.bias": _WIDTH,
}
_LAYER_NORMS = [f"h.{layer}.ln_{norm}" for layer in range(12) for norm in (1, 2)] + [
    "ln_f"
]

SCENARIOS = (
    ParametersScenario(
        "digits",
        "real: the digits MLP's four parameters, columns of one tensor of 9,610",
        _DIGITS,
        real=True,
    ),
    ParametersScenario(
        "gpt2_block", "the 12 parameters of one GPT-2 small block", _BLOCK
    ),
    ParametersScenario(
        "layer_norms",
        "weights and biases of GPT-2 small's 25 layer norms",
        {
            f"{norm}.{part}": _WIDTH
            for norm in _LAYER_NORMS
            for part in ("weight", "bias")
        },
    ),
)


def inputs(
    scenario: ParametersScenario, batch: int, dtype: torch.dtype, device: str, seed: int
) -> Tensors:
    """g_i[B,P_i]: real ones as windows of one tensor, or a common direction plus unit
    noise a sample, each dense.
    """
    if scenario.real:
        return digits.per_sample_gradients(batch, dtype, device, seed).split(
            list(scenario.sizes.values()), dim=1
        )
    draw = Draw(dtype, device, seed)
    return tuple(
        draw.normal(batch, size).add_(draw.normal(size, scale=0.1))
        for size in scenario.sizes.values()
    )


def reference(*gs: torch.Tensor) -> Tensors:
    """ḡ_i[P_i] in fp64. B = 0 gives NaN."""
    return tuple(map(grad_reduce.reference, gs))


def tolerance(expected: Tensors | torch.Tensor, *gs: torch.Tensor) -> Tensors:
    """For each of them what `grad_reduce` allows. A lone mean may come bare."""
    means = expected if isinstance(expected, tuple) else (expected,)
    return tuple(map(grad_reduce.tolerance, means, gs))


def typical(*gs: torch.Tensor) -> tuple[Typical, ...]:
    """For each of them what `grad_reduce` says."""
    return tuple(one for g in gs for one in grad_reduce.typical(g))


def flops(*gs: torch.Tensor) -> int:
    """B·ΣP: the additions, and the division."""
    return sum(map(grad_reduce.flops, gs))


def least_bytes(*gs: torch.Tensor) -> int:
    """Each g read once, each ḡ written once."""
    return sum(map(grad_reduce.least_bytes, gs))


def _probe(batch, *sizes):
    def make(dtype, device, seed):
        draw = Draw(dtype, device, seed)
        return tuple(draw.uniform(batch, size) for size in sizes)

    return make


def _windows(dtype, device, seed):
    """Columns of every second row of one tensor, two of them overlapping and one seen
    twice.
    """
    whole = Draw(dtype, device, seed).uniform(14, 190)[::2]
    return (
        whole[:, 3:77],
        whole[:, 70:71],
        whole[:, 64:128],
        whole[:, 100::3],
        whole[:, 3:77],
    )


def _transposed(dtype, device, seed):
    """Samples along memory's fast dimension."""
    draw = Draw(dtype, device, seed)
    return tuple(draw.uniform(size, 9).T for size in (67, 1, 32))


def _repeated(dtype, device, seed):
    """Batches of one gradient (stride 0 over the batch), of one number a sample, and of
    a single number.
    """
    draw = Draw(dtype, device, seed)
    return (
        draw.uniform(1, 70).expand(5, -1),
        draw.uniform(5, 1).expand(-1, 33),
        draw.uniform(1, 1).expand(5, 16),
    )


def _layouts(dtype, device, seed):
    """A layout of its own for each: dense and divisible, dense and not, a window,
    transposed, repeated, empty.
    """
    draw = Draw(dtype, device, seed)
    return (
        draw.uniform(6, 64),
        draw.uniform(6, 67),
        draw.uniform(6, 64)[:, 16:48],
        draw.uniform(6, 65)[:, 1:],
        draw.uniform(40, 6).T,
        draw.uniform(1, 48).expand(6, -1),
        draw.uniform(6, 0),
    )


def _large(dtype, device, seed):
    """All of one sign and near the top of the dtype's range (of fp32's over B, for
    those as wide as it).
    """
    draw, top = Draw(dtype, device, seed), min(
        torch.finfo(dtype).max, torch.finfo(torch.float32).max / 64
    )
    return tuple(
        draw.uniform(33, size, scale=top / 4).add_(top / 2) for size in (130, 5, 64)
    )


def _spoiled(spoil):
    """Numbers that are not finite, in the first and the last: they belong in their
    parameters' means, and nowhere else.
    """

    def make(dtype, device, seed):
        draw = Draw(dtype, device, seed)
        return (
            spoil(draw.uniform(5, 67)),
            draw.uniform(5, 16),
            spoil(draw.uniform(5, 33)),
        )

    return make


def _subnormal(dtype, device, seed):
    """Eight samples, so that the means are rounded once."""
    draw = Draw(dtype, device, seed)
    return draw.subnormal(8, 35), draw.subnormal(8, 64), draw.subnormal(8, 1)


# The last ones are too large for an interpreter to walk.
PROBES = {
    "ragged": _probe(7, 141, 1, 17, 66),
    "aligned": _probe(6, 144, 16, 64),
    "one_tensor": _probe(9, 131),
    "one_sample": _probe(1, 19, 1, 128),
    "many_tiny": _probe(3, *(1 + number % 5 for number in range(70))),
    "some_empty": _probe(5, 0, 7, 0, 0, 19, 0),
    "all_empty": _probe(4, 0, 0),
    "empty_batch": _probe(0, 9, 1, 130),
    "tall": _probe(131, 3, 40, 1),
    "windows": _windows,
    "transposed": _transposed,
    "repeated": _repeated,
    "layouts": _layouts,
    "large": _large,
    "nan": _spoiled(with_nan),
    "infinite": _spoiled(with_infinities),
    "subnormal": _subnormal,
    "blocks": _probe(13, 5037, 64, 2049),
    "tiny_and_large": _probe(6, 5, 200_003, 768, 1),
    "deep": _probe(5003, 517, 3),
}

grad_reduce_multi = Op(
    __name__,
    signature="g_1[B,P_1], …, g_k[B,P_k] → ḡ_1[P_1], …, ḡ_k[P_k]",
    problems=Problems(SCENARIOS, inputs, PROBES, example=("gpt2_block", 64)),
    reference=Reference(reference, tolerance, typical),
    work=Work(flops, least_bytes),
    calls=Calls("torch_loop"),
)
