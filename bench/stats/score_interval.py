"""The interval of B_simple from the samples of one batch: every ratio R that a score test
does not refute.

A ratio R says how the mean of ‖g_b‖² splits: ‖G‖² = ρ·n̄ and tr Σ = (1−ρ)·n̄, ρ = 1/(1+R).
So R is refuted where T = (G2 − ρ·n̄)/√Var is past its quantiles, and the variance is the one
that R itself implies. Taken from what G2 happened to be, as the jackknife does, it falls to 0
together with G2 where a few directions carry the noise, and then refutes the truth.

The variance of G2, a U-statistic, has two parts: 4·G'ΣG/B, and 2·tr Σ²/B² that stays where G
is 0. Of them {M, n, d} say this:
- λ = Var h/‖ḡ₋b‖², the variance along the mean gradient, stands for G'ΣG/‖G‖² and for
  tr Σ²/tr Σ. Var h is that of h_b = g_b·ḡ₋b, ḡ₋b the mean of the other samples
- Var n is 2·tr Σ² + 4·G'ΣG of a Gaussian and more of heavy tails: from it, no lower than
  λ·tr Σ, comes the tr Σ² of the low end, which must not be too high in any direction
T's quantiles are Student's t, corrected for the sampled skewness (Hall 1992) and, in the part of
G2, for that of a noncentral χ² (Wilson and Hilferty 1931).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

from batchline.bench.stats.intervals import (
    Interval,
    Quantiles,
    skewed_quantile,
    student_t,
)

# What n samples did not show: of the probability to miss, the high end spends this share, with a
# skewness that is so much larger and, of one sample, so much more than was seen.
UNSEEN_TAIL = 0.8
UNSEEN_FACTOR = 1.3
UNSEEN_SKEWNESS = 0.5
BARELY = 1.5  # a ‖G‖² that is so many times its quantile is no chance
_MOST_SKEWED = math.sqrt(8)  # χ² with one degree of freedom
_LOOKS = 8
_STEPS = 60
_EXACT = 1e-6  # of a standard error


def cautious(confidence: float) -> float:
    """The confidence whose quantiles leave room for a tail that was not seen."""
    return 1 - UNSEEN_TAIL * (1 - confidence)


def widened(quantiles: Quantiles, confidence: float) -> Quantiles:
    """Quantiles at a confidence, as they are about at the cautious one."""
    from scipy.special import ndtri

    factor = ndtri((1 + cautious(confidence)) / 2) / ndtri((1 + confidence) / 2)
    return Quantiles(factor * quantiles.low, factor * quantiles.high)


@dataclass(frozen=True)
class Moments:
    """What the test takes of a batch, in units of n̄: G2, S, and the central moments of h and n.

    `thirds` are Σh³, Σh²n, Σhn² and Σn³.
    """

    batch: int
    square: float
    trace: float
    of_h: float
    of_n: float
    shared: float
    thirds: tuple[float, float, float, float]

    @classmethod
    def of(cls, mean_square: float, n: np.ndarray, d: np.ndarray) -> Moments:
        """From M, n[B] and d[B] of three samples or more, whose n are not all 0."""
        batch = len(n)
        unit = float(n.mean())
        n = n / unit
        mean_square = float(mean_square) / unit
        h = (batch * d / unit - n) / (batch - 1)
        h = (h - h.mean()) * ((batch - 1) / (batch - 2))  # of the others' mean
        n = n - 1.0
        degrees = batch - 1
        return cls(
            batch,
            (batch * mean_square - 1) / degrees,
            (1 - mean_square) * batch / degrees,
            float(h @ h) / degrees,
            float(n @ n) / degrees,
            float(h @ n) / degrees,
            (float(h**2 @ h), float(h**2 @ n), float(h @ n**2), float(n**2 @ n)),
        )

    @functools.cached_property
    def along(self) -> float:
        """λ: the variance of one sample along the mean gradient of the others."""
        others = self.square + self.trace / (self.batch - 1)
        return self.of_h / others if others > 0 else 0.0

    def skewness(self, of_h: float, of_n: float) -> float:
        """Of the mean of of_h·h − of_n·n over the samples."""
        hhh, hhn, hnn, nnn = self.thirds
        third = (
            of_h**3 * hhh
            - 3 * of_h**2 * of_n * hhn
            + 3 * of_h * of_n**2 * hnn
            - of_n**3 * nnn
        )
        spread = self.variance(of_h, of_n) * (self.batch - 1)
        return third / spread**1.5 if spread > 0 else 0.0

    def variance(self, of_h: float, of_n: float) -> float:
        """Of of_h·h − of_n·n."""
        return max(
            of_h**2 * self.of_h - 2 * of_h * of_n * self.shared + of_n**2 * self.of_n,
            0.0,
        )


@dataclass(frozen=True)
class _Side:
    """One end: Student's t and the normal quantile there, both below 0 where G2 is too low for a
    share, and both above where it is too high.
    """

    student: float
    normal: float


@dataclass(frozen=True)
class ScoreTest:
    """Which shares ρ = ‖G‖²/E‖g‖² the moments of a batch refute.

    `whole` is whether n̄ counts as estimated, as it does for a ratio, or as known, which is for
    ‖G‖² alone.
    """

    moments: Moments
    too_low: _Side
    too_high: _Side
    whole: bool = True

    @classmethod
    def at(cls, confidence: float, moments: Moments, whole: bool = True) -> ScoreTest:
        from scipy.special import ndtri

        degrees = moments.batch - 1
        wide = cautious(confidence)
        return cls(
            moments,
            _Side(
                student_t(confidence, degrees).low, -float(ndtri((1 + confidence) / 2))
            ),
            _Side(student_t(wide, degrees).high, float(ndtri((1 + wide) / 2))),
            whole,
        )

    def interval(self) -> Interval:
        """The shares from 0 to 1 that are not refuted; all of them where G2 is so far below 0
        that it refutes each.
        """
        estimate = min(max(self.moments.square, 0.0), 1.0)
        low, high = 0.0, 1.0
        if estimate > 0 and self.excess(0.0, self.too_high) > 0:
            low = self._border(self.too_high, 0.0, estimate)
        if self.excess(estimate, self.too_low) > 0:
            return Interval(0.0, 1.0)
        if self.excess(1.0, self.too_low) > 0:
            high = self._border(self.too_low, 1.0, estimate)
        return Interval(low, high)

    def _border(self, side: _Side, refuted: float, held: float) -> float:
        """Where the test first stops refuting, from a share that it refutes towards one that it
        holds. With few samples it may do so more than once.
        """
        for share in np.linspace(refuted, held, _LOOKS + 1)[1:].tolist():
            if self.excess(share, side) <= 0:
                return self._crossing(side, refuted, share)
            refuted = share
        return held

    def _crossing(self, side: _Side, refuted: float, held: float) -> float:
        """By false position, a stuck end's excess halved (Illinois)."""
        above, below = self.excess(refuted, side), self.excess(held, side)
        share = held
        for _ in range(_STEPS):
            share = (refuted + held) / 2
            if math.isfinite(above - below):
                share = held - below * (refuted - held) / (above - below)
            excess = self.excess(share, side)
            if abs(excess) < _EXACT:
                return share
            if excess > 0:
                refuted, above, below = share, excess, below / 2
            else:
                held, below, above = share, excess, above / 2
        return share

    def barely(self) -> bool:
        """Whether a share of 0 is refuted by less than half its quantile more: of an R far above
        the batch, so few are refuted by chance, and the others not.
        """
        statistic, quantile = self.statistic(0.0, self.too_high)
        return quantile < statistic < BARELY * quantile

    def excess(self, share: float, side: _Side) -> float:
        """How far T is past its quantile on one side; at most 0 for a share that is not refuted
        there.
        """
        statistic, quantile = self.statistic(share, side)
        return (statistic - quantile) * math.copysign(1.0, side.student)

    def statistic(self, share: float, side: _Side) -> tuple[float, float]:
        """T at a share, infinite where nothing varies, and its quantile."""
        moments = self.moments
        of_square, skewness_of_square = self._of_square(share, side)
        of_h = 0.0
        if moments.of_h:
            of_h = math.sqrt(of_square * moments.batch / moments.of_h)
        of_n = share if self.whole else 0.0
        variance = moments.variance(of_h, of_n) / moments.batch
        off = moments.square - share
        if variance <= 0:
            return (math.copysign(math.inf, off) if off else 0.0), side.student
        skewness = moments.skewness(of_h, of_n)
        if side is self.too_high:
            skewness = _less(skewness, moments.batch)
        part = min(of_square / variance, 1.0)
        stretch = _stretch(side.normal, skewness_of_square * part**1.5)
        return off / math.sqrt(variance), stretch * skewed_quantile(
            side.student, skewness
        )

    def _of_square(self, share: float, side: _Side) -> tuple[float, float]:
        """The variance of G2 at a share, and its skewness as of a noncentral χ²."""
        moments = self.moments
        batch = moments.batch
        noise = self._noise(share, side)
        variance = 4 * moments.along * share / batch
        variance += 2 * noise / (batch * (batch - 1))
        if variance <= 0:
            return 0.0, 0.0
        third = 24 * moments.along**2 * share / batch**2
        if share < 1:
            third += 8 * noise**2 / (1 - share) / batch**3
        return variance, min(third / variance**1.5, _MOST_SKEWED)

    def _noise(self, share: float, side: _Side) -> float:
        """tr Σ² at a share: as along the mean gradient, or at the low end of B_simple as large as
        Var n allows; tr² Σ is the most that it can be.
        """
        moments = self.moments
        trace = 1 - share
        along = min(moments.along, trace) * trace
        if side is self.too_high:
            return along
        of_n = (moments.of_n - 4 * moments.along * share) / 2
        return min(max(of_n, along), trace**2)


def _less(skewness: float, samples: int) -> float:
    """The skewness of h less n, for a tail of n that is heavier than was seen."""
    return min(skewness, UNSEEN_FACTOR * skewness) - UNSEEN_SKEWNESS / samples**0.5


def _stretch(normal: float, skewness: float) -> float:
    """How many times the normal quantile that of a shifted χ² of a skewness is (Wilson and
    Hilferty 1931).
    """
    if skewness < 1e-6:
        return 1.0
    root = max(1 + skewness * normal / 6 - skewness**2 / 36, 0.0)
    return 2 / skewness * (root**3 - 1) / normal
