"""Gradient statistics: g[B,P] → the mean ḡ[P], squared norms n[B] = ‖g_b‖² and inner
products d[B] = g_b·ḡ.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from batchline.kernels.draw import Draw
from batchline.kernels.elements import (
    columns_in_fp64,
    distinct_bytes,
    mean_over_batch,
    subnormal_step,
    unit_roundoff,
)
from batchline.kernels.grad_reduce import PROBES as REDUCED
from batchline.kernels.grad_reduce import SCENARIOS, inputs
from batchline.kernels.grad_stats._controls import CONTROLS
from batchline.kernels.op import Audit, Calls, Op, Problems, Reference, Tensors, Work
from batchline.kernels.rounding import Typical, sum_in_blocks
from batchline.kernels.statistics import (
    NAMES,
    accumulator,
    errors,
    summed,
    why_impossible,
)


def reference(g: torch.Tensor) -> Tensors:
    """{ḡ, n, d} in fp64. B = 0 gives a mean of NaN and no norms."""
    mean = mean_over_batch(g)
    n = d = torch.zeros(len(g), dtype=torch.float64, device=g.device)
    for columns, chunk in columns_in_fp64(g):
        n = n + chunk.square().sum(1)
        d = d + chunk @ mean[columns]
    return mean, n, d


def tolerance(
    expected: Tensors,
    g: torch.Tensor,
    error_of_sum: Callable[[int, torch.dtype], float] = summed,
) -> Tensors:
    """How far each of {ḡ, n, d} may be off, with γ(k) = (2√k + 64)·u₃₂ for a blocked
    sum of k terms.

    ḡ: γ(B)·mean|g|. n_b: γ(P)·n_b. d_b: γ(P)·|g_b|·|ḡ|, and |g_b|·δ where δ is what ḡ
    may be off. `error_of_sum` takes γ's place over the parameters.
    """
    mean, n, _ = expected
    over_batch, over_parameters = summed(len(g), g.dtype), error_of_sum(
        g.shape[1], g.dtype
    )
    off = over_batch * mean_over_batch(g, torch.abs)
    d = torch.zeros_like(n)
    for columns, chunk in columns_in_fp64(g):
        d = d + chunk.abs() @ (over_parameters * mean[columns].abs() + off[columns])
    least = subnormal_step(accumulator(g.dtype))
    # A square under the normal numbers keeps a subnormal step, times the P of them.
    return (
        off + least + unit_roundoff(accumulator(g.dtype)) * mean.abs(),
        over_parameters * n + least * (g.shape[1] + 1),
        d + least * (g.shape[1] + 1),
    )


def typical(g: torch.Tensor) -> tuple[Typical, Typical, Typical]:
    """Of {ḡ, n, d}: n and d are sums over P, of squares and of products; ḡ's tolerance
    is narrow as it is.
    """
    over_parameters = sum_in_blocks(g.shape[1], accumulator(g.dtype))
    return Typical(of_tolerance=1.0, of_value=0.0), over_parameters, over_parameters


def flops(g: torch.Tensor) -> int:
    """5·B·P: an addition for ḡ, two operations each for n and d."""
    return 5 * g.numel()


def least_bytes(g: torch.Tensor) -> int:
    """g read once; ḡ, n and d written once."""
    return (
        distinct_bytes(g)
        + (g.shape[1] + 2 * g.shape[0]) * accumulator(g.dtype).itemsize
    )


def _large(dtype, device, seed):
    """Squares near the top of what n can hold."""
    scale = min(torch.finfo(dtype).max / 4, 5e17)
    return (Draw(dtype, device, seed).uniform(33, 130, scale=scale).add_(2 * scale),)


def _small(dtype, device, seed):
    """Squares near the smallest normal numbers of n, and in fp16 gradients near its
    own.
    """
    return (
        Draw(dtype, device, seed).uniform(
            9, 130, scale=max(1e-17, 4 * torch.finfo(dtype).smallest_normal)
        ),
    )


def _equal(dtype, device, seed):
    """A batch of one gradient in memory of its own: n = d = ‖ḡ‖², no noise at all."""
    return (Draw(dtype, device, seed).uniform(1, 301).repeat(70, 1),)


def _mean_over_noise(dtype, device, seed):
    """A mean 300 times its noise: a variant that returns n as a variance is wrong here."""
    return (Draw(dtype, device, seed).uniform(12, 700).add_(300),)


PROBES = {
    **REDUCED,
    "large": _large,
    "small": _small,
    "equal_samples": _equal,
    "mean_over_noise": _mean_over_noise,
}


def _condition(mean=1.0, noise=1.0, parameters=4096, scale=1.0):
    """64 gradients mean·v + noise·e_b, v and e_b normal, times scale; drawn in fp32,
    and rounded.
    """

    def make(dtype, device, seed):
        draw = Draw(torch.float32, device, seed)
        g = draw.normal(1, parameters, scale=mean) + draw.normal(
            64, parameters, scale=noise
        )
        return (g.mul_(scale).to(dtype),)

    return make


CONDITIONS = {
    "well": _condition(),
    "mean_over_noise": _condition(mean=1e3),  # mean²/variance = 1e6
    "mean_under_noise": _condition(mean=1e-3),
    "tiny": _condition(scale=1e-20),  # squares under the normal numbers of fp32
    "huge": _condition(
        scale=1e18, parameters=32
    ),  # with a few times as many n is no fp32 number
}

grad_stats = Op(
    __name__,
    signature="g[B,P] → ḡ[P], n[B] = ‖g_b‖², d[B] = g_b·ḡ",
    problems=Problems(SCENARIOS, inputs, PROBES, example=("linear_512", 64)),
    reference=Reference(
        reference,
        tolerance,
        typical,
        dtypes=lambda g: accumulator(g.dtype),
        rows=(1,),
    ),
    work=Work(flops, least_bytes),
    calls=Calls("torch_passes"),
    audit=Audit(CONDITIONS, NAMES, errors, why_impossible, CONTROLS),
)
