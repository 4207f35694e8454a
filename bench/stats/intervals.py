"""Intervals, and the estimates that have one.

An `Interval` has two ends; an `Estimate` is a number with its 95% interval. There are
intervals of a mean (Student), of a ratio of two means (Fieller), of either under
skewness (Hall), of a slope, of a share (Clopper and Pearson) and of a median (order
statistics).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# With fewer samples the smallest and the largest do not enclose the median with 95%
# confidence (1 - 2/2⁶).
LEAST_SAMPLES = 6
_CONFIDENCE = 0.95
_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both of them in it; either may be infinite."""

    low: float
    high: float

    @property
    def bounded(self) -> bool:
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __iter__(self) -> Iterator[float]:
        """The two ends, so that `low, high = interval`."""
        return iter((self.low, self.high))

    def meets(self, other: Interval) -> bool:
        """Whether the two have a number in common."""
        return self.low <= other.high and other.low <= self.high

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
    from scipy.special import stdtrit

    quantile = float(stdtrit(degrees, (1 + confidence) / 2))
    return Quantiles(-quantile, quantile)


def skewed(quantiles: Quantiles, skewness: float) -> Quantiles:
    """These quantiles for a mean whose own skewness is k (that of n values is √n times
    as large).

    (estimate − truth)/(standard error) is skewed the other way, and twice as much. Hall
    1992, On the removal of skewness by transformation: of t + k·t²/3 + k²·t³/27 + k/6
    next to nothing is left; that is inverted here.
    """
    return Quantiles(
        skewed_quantile(quantiles.low, skewness),
        skewed_quantile(quantiles.high, skewness),
    )


def skewed_quantile(quantile: float, skewness: float) -> float:
    """One of `skewed`."""
    shifted = quantile - skewness / 6
    root = math.cbrt(1 + skewness * shifted)
    return shifted * (
        3 / (root * root + root + 1)
    )  # 3/k · (root − 1), where k is 0 too


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


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% interval, whose ends are infinite where it has none."""

    value: float
    interval: Interval

    @classmethod
    def of(cls, value: float, low: float, high: float) -> Estimate:
        return cls(value, Interval(low, high))

    @property
    def low(self) -> float:
        return self.interval.low

    @property
    def high(self) -> float:
        return self.interval.high

    def text(self, number: str = "{:.3g}", unit: str = "") -> str:
        """ "1.2 (0.9 to 1.5)", each number formatted by `number` and followed by `unit`."""
        value, low, high = (
            number.format(one) + unit for one in (self.value, self.low, self.high)
        )
        if not self.interval.bounded:
            return f"{value} (no interval)"
        return f"{value} ({low} to {high})"

    def exp(self) -> Estimate:
        """e to its power: a difference of logarithms as a factor."""
        return Estimate.of(
            *(math.exp(one) for one in (self.value, self.low, self.high))
        )

    def scaled(self, factor: float) -> Estimate:
        """The estimate times a factor, the ends of its interval in order."""
        ends = sorted((self.low * factor, self.high * factor))
        return Estimate(self.value * factor, Interval(*ends))

    def inverse(self) -> Estimate:
        """One over a positive estimate."""
        return Estimate.of(1 / self.value, 1 / self.high, 1 / self.low)


def mean(values: Sequence[float]) -> Estimate:
    """The mean with Student's t interval, which takes the values for independent; of
    one value it is infinite.

    Raises:
        statistics.StatisticsError: of no values.
    """
    centre = statistics.fmean(values)
    if len(values) < 2:
        return Estimate.of(centre, -math.inf, math.inf)
    return _of_student_t(
        centre, statistics.variance(values) / len(values), len(values) - 1
    )


def geometric_mean(values: Sequence[float]) -> Estimate:
    """The geometric mean of positive values, with Student's t interval of their
    logarithms.
    """
    return mean([math.log(value) for value in values]).exp()


def paired_ratio(
    first: Mapping[int, float], second: Mapping[int, float]
) -> Estimate | None:
    """The mean factor from `first` to `second`, positive values by seed, over the seeds
    that both have; else None.
    """
    shared = sorted(set(first) & set(second))
    return (
        geometric_mean([second[seed] / first[seed] for seed in shared])
        if shared
        else None
    )


def slope_by_seed(curves: Mapping[float, Mapping[int, float]]) -> Estimate | None:
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


def slope(x: Sequence[float], y: Sequence[float]) -> Estimate:
    """The slope of the least-squares line with its t interval; infinite from two
    points.

    Raises:
        ValueError: of fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ValueError(f"a slope needs two different x, and got {sorted(set(x))}")
    slope_, intercept = statistics.linear_regression(x, y)
    if len(x) == 2:
        return Estimate.of(slope_, -math.inf, math.inf)
    residuals = math.fsum((b - intercept - slope_ * a) ** 2 for a, b in zip(x, y))
    spread = statistics.pvariance(x) * len(x)
    return _of_student_t(slope_, residuals / (len(x) - 2) / spread, len(x) - 2)


