"""Estimates of the gradient noise scale from per-sample gradients, each with an interval:
of one batch, of several, and of a stream of micro-batches; and tests of whether a batch
is large enough for its mean gradient to be followed.

All of it comes from three statistics of a batch of B: M = ‖ḡ‖², n_b = ‖g_b‖² and d_b =
g_b·ḡ. Each test estimates the variance of some part of ḡ over ‖ḡ‖², by the samples of
the batch itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from batchline.bench.stats.intervals import (
    Interval,
    Means,
    Quantiles,
    around,
    fieller,
    skewed,
    student_t,
)
from batchline.bench.stats.score_interval import (
    BARELY,
    UNSEEN_FACTOR,
    Moments,
    ScoreTest,
    widened,
)

_ROUNDING = 1e-3  # of √(n̄·M), far above what half precision leaves of M, far below what a wrong 1/B does to it
BOUNDED = "bounded"
NO_UPPER_BOUND = "cannot bound above"
NO_SIGNAL = "signal not distinguishable from zero"
BARELY_ABOVE = "‖G‖² is barely above 0"
_LEAST_EFFECTIVE = 1.5  # of two batches, a fourfold one is past it

# Where the claim of a 95% interval ends. Chosen on draws like those of `batchline coverage`, so that
# of all draws about 5% at most miss without a warning.
_LEAST_SAMPLES = 16
_LEAST_BATCHES = 12
SHOWN_RARE = 3  # over N: as rare as that is what N samples show with 95%
ENOUGH_SAMPLES = 1000  # below it each estimate warns of what is rarer than 1 in 333
_UNEVEN = 0.2  # the skewness of n̄
_FELT = 0.07  # and that of what the ratio is tested by
_UNEVEN_BATCHES = 0.15  # the skewness of the mean of S
_UNEVEN_FEW_BATCHES = 0.1
_MANY_BATCHES = 32
_UNSEEN_SKEWNESS = 0.25  # of one batch


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
                f"n and d have one entry per sample, and these have shapes {n.shape} and {d.shape}"
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


@dataclass(frozen=True)
class NoiseScale:
    """What one batch says of the noise of its gradients: S and G2 of McCandlish et al.
    2018, arXiv:1812.06162, app. A.

    `trace` estimates tr Σ, the summed variance of one sample's gradient, and `square`
    estimates ‖G‖², of the true gradient. Both are unbiased, so either may come out
    negative: nothing is clamped.
    """

    trace: float
    square: float

    @property
    def simple(self) -> float:
        """B_simple = tr Σ/‖G‖², a ratio and so not unbiased; infinite where ‖G‖² is
        estimated at exactly 0.
        """
        return self.trace / self.square if self.square else self.trace * math.inf


def noise_scale(mean_square: float, squared_norms: Sequence[float]) -> NoiseScale:
    """The noise scale of a batch from M = ‖ḡ‖² and n_b = ‖g_b‖² of its B samples.

    S = (n̄ − M)·B/(B−1) and G2 = (B·M − n̄)/(B−1), n̄ the mean of n: appendix A's two
    batch sizes are 1 and B here.

    Raises:
        ValueError: of fewer than two samples, from which no variance can be had.
    """
    batch = len(squared_norms)
    if batch < 2:
        raise ValueError(
            f"a noise scale needs two samples or more, and this batch has {batch}"
        )
    mean_norm = math.fsum(squared_norms) / batch
    return NoiseScale(
        trace=(mean_norm - mean_square) * batch / (batch - 1),
        square=(batch * mean_square - mean_norm) / (batch - 1),
    )


def two_batch_sizes(
    small: int, small_square: float, big: int, big_square: float
) -> NoiseScale:
    """The noise scale from ‖ḡ‖² of a small batch and of a big one: McCandlish et al.
    2018, app. A.

    ‖G‖² = (B·|G_B|² − b·|G_b|²)/(B − b) and S = (|G_b|² − |G_B|²)/(1/b − 1/B). Unbiased
    also if the small batch is a part of the big one.

    Raises:
        ValueError: of batches that are not 1 ≤ small < big, or of squares that are NaN,
        infinite or negative.
    """
    if not 1 <= small < big:
        raise ValueError(
            f"two batch sizes are needed, 1 or more and a bigger one: these are {small} and {big}"
        )
    require_squares("‖ḡ‖²", np.array([small_square, big_square]))
    return NoiseScale(
        trace=(small_square - big_square) / (1 / small - 1 / big),
        square=(big * big_square - small * small_square) / (big - small),
    )


def expected_cosine(simple: float, batch: int) -> float:
    """1/(1 + B_simple/B): about the cosine between the mean gradients of two
    independent batches of B.
    """
    return 1 / (1 + simple / batch)


@dataclass(frozen=True)
class NoiseEstimate:
    """A noise scale and how well it is known: intervals of tr Σ, of ‖G‖² and of
    B_simple, at `confidence`.

    `answer` says what the interval of B_simple is: BOUNDED, NO_UPPER_BOUND (it has a
    low end only: ‖G‖² may be 0), or NO_SIGNAL (nothing is excluded). `batch` samples
    were in each of `batches`. `pairs` are the (S, G2) of each batch, where there were
    several. Over batches the intervals of tr Σ and ‖G‖² may reach below 0; that of
    B_simple doesn't.

    `warning` says why the interval of B_simple may cover less than `confidence`; it is
    empty where nothing in the data says so. `warnings` has it, and what no data of so
    few samples can say. `effective` is how many equal batches those of unequal weight
    are as good as; None where all weigh the same.
    """

    scale: NoiseScale
    trace: Interval
    square: Interval
    simple: Interval
    answer: str
    batch: int
    batches: int
    method: str
    confidence: float
    pairs: tuple[tuple[float, float], ...] = ()
    warning: str = ""
    effective: float | None = None

    @property
    def samples(self) -> int:
        return self.batch * self.batches

    @property
    def unseen(self) -> str:
        """How rare the samples are that this interval can't have seen; empty from
        ENOUGH_SAMPLES on, and where nothing is claimed.

        What does not occur in N samples is rarer than 3/N, with 95%. A batch without
        the rare samples that make the noise looks like one of a Gaussian.
        """
        samples = self.samples
        if self.effective is not None:
            samples = round(self.batch * self.effective)
        if samples >= ENOUGH_SAMPLES or self.answer == NO_SIGNAL:
            return ""
        rarest = max(samples // SHOWN_RARE, 1)
        return f"{samples} samples can't show large ones rarer than 1 in {rarest}"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the interval may cover less than it claims: what the data show, then what
        so few samples can't show.
        """
        return tuple(filter(None, (self.warning, self.unseen)))

    def text(self) -> str:
        """ "23.4 (19.8 to 27.6)", "at least 210: cannot bound above", "signal not
        distinguishable from zero"; and what limits the claim: "…, from 64 samples", "…
        (may cover less than 95%: one of 64 samples has 31% of Σ‖g‖²)".
        """
        if self.warning:
            claimed = f"{100 * self.confidence:.3g}%"
            return f"{self._interval_text()} (may cover less than {claimed}: {self.warning})"
        if self.unseen:
            return f"{self._interval_text()}, from {self.samples} samples"
        return self._interval_text()

    def _interval_text(self) -> str:
        if self.answer == BOUNDED:
            return " ".join(
                (
                    _digits(self.scale.simple),
                    f"({_digits(self.simple.low)} to {_digits(self.simple.high)})",
                )
            )
        if self.answer == NO_UPPER_BOUND:
            return f"at least {_digits(self.simple.low)}: {NO_UPPER_BOUND}"
        return self.answer

    def to_json(self) -> dict:
        """Plain JSON, None for an infinity."""
        return {
            "scale": {"trace": self.scale.trace, "square": self.scale.square},
            "trace": self.trace.to_json(),
            "square": self.square.to_json(),
            "simple": self.simple.to_json(),
            "answer": self.answer,
            "batch": self.batch,
            "batches": self.batches,
            "method": self.method,
            "confidence": self.confidence,
            "pairs": [list(pair) for pair in self.pairs],
            "warning": self.warning,
            "effective": self.effective,
        }

    @classmethod
    def from_json(cls, stored: dict) -> NoiseEstimate:
        intervals = {
            name: Interval.from_json(stored[name])
            for name in ("trace", "square", "simple")
        }
        return cls(
            **stored
            | intervals
            | {
                "scale": NoiseScale(**stored["scale"]),
                "pairs": tuple(map(tuple, stored.get("pairs", ()))),
            }
        )


