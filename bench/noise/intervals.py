"""Confidence intervals: of a mean, of a ratio of two means (Fieller), and what skewness
does to both (Hall).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both of them in it; either may be infinite."""

    low: float
    high: float

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def to_json(self) -> dict:
        """{"low", "high"}, None for an infinity, which JSON has no word for."""
        return {
            "low": self.low if math.isfinite(self.low) else None,
            "high": self.high if math.isfinite(self.high) else None,
        }

    @classmethod
    def from_json(cls, ends: dict) -> Interval:
        return cls(
            -math.inf if ends["low"] is None else ends["low"],
            math.inf if ends["high"] is None else ends["high"],
        )


@dataclass(frozen=True)
class Means:
    """Two means that were estimated together: their values, the variance of each, and
    their covariance.
    """

    top: float
    bottom: float
    top_variance: float
    covariance: float
    bottom_variance: float

    @classmethod
    def of(cls, means: Sequence[float], covariance: np.ndarray) -> Means:
        """Of (top, bottom) and the covariance[2,2] of these means."""
        (top_variance, shared), (_, bottom_variance) = np.asarray(covariance).tolist()
        return cls(
            float(means[0]), float(means[1]), top_variance, shared, bottom_variance
        )


@dataclass(frozen=True)
class Quantiles:
    """Between which (estimate − truth)/(standard error) lies with the confidence that
    was asked for; low < 0 < high.
    """

    low: float
    high: float


def student_t(confidence: float, degrees: float) -> Quantiles:
    """Student's t with so many degrees of freedom.

    Raises:
        ValueError: for a confidence that is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(
            f"a confidence is between 0 and 1, and this one is {confidence}"
        )
    from scipy.special import stdtrit  # 0.3 s, which a loop that only imports is spared

    quantile = float(stdtrit(degrees, (1 + confidence) / 2))
    return Quantiles(-quantile, quantile)


def skewed(quantiles: Quantiles, skewness: float) -> Quantiles:
    """These quantiles for a mean whose own skewness is k (that of n values is √n times
    as large).

    (estimate − truth)/(standard error) is skewed the other way, and twice as much. Hall
    1992, On the removal of skewness by transformation: of t + k·t²/3 + k²·t³/27 + k/6
    next to nothing is left; that is inverted here.
    """
    k, ends = skewness, []
    for quantile in (quantiles.low, quantiles.high):
        shifted = quantile - k / 6
        root = np.cbrt(1 + k * shifted)
        ends.append(
            float(shifted * (3 / (root * root + root + 1)))
        )  # 3/k · (root − 1), where k is next to nothing too
    return Quantiles(*ends)


def around(mean: float, variance: float, quantiles: Quantiles) -> Interval:
    """The interval of a mean whose own variance is `variance` (s²/n, not s²)."""
    error = math.sqrt(variance)
    return Interval(mean - quantiles.high * error, mean - quantiles.low * error)


def fieller(means: Means, quantiles: Quantiles) -> Interval:
    """The ratios R = top/bottom ≥ 0 that the means don't refute: low ≤ (top −
    R·bottom)/√Var(top − R·bottom) ≤ high.

    Each end is a root of a·R² − 2b·R + c = 0 with a = bottom² − q²·Var bottom, b =
    top·bottom − q²·Cov and c = top² − q²·Var top, q the quantile of that side (Fieller
    1954, Some problems in interval estimation). Where `bottom` may be 0 (a ≤ 0) there
    is no upper end; where `top` may be (c ≤ 0) the lower one is 0. Both means estimate
    what can't be negative: a `bottom` that is surely below 0 refutes every ratio, which
    is to say none.
    """
    return Interval(_low(means, quantiles.high), _high(means, quantiles.low))


def _low(means: Means, quantile: float) -> float:
    a, b, c = _quadratic(means, quantile)
    if c <= 0 or means.top < 0 or (a > 0 and means.bottom < 0):
        return 0.0
    root = math.sqrt(max(b * b - a * c, 0.0))  # below 0 only by rounding
    if b >= 0:
        return c / (b + root) if b + root else 0.0
    return (b - root) / a if a else 0.0


def _high(means: Means, quantile: float) -> float:
    a, b, c = _quadratic(means, quantile)
    if a <= 0 or means.bottom < 0:
        return math.inf
    return max((b + math.sqrt(max(b * b - a * c, 0.0))) / a, 0.0)


def _quadratic(means: Means, quantile: float) -> tuple[float, float, float]:
    square = quantile**2
    return (
        means.bottom**2 - square * means.bottom_variance,
        means.top * means.bottom - square * means.covariance,
        means.top**2 - square * means.top_variance,
    )
