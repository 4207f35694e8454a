"""Tests of whether a batch is large enough for its mean gradient to be followed, from
{M, n, d} of the batch.

Each estimates the variance of some part of ḡ over ‖ḡ‖², by the samples of the batch
itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from batchline.bench.noise.estimators import BatchStatistics


@dataclass(frozen=True)
class BatchTest:
    """The `value` of a test at this batch: a variance over ‖ḡ‖², infinite where ‖ḡ‖² is
    0. It falls as 1/batch.
    """

    name: str
    value: float
    batch: int

    def passes(self, theta: float) -> bool:
        """Whether the value is at most θ², so that the batch is large enough."""
        return self.value <= _square(theta)

    def asks_for(self, theta: float) -> float:
        """The batch, not rounded, at which the value would be θ²; infinite where no
        batch would do.
        """
        return self.value * self.batch / _square(theta)


def norm_test(statistics: BatchStatistics) -> BatchTest:
    """Var ḡ/‖ḡ‖² = (Σn − B·M)/((B−1)·B·M), of Byrd, Chin, Nocedal and Wu 2012, Sample
    size selection.
    """
    batch, square = statistics.batch, statistics.mean_square
    return _test(
        "norm",
        np.sum(statistics.squared_norms) - batch * square,
        (batch - 1) * batch * square,
        batch,
    )


def inner_product_test(statistics: BatchStatistics) -> BatchTest:
    """The part of it along ḡ: (Σd² − B·M²)/((B−1)·B·M²), of Bollapragada, Byrd and
    Nocedal 2018, arXiv:1710.11258.
    """
    batch, square = statistics.batch, statistics.mean_square
    return _test(
        "inner product",
        np.sum(statistics.inner_products**2) - batch * square**2,
        (batch - 1) * batch * square**2,
        batch,
    )


def orthogonality_test(statistics: BatchStatistics) -> BatchTest:
    """The part of it across ḡ: (Σn − Σd²/M)/((B−1)·B·M), of the same paper, where θ is
    called ν.
    """
    batch, square = statistics.batch, statistics.mean_square
    along = np.sum(statistics.inner_products**2) / square if square else 0.0
    return _test(
        "orthogonality",
        np.sum(statistics.squared_norms) - along,
        (batch - 1) * batch * square,
        batch,
    )


def _test(name: str, above: float, below: float, batch: int) -> BatchTest:
    return BatchTest(name, float(above / below) if below else math.inf, batch)


def _square(theta: float) -> float:
    if not theta > 0:
        raise ValueError(
            f"the θ of a test of the batch is above 0, and this one is {theta}"
        )
    return theta**2