def within_batch(
    statistics: BatchStatistics, confidence: float = 0.95
) -> NoiseEstimate:
    """The noise scale of one batch, with the ratios and the ‖G‖² that a score test does
    not refute, and the jackknife's interval of tr Σ.

    G2 is the mean of h_b = (B·d_b − n_b)/(B−1), the mean of g_b·g_c over the other
    samples c, and its pseudo-values are G2 + (h_b − G2)·2(B−1)/(B−2); those of S = n̄ −
    G2 are n_b less these.

    Raises:
        ValueError: of fewer than three samples: with one left out there must be two.
    """
    batch = statistics.batch
    if batch < 3:
        raise ValueError(
            f"an interval within a batch needs three samples or more, and this batch has {batch}"
        )
    scale = noise_scale(statistics.mean_square, statistics.squared_norms)
    mean_norm = float(statistics.squared_norms.mean())
    if not mean_norm:
        nothing = Interval(0.0, 0.0)
        simple, square, warning = Interval(0.0, math.inf), nothing, ""
    else:
        moments = Moments.of(
            statistics.mean_square, statistics.squared_norms, statistics.inner_products
        )
        of_ratio = ScoreTest.at(confidence, moments)
        shares = of_ratio.interval()
        low = _ratio(shares.high)
        simple = Interval(low if math.isfinite(low) else 0.0, _ratio(shares.low))
        known = ScoreTest.at(confidence, moments, whole=False).interval()
        square = Interval(known.low * mean_norm, known.high * mean_norm)
        warning = _warning_within(statistics, of_ratio, simple)
    answer = _kind(simple)
    return NoiseEstimate(
        scale,
        _trace_within(statistics, scale.trace, confidence),
        square,
        simple,
        answer,
        batch=batch,
        batches=1,
        method="score test within the batch",
        confidence=confidence,
        warning="" if answer == NO_SIGNAL else warning,
    )