def _of_student_t(value: float, variance: float, degrees: int) -> Estimate:
    """The interval of an estimate whose own variance was estimated with so many degrees
    of freedom.
    """
    half = student_t(_CONFIDENCE, degrees).high * variance**0.5
    return Estimate.of(value, value - half, value + half)


def median_ratio(
    first: Sequence[float], second: Sequence[float], seed: int = 0
) -> Estimate:
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
    return Estimate.of(
        statistics.median(second) / statistics.median(first), float(low), float(high)
    )


def share(count: int, of: int) -> Estimate:
    """A share with the exact interval of Clopper and Pearson 1934."""
    from scipy.special import betaincinv

    miss = (1 - _CONFIDENCE) / 2
    return Estimate.of(
        count / of,
        float(betaincinv(count, of - count + 1, miss)) if count else 0.0,
        float(betaincinv(count + 1, of - count, 1 - miss)) if count < of else 1.0,
    )


def fisher_exact(count: int, of: int, other_count: int, other_of: int) -> float:
    """The two-sided p of Fisher's exact test that two shares are one: tables no
    likelier than this one count.
    """
    total = of + other_of
    successes = count + other_count
    ways = [
        math.comb(of, k) * math.comb(other_of, successes - k)
        for k in range(max(0, successes - other_of), min(of, successes) + 1)
    ]
    this = math.comb(of, count) * math.comb(other_of, other_count)
    return sum(way for way in ways if way <= this) / math.comb(total, successes)


def median_precision(samples: Sequence[float], confidence: float = 0.95) -> float:
    """Half the width of the median's interval, as a share of the median; infinite where
    the samples are too few, or 0.

    The interval's ends are the k-th smallest and the k-th largest sample, with k the
    largest for which the binomial probability that they miss the median is at most 1 -
    `confidence` (Hahn and Meeker, Statistical Intervals, §5.2). It takes the samples
    for independent: in a machine that drifts it is too narrow.
    """
    rank = _rank(len(samples), confidence)
    if not rank:
        return math.inf
    ordered = sorted(samples)
    half_width = (ordered[-rank] - ordered[rank - 1]) / 2
    median = statistics.median(ordered)
    return half_width / median if median else math.inf


@functools.lru_cache(maxsize=4096)
def _rank(count: int, confidence: float) -> int:
    """The largest k with P(Binomial(count, 1/2) < k) ≤ (1 - confidence)/2; 0 if there
    is none. In whole numbers.
    """
    part, whole = ((1 - confidence) / 2).as_integer_ratio()
    most = part << count
    ways = 1
    rank = 0
    below = 1  # of the 2^count outcomes so many have at most `rank` successes
    while below * whole <= most:
        rank += 1
        ways = ways * (count - rank + 1) // rank
        below += ways
    return rank
