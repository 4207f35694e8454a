"""What the ops of gradient statistics share: the dtype of {ḡ, n, d}, the errors that
are allowed, and the errors that are compared.

Of per-sample gradients g_b these are the mean ḡ, the squared norms n_b = ‖g_b‖² and the
inner products d_b = g_b·ḡ. All three are fp32 (fp64 for fp64 inputs) whatever the
inputs are: a noise scale is a difference of them.
"""

from __future__ import annotations

import math

import torch

from batchline.kernels.definition import Tensors
from batchline.kernels.elements import unit_roundoff


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: in what a statistic is summed and returned."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def summed(terms: int, dtype: torch.dtype) -> float:
    """The relative error allowed to a sum of `terms`: (2√terms + 64)·u of their
    magnitudes.

    What two levels of blocks give in any order within them (Castaldo, Whaley and
    Chronopoulos, Reducing floating point error in dot product using the superblock
    family of algorithms, SIAM J. Sci. Comput. 31(2), 2008): no element passes through
    more than 2√terms additions. One running sum of a million terms may miss it.
    """
    return (2 * math.sqrt(terms) + 64) * unit_roundoff(accumulator(dtype))


def summed_in_any_order(terms: int, dtype: torch.dtype) -> float:
    """The largest relative error that a sum of `terms` can have: (terms + 1)·u of their
    magnitudes.

    Higham, Accuracy and Stability of Numerical Algorithms (2nd ed.), §4.2; the last one
    is a product's own.
    """
    return (terms + 1) * unit_roundoff(accumulator(dtype))


def of_nothing(parameters: tuple[int, ...], dtype: torch.dtype, device: torch.device):
    """{ḡ, n, d} of an empty batch: the mean of nothing is NaN, as torch.mean has it."""
    out = accumulator(dtype)
    empty = torch.empty(0, dtype=out, device=device)
    return (
        torch.full(parameters, float("nan"), dtype=out, device=device),
        empty,
        empty.clone(),
    )


def without_elements(g: torch.Tensor) -> Tensors:
    """{ḡ, n, d} of g[B,P] where the batch is empty or there are no parameters."""
    if len(g) == 0:
        return of_nothing(g.shape[1:], g.dtype, g.device)
    zeros = torch.zeros((2, len(g)), dtype=accumulator(g.dtype), device=g.device)
    return torch.empty(0, dtype=accumulator(g.dtype), device=g.device), *zeros


NAMES = ("mean", "n", "d", "noise_scale")  # of the errors of {ḡ, n, d}


def errors(
    outputs: Tensors, expected: Tensors, noise_scale: float | None = None
) -> dict[str, float]:
    """How far as many of {ḡ, n, d} as there are lie from the expected ones.

    ‖Δḡ‖/‖ḡ‖, max |Δn_b|/n_b, max |Δd_b|/(‖g_b‖·‖ḡ‖), and |ΔB|/|B| of the simple noise
    scale. The last is of ḡ and n, or of `noise_scale` where that is given.
    """
    mean, n, _ = expected
    norm = mean.norm()
    off = [
        (outputs[0] - mean).norm(),
        *(a - b for a, b in zip(outputs[1:], expected[1:])),
    ]
    by_name = {
        name: float((difference.abs() / unit).max())
        for name, difference, unit in zip(NAMES, off, (norm, n, n.sqrt() * norm))
    }
    if noise_scale is None and len(outputs) > 1:
        noise_scale = _noise_scale(*outputs[:2])
    if noise_scale is not None:
        exact = _noise_scale(mean, n)
        by_name["noise_scale"] = abs(noise_scale - exact) / abs(exact)
    return by_name


def why_impossible(outputs: Tensors) -> str | None:
    """Which squared norms are negative, or None."""
    if len(outputs) < 2 or not (below := int((outputs[1] < 0).sum())):
        return None
    return f"n is negative in {below} of {len(outputs[1])}"


def _noise_scale(mean: torch.Tensor, n: torch.Tensor) -> float:
    """The simple noise scale tr Σ/‖G‖² from ‖ḡ‖² and the n_b of B samples: McCandlish
    et al. 2018, appendix A, with batch sizes 1 and B.
    """
    batch, square, mean_n = len(n), float(mean.square().sum()), float(n.mean())
    trace = (mean_n - square) * batch / (batch - 1)
    signal = (batch * square - mean_n) / (batch - 1)
    return trace / signal if signal else trace * math.inf
