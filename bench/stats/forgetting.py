"""A noise scale over the steps of a training run, whose older steps are forgotten."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from batchline.bench.stats.intervals import Means, student_t
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