def _ratio(share: float) -> float:
    """B_simple of a share ‖G‖²/E‖g‖²."""
    return 1 / share - 1 if share else math.inf


def _trace_within(
    statistics: BatchStatistics, trace: float, confidence: float
) -> Interval:
    """The jackknife's interval of tr Σ, by Student's t corrected for skewness."""
    batch = statistics.batch
    n = statistics.squared_norms
    others = (batch * statistics.inner_products - n) / (batch - 1)
    square = (others - others.mean()) * (2 * (batch - 1) / (batch - 2))
    deviations = n - n.mean() - square
    variance = float(deviations @ deviations) / (batch - 1) / batch
    quantiles = skewed(student_t(confidence, batch - 1), _skewness_of_mean(deviations))
    return around(trace, variance, quantiles)


def _warning_within(
    statistics: BatchStatistics, test: ScoreTest, simple: Interval
) -> str:
    """Why the interval may cover less than it claims; empty where nothing says so."""
    batch = statistics.batch
    if batch < _LEAST_SAMPLES:
        return f"{batch} samples are few"
    n = statistics.squared_norms
    moments = test.moments
    share = min(max(moments.square, 1 / (1 + 2 * batch)), 1.0)
    felt = -moments.skewness(2.0, share)  # at the estimate, or at B_simple = 2·B
    if _skewness_of_mean(n - n.mean()) > _UNEVEN and felt > _FELT:
        return f"one of {batch} samples has {n.max() / n.sum():.0%} of Σ‖g‖²"
    if simple.bounded and test.barely():
        return BARELY_ABOVE
    return ""


