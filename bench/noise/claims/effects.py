"""Sizes of effects with their 95% intervals: means over seeds, slopes, ratios and
shares.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import betaincinv, stdtrit

_CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Effect:
    """An estimate and its 95% interval, whose ends are infinite where it has none."""

    value: float
    low: float
    high: float

    def words(self, show: str = "{:.3g}", unit: str = "") -> str:
        """ "1.2 (0.9 to 1.5)", each number by `show`, `unit` behind it."""
        number, low, high = (
            show.format(value) + unit for value in (self.value, self.low, self.high)
        )
        return (
            f"{number} ({low} to {high})"
            if math.isfinite(self.low + self.high)
            else f"{number} (no interval)"
        )

    def exp(self) -> Effect:
        """e to its power: an effect on a logarithm as a factor."""
        return Effect(*(math.exp(value) for value in (self.value, self.low, self.high)))

    def scaled(self, factor: float) -> Effect:
        """The effect times a factor, its ends in order."""
        return Effect(
            self.value * factor, *sorted((self.low * factor, self.high * factor))
        )


def mean(values: Sequence[float]) -> Effect:
    """The mean with Student's t interval, which takes the values for independent; of
    one value it is infinite.

    Raises:
        statistics.StatisticsError: of no values.
    """
    centre = statistics.fmean(values)
    if len(values) < 2:
        return Effect(centre, -math.inf, math.inf)
    return _student_t(
        centre, statistics.variance(values) / len(values), len(values) - 1
    )


def geometric_mean(values: Sequence[float]) -> Effect:
    """The geometric mean of positive values, with Student's t interval of their
    logarithms.
    """
    return mean([math.log(value) for value in values]).exp()


def paired_ratio(
    first: Mapping[int, float], second: Mapping[int, float]
) -> Effect | None:
    """The mean factor from `first` to `second`, positive values by seed, over the seeds
    that both have; else None.
    """
    shared = sorted(set(first) & set(second))
    return (
        geometric_mean([second[seed] / first[seed] for seed in shared])
        if shared
        else None
    )


def slope_by_seed(curves: Mapping[float, Mapping[int, float]]) -> Effect | None:
    """The mean over seeds of each seed's slope of y over x, from {x: {seed: y}}; None
    where no seed has two x.

    A seed's points share its first model and may all be high or low together, so the
    seeds are what is independent.
    """
    seeds = sorted({seed for values in curves.values() for seed in values})
    slopes = []
    for seed in seeds:
        pairs = [(x, values[seed]) for x, values in curves.items() if seed in values]
        if len(pairs) > 1:
            slopes.append(statistics.linear_regression(*zip(*pairs)).slope)
    return mean(slopes) if slopes else None


def slope(x: Sequence[float], y: Sequence[float]) -> Effect:
    """The slope of the least-squares line with its t interval; infinite from two
    points.

    Raises:
        ValueError: of fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ValueError(f"a slope needs two different x, and got {sorted(set(x))}")
    slope_, intercept = statistics.linear_regression(x, y)
    if len(x) == 2:
        return Effect(slope_, -math.inf, math.inf)
    residuals = math.fsum((b - intercept - slope_ * a) ** 2 for a, b in zip(x, y))
    spread = statistics.pvariance(x) * len(x)
    return _student_t(slope_, residuals / (len(x) - 2) / spread, len(x) - 2)


def _student_t(value: float, variance: float, degrees: int) -> Effect:
    """The interval of an estimate whose own variance was estimated with so many degrees
    of freedom.
    """
    half = float(stdtrit(degrees, (1 + _CONFIDENCE) / 2)) * variance**0.5
    return Effect(value, value - half, value + half)


def median_ratio(
    first: Sequence[float], second: Sequence[float], seed: int = 0
) -> Effect:
    """The second's median over the first's, positive values, with a percentile
    bootstrap interval.

    It takes timings for independent; in a machine that drifts it is too narrow.
    """
    random = np.random.default_rng(seed)
    draws = [
        np.median(random.choice(values, (_RESAMPLES, len(values))), axis=1)
        for values in (first, second)
    ]
    low, high = np.quantile(
        draws[1] / draws[0], [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2]
    )
    return Effect(
        statistics.median(second) / statistics.median(first), float(low), float(high)
    )


def share(count: int, of: int) -> Effect:
    """A share with the exact interval of Clopper and Pearson 1934."""
    miss = (1 - _CONFIDENCE) / 2
    return Effect(
        count / of,
        float(betaincinv(count, of - count + 1, miss)) if count else 0.0,
        float(betaincinv(count + 1, of - count, 1 - miss)) if count < of else 1.0,
    )


def fisher_exact(count: int, of: int, other_count: int, other_of: int) -> float:
    """The two-sided p of Fisher's exact test that two shares are one: tables no
    likelier than this one count.
    """
    total, successes = of + other_of, count + other_count
    ways = [
        math.comb(of, k) * math.comb(other_of, successes - k)
        for k in range(max(0, successes - other_of), min(of, successes) + 1)
    ]
    this = math.comb(of, count) * math.comb(other_of, other_count)
    return sum(way for way in ways if way <= this) / math.comb(total, successes)
