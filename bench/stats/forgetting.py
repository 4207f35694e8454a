"""A noise scale over the steps of a training run, whose older steps are forgotten."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from batchline.bench.stats.intervals import Interval, Means, student_t
from batchline.bench.stats.noise_scale import NoiseEstimate, NoiseScale, estimate

_LEAST_EFFECTIVE = 1.5  # steps: below, one of them is nearly all there is


def over_steps(
    scales: Sequence[NoiseScale],
    batches: Sequence[int],
    half_life: float,
    confidence: float = 0.95,
) -> NoiseEstimate:
    """The noise scale of independent steps, the oldest first: means of S and of G2 in
    which a step weighs its samples, halved with each `half_life` steps since; Fieller's
    interval.

    With weights a of sum 1, the variance of a mean is Σa²(x − x̄)²/(1 − Σa²), and its
    degrees of freedom are 1/Σa² − 1, Kish's effective count less one. A drift of S and
    G2 within some half-lives widens the interval. The estimate's `batch` is the
    weighted mean, to the nearest.

    Raises:
        ValueError: of steps that are as good as fewer than two, or a half-life that is
        not above 0.
    """
    shares = _shares(batches, half_life)
    squares = float(np.sum(shares**2))
    pairs = np.array([(scale.trace, scale.square) for scale in scales])
    mean = shares @ pairs
    deviations = shares[:, None] * (pairs - mean)
    covariance = deviations.T @ deviations / (1 - squares)

    def skewness(weights: np.ndarray) -> float:
        along = deviations @ weights
        spread = float(np.sum(along**2))
        return float(np.sum(along**3) / spread**1.5) if spread else 0.0

    return estimate(
        Means.of(mean, covariance),
        student_t(confidence, 1 / squares - 1),
        skewness,
        round(1 / squares, 6),  # 12 equal steps are 12, not a rounding less
        batch=round(float(shares @ np.array(batches))),
        batches=len(batches),
        method=f"{len(batches)} steps, half forgotten after {half_life:g}",
        confidence=confidence,
    )


@dataclass(frozen=True)
class ScaleRatio:
    """One B_simple over another of the same steps, with its interval at a confidence."""

    value: float
    interval: Interval

    def __str__(self) -> str:
        low, high = self.interval.low, self.interval.high
        return f"{self.value:.3g} ({low:.3g} to {high:.3g})"


def ratio_over_steps(
    tops: Sequence[NoiseScale],
    bottoms: Sequence[NoiseScale],
    batches: Sequence[int],
    half_life: float,
    confidence: float = 0.95,
) -> ScaleRatio:
    """The B_simple of some of a gradient's elements over that of others, from means of S
    and of G2 as `over_steps` has them.

    Its logarithm is that of four means, and its error to first order the mean of
    S/S̄ − G2/Ḡ2 of the one less the same of the other. So what both have of a step's
    luck cancels.

    Raises:
        ValueError: as `over_steps`, or where one of the four means is not above 0.
    """
    shares = _shares(batches, half_life)
    squares = float(np.sum(shares**2))
    values = np.array(
        [
            (top.trace, top.square, bottom.trace, bottom.square)
            for top, bottom in zip(tops, bottoms)
        ]
    )
    means = shares @ values
    if not (means > 0).all():
        raise ValueError("a ratio needs S and G2 above 0 over the steps")
    signs = np.array([1, -1, -1, 1])
    errors = values / means @ signs
    variance = float(shares**2 @ errors**2) / (1 - squares)
    logarithm = float(np.log(means) @ signs)
    half = student_t(confidence, 1 / squares - 1).high * math.sqrt(variance)
    return ScaleRatio(
        math.exp(logarithm),
        Interval(math.exp(logarithm - half), math.exp(logarithm + half)),
    )


def _shares(batches: Sequence[int], half_life: float) -> np.ndarray:
    """The weight of each step, of sum 1."""
    if not half_life > 0:
        raise ValueError(f"a half-life is above 0 steps, and this one is {half_life}")
    sizes = np.array(batches, dtype=np.float64)
    ages = np.arange(len(sizes))[::-1]
    shares = sizes * 0.5 ** (ages / half_life)
    shares /= shares.sum() or 1.0
    squares = float(np.sum(shares**2))
    effective = 1 / squares if squares else 0.0
    if effective < _LEAST_EFFECTIVE - 1e-9:
        raise ValueError(
            "an interval over steps needs two metered steps or more of about one size: these "
            f"{len(sizes)} are as good as {effective:.2f}"
        )
    return shares
