"""How large the rounding errors of a sum typically are: they grow as the root of its
terms, the worst as their number.

N. J. Higham and T. Mary, A new approach to probabilistic rounding error analysis, SIAM
J. Sci. Comput. 41(5), 2019. A bound for the worst case is so wide for a deep sum that
inputs rounded to bf16 stay inside; what is typical is not. It takes the errors for
independent: those of thousands of equal terms are not, and may be larger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from batchline.kernels.elements import unit_roundoff

_TENSOR_CORE_STEP = 8  # products that a tensor core adds before it cuts off the sum: 8 on sm_80, 16 and more on sm_90


@dataclass(frozen=True)
class Typical:
    """What the root mean square of one output's errors may be, elementwise: a share of
    its tolerance, and of its value.

    `of_tolerance` scales Op.tolerance, and `of_value` the magnitude of the exact
    result.
    """

    of_tolerance: float
    of_value: float


def sum_in_any_order(
    terms: int, accumulator: torch.dtype, output: torch.dtype, truncated: bool = False
) -> Typical:
    """Of a sum of `terms` whose tolerance is about (terms + 1)·u of their magnitudes, u
    of the accumulator.

    (2 + √terms/4)·u of the magnitudes and (√terms·u + u_out) of the sum. One running
    sum of numbers of one sign reaches a third of that. `truncated`: tensor cores may
    add, which round towards zero; the bias of that is at most one u of the magnitudes
    for each step of theirs.
    """
    steps = 2 + math.sqrt(terms) / 4 + (terms / _TENSOR_CORE_STEP if truncated else 0)
    rounding = math.sqrt(terms) * unit_roundoff(accumulator) + unit_roundoff(output)
    return Typical(min(1.0, steps / (terms + 1)), rounding)


def sum_in_blocks(terms: int, accumulator: torch.dtype) -> Typical:
    """Of a sum of `terms` whose tolerance is (2√terms + 64)·u of their magnitudes
    (kernels.statistics.summed).

    (2 + √terms/64)·u of the magnitudes and (16 + √terms/16)·u of the sum. One running
    sum of up to 1,000 numbers of one sign stays inside.
    """
    root = math.sqrt(terms)
    return Typical(
        (2 + root / 64) / (2 * root + 64), (16 + root / 16) * unit_roundoff(accumulator)
    )
