"""What the ops of gradient statistics share: {ḡ, n, d}, in which dtype, and how far
from exact they may be.

Of per-sample gradients g_b these are the mean ḡ, the squared norms n_b = ‖g_b‖² and the
inner products d_b = g_b·ḡ. All three are fp32 (fp64 for fp64 inputs) whatever the
inputs are: a noise scale is a difference of them.
"""

from __future__ import annotations

import math

import torch

from batchline.kernels.elements import unit_roundoff


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, else float32: in what a statistic is summed and returned."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def summed(terms: int, dtype: torch.dtype) -> float:
    """The relative error allowed to a sum of so many terms: (2√terms + 64)·u of their
    magnitudes.

    What two levels of blocks give in any order within them (Castaldo, Whaley and
    Chronopoulos, Reducing floating point error in dot product using the superblock
    family of algorithms, SIAM J. Sci. Comput. 31(2), 2008): no element passes through
    more than 2√terms additions. One running sum of a million terms may miss it.
    """
    return (2 * math.sqrt(terms) + 64) * unit_roundoff(accumulator(dtype))


def summed_in_any_order(terms: int, dtype: torch.dtype) -> float:
    """The relative error that a sum of so many terms can have at worst: (terms + 1)·u
    of their magnitudes.

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
