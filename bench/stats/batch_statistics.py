"""M = ‖ḡ‖², n_b = ‖g_b‖² and d_b = g_b·ḡ of one batch, and tests of whether the batch
is large enough for its mean gradient to be followed.

Each test estimates the variance of some part of ḡ over ‖ḡ‖², by the samples of the
batch itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

_ROUNDING = 1e-3  # of √(n̄·M), far above what half precision leaves of M, far below what a wrong 1/B does to it


@dataclass(frozen=True, eq=False)
class BatchStatistics:
    """M = ‖ḡ‖², n[B] = ‖g_b‖² and d[B] = g_b·ḡ of one batch, in float64; ḡ is the mean
    of the g_b.

    Raises:
        ValueError: of fewer than two samples, n and d of unequal lengths, a NaN or an
            infinity, a negative square, or an M that is not the mean of d: then ḡ is
            not the mean of these gradients, mostly for a 1/B too many.
    """

    mean_square: float
    squared_norms: np.ndarray
    inner_products: np.ndarray

    def __post_init__(self):
        n, d = (
            np.array(values, dtype=np.float64)
            for values in (self.squared_norms, self.inner_products)
        )
        square = float(self.mean_square)
        for name, value in (
            ("mean_square", square),
            ("squared_norms", n),
            ("inner_products", d),
        ):
            object.__setattr__(self, name, value)
        if n.ndim != 1 or n.shape != d.shape:
            raise ValueError(
                f"n and d have an entry a sample, and these have shapes {n.shape} and {d.shape}"
            )
        if len(n) < 2:
            raise ValueError(
                f"a noise scale needs two samples or more, and this batch has {len(n)}"
            )
        require_squares("‖g‖²", n)
        require_squares("‖ḡ‖²", np.array([square]))
        if bad := int(np.sum(~np.isfinite(d))):
            raise ValueError(
                f"g·ḡ of the gradients is NaN or infinite in {bad} of {len(d)}"
            )
        slack = _ROUNDING * math.sqrt(n.mean() * square)
        if abs(square - d.mean()) > slack or square > n.mean() + slack:
            raise ValueError(
                f"ḡ is not the mean of these gradients: ‖ḡ‖² is {square:.4g}, the mean of g·ḡ is "
                f"{d.mean():.4g} and that of ‖g‖² is {n.mean():.4g} (look for a loss that is already "
                "divided by B, or is summed)"
            )

    @property
    def batch(self) -> int:
        return len(self.squared_norms)

    def __add__(self, other: BatchStatistics) -> BatchStatistics:
        """Of two groups of parameters, as two layers, of the same samples in the same
        order: M, n and d add up.
        """
        if self.batch != other.batch:
            raise ValueError(
                f"layers are added over the same samples: these have {self.batch} and {other.batch}"
            )
        return BatchStatistics(
            self.mean_square + other.mean_square,
            self.squared_norms + other.squared_norms,
            self.inner_products + other.inner_products,
        )


def require_squares(name: str, squares: np.ndarray) -> None:
    for what, bad in (
        ("NaN or infinite", ~np.isfinite(squares)),
        ("negative, so rounding went too far,", squares < 0),
    ):
        if bad.any():
            raise ValueError(
                f"{name} of the gradients is {what} in {bad.sum()} of {bad.size}"
            )


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
    batch = statistics.batch
    square = statistics.mean_square
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
    batch = statistics.batch
    square = statistics.mean_square
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
    batch = statistics.batch
    square = statistics.mean_square
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
