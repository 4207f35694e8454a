"""The noise scale of a stream of micro-batches, in constant memory: of a batch that is
larger than the device holds.
"""

from __future__ import annotations

import numpy as np

from batchline.bench.noise.estimators import (
    BatchStatistics,
    NoiseEstimate,
    NoiseScale,
    estimate,
    noise_scale,
)
from batchline.bench.noise.intervals import Means, student_t

_LEAST_EFFECTIVE = 1.5  # of two batches, a fourfold one is past it


class Stream:
    """Running moments of (S, G2) over independent micro-batches, each weighted by its
    samples w.

    The variance is that of a weighted mean whose parts differ in variance, Σw²(x −
    x̄)²/(W² − Σw²), right if that of a part falls as 1/w; its degrees of freedom are
    W²/Σw² − 1, Kish's effective count less one. With equal batches all of it is what
    `over_batches` gives.
    """

    def __init__(self):
        self._batches = 0
        self._origin = np.zeros(2)  # the first pair: moments about 0 would cancel
        self._first, self._second, self._third = (
            np.zeros((3,) * order) for order in (1, 2, 3)
        )

    def add(self, statistics: BatchStatistics) -> None:
        """Take in one micro-batch, of two samples or more."""
        self.add_scale(
            noise_scale(statistics.mean_square, statistics.squared_norms),
            statistics.batch,
        )

    def add_scale(self, scale: NoiseScale, batch: int) -> None:
        """Take in the noise scale of a micro-batch of so many samples, which is all
        that is kept of it.

        Raises:
            ValueError: of fewer than two samples, or of a scale that is NaN or
            infinite; the stream is as it was.
        """
        pair = np.array([scale.trace, scale.square], dtype=np.float64)
        if batch < 2:
            raise ValueError(
                f"a noise scale needs two samples or more, and this micro-batch has {batch}"
            )
        if not np.isfinite(pair).all():
            raise ValueError(
                f"a micro-batch's noise scale is NaN or infinite: tr Σ {scale.trace}, ‖G‖² {scale.square}"
            )
        if not self._batches:
            self._origin = pair
        self._batches += 1
        weighted = batch * np.array(
            [1.0, *(pair - self._origin)]
        )  # with the 1, lower orders are part of the higher
        self._first += weighted
        self._second += np.multiply.outer(weighted, weighted)
        self._third += np.multiply.outer(
            np.multiply.outer(weighted, weighted), weighted
        )

    def __len__(self) -> int:
        return self._batches

    def estimate(self, confidence: float = 0.95) -> NoiseEstimate:
        """The estimate so far; its `batch` is the mean micro-batch, to the nearest.

        Raises:
            ValueError: of fewer than two micro-batches, or of one so large that the
            others say nothing beside it.
        """
        samples, squares = self._first[0], self._second[0, 0]
        effective = samples**2 / squares if self._batches else 0
        if effective < _LEAST_EFFECTIVE:
            raise ValueError(
                "an interval over micro-batches needs two or more of about one size: these "
                f"{self._batches} are as good as {effective:.2f}"
            )
        mean = self._first[1:] / samples
        deviation = np.concatenate(
            [-mean[:, None], np.eye(2)], 1
        )  # [2,3], of (1, pair − origin)
        scatter = deviation @ self._second @ deviation.T

        def skewness(weights: np.ndarray) -> float:
            along = weights @ deviation
            spread = weights @ scatter @ weights
            return (
                float(self._third @ along @ along @ along / spread**1.5)
                if spread > 0
                else 0.0
            )

        return estimate(
            Means.of(self._origin + mean, scatter / (samples**2 - squares)),
            student_t(confidence, effective - 1),
            skewness,
            batch=round(samples / self._batches),
            batches=self._batches,
            method=f"{self._batches} micro-batches",
            confidence=confidence,
        )
