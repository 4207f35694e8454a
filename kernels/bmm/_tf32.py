"""How far from exact a product of tf32 numbers may be: 10 bits behind the first, of each
factor.
"""

from __future__ import annotations

import torch

from batchline.kernels.bmm import bmm, reference

# Of |a||b|: each factor is off by 2⁻¹⁰ of itself at most, where its low 13 bits are cut
# off, and by half of that where they are rounded. 2⁻²⁰ is both factors' errors together.
LEFT_OUT = 2 * 2.0**-10 + 2.0**-20
SMALLEST_NORMAL = 2.0**-126  # of tf32 as of fp32


def tf32_tolerance(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The op's bound for C[B,M,N], wider by what tf32 cuts off: 2⁻⁹ + 2⁻²⁰ of |A||B|.

    And by what underflows: a factor, or a product, below 2⁻¹²⁶ may count as zero.
    """
    magnitudes = a.abs(), b[:1].abs().expand_as(b) if b.stride(0) == 0 else b.abs()
    rows = magnitudes[0].sum(2, dtype=torch.float64)
    columns = magnitudes[1].sum(1, dtype=torch.float64)
    flushed = rows[:, :, None] + columns[:, None, :] + a.shape[2]
    return bmm.tolerance(c, a, b) + 1.01 * (
        LEFT_OUT * reference(*magnitudes) + SMALLEST_NORMAL * flushed
    )