def over_batches(
    scales: Sequence[NoiseScale], batch: int, confidence: float = 0.95
) -> NoiseEstimate:
    """The noise scale of K independent batches of `batch` samples each: means of S and
    of G2, and Fieller's interval.

    Raises:
        ValueError: of fewer than two batches.
    """
    count = len(scales)
    if count < 2:
        raise ValueError(
            f"an interval over batches needs two of them or more, and there are {count}"
        )
    pairs = np.array([(scale.trace, scale.square) for scale in scales])
    deviations = pairs - pairs.mean(0)
    return estimate(
        Means.of(pairs.mean(0), np.cov(pairs.T) / count),
        student_t(confidence, count - 1),
        lambda weights: _skewness_of_mean(deviations @ weights),
        batch=batch,
        batches=count,
        method=f"{count} independent batches",
        confidence=confidence,
        pairs=tuple(map(tuple, pairs.tolist())),
    )


def estimate(
    means: Means,
    quantiles: Quantiles,
    skewness: Callable[[np.ndarray], float],
    effective: float | None = None,
    **facts,
) -> NoiseEstimate:
    """The estimate that follows from the means of S (`top`) and G2 (`bottom`) over
    batches; `facts` are its other fields.

    Args:
        quantiles: without skewness.
        skewness: of the mean of w[0]·S + w[1]·G2, for weights w[2].
        effective: how many equal batches they are as good as; `batches`, if not given.
    """
    batches = facts["batches"] if effective is None else effective
    ratio = np.array(
        [max(means.bottom, 0.0), -means.top]
    )  # G2·(S − R·G2) at the estimated R; of no signal, infinite
    ratio /= np.abs(ratio).max() or 1.0
    of_trace, of_square, of_ratio = (
        skewness(weights) for weights in (*np.eye(2), ratio)
    )
    square = around(means.bottom, means.bottom_variance, skewed(quantiles, of_square))
    wide = _cautiously(widened(quantiles, facts["confidence"]), of_ratio, batches)
    simple = fieller(means, wide)
    if square.low <= 0:  # by its own skewness ‖G‖² may be 0
        simple = Interval(simple.low, math.inf)
    answer = _kind(simple)
    warning = _warning_over(batches, of_trace, of_ratio)
    if (
        not warning
        and answer == BOUNDED
        and means.bottom < BARELY * (means.bottom - square.low)
    ):
        warning = BARELY_ABOVE
    return NoiseEstimate(
        NoiseScale(means.top, means.bottom),
        around(means.top, means.top_variance, skewed(quantiles, of_trace)),
        square,
        simple,
        answer,
        warning="" if answer == NO_SIGNAL else warning,
        effective=effective,
        **facts,
    )


def _cautiously(quantiles: Quantiles, skewness: float, batches: float) -> Quantiles:
    """`skewed`, each side for a tail that is heavier than so many batches showed."""
    unseen = _UNSEEN_SKEWNESS / math.sqrt(batches)
    up = max(skewness, UNSEEN_FACTOR * skewness) + unseen
    down = min(skewness, UNSEEN_FACTOR * skewness) - unseen
    return Quantiles(skewed(quantiles, up).low, skewed(quantiles, down).high)


def _warning_over(batches: float, of_trace: float, of_ratio: float) -> str:
    """Why an interval over batches may cover less than it claims.

    Args:
        of_trace, of_ratio: the skewness of the mean of S, and of what the ratio is
            tested by.
    """
    if batches < _LEAST_BATCHES:
        return f"{batches:.3g} batches are few"
    most = _UNEVEN_BATCHES if batches >= _MANY_BATCHES else _UNEVEN_FEW_BATCHES
    if of_trace > most and of_ratio > 0:
        return f"tr Σ is uneven over {batches:.3g} batches"
    return ""


def _kind(simple: Interval) -> str:
    if simple.bounded:
        return BOUNDED
    return NO_UPPER_BOUND if simple.low > 0 else NO_SIGNAL


def _skewness_of_mean(deviations: np.ndarray) -> float:
    """Of the mean of values, from each less that mean; 0 where all are the same."""
    scatter = np.sum(deviations**2)
    return float(np.sum(deviations**3) / scatter**1.5) if scatter else 0.0


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


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
        that the stream needs of it.

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
        samples = self._first[0]
        squares = self._second[0, 0]
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
            effective,
            batch=round(samples / self._batches),
            batches=self._batches,
            method=f"{self._batches} micro-batches",
            confidence=confidence,
        )
