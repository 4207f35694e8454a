"""The time of a training step over the batch, t(B), and the batch at which a noise
scale makes training the fastest.

Training to a loss takes T(B) = t(B)·(1 + φ/B) times a constant, φ the gradient noise
scale (McCandlish et al. 2018, arXiv:1812.06162). Here T is divided by 1 + φ, so that it
is t(B)·(w + (1 − w)/B) with w = 1/(1 + φ) in [0, 1]: an unbounded φ is w = 0, and its T
is the time of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_HUBER, _MAD_TO_SIGMA, _ROUNDS = (
    1.345,
    1.4826,
    10,
)  # Huber's own constant: 95% efficient where the noise is normal


def signal_weight(noise_scale):
    """w = 1/(1 + φ), for φ from 0 to infinity, a number or an array."""
    return 1 / (1 + np.asarray(noise_scale, float))


@dataclass(frozen=True)
class StepTimes:
    """The timings of whole training steps: batches[N] in rising order, and each one's
    samples in seconds.
    """

    batches: np.ndarray
    samples_s: tuple[np.ndarray, ...]

    @classmethod
    def of(cls, steps: Sequence[Mapping]) -> StepTimes:
        """From [{"batch", "samples_s"}, …], in any order.

        Raises:
            ValueError: fewer than two batch sizes, one twice or below 1, one without a
            time, a time that is no time.
        """
        ordered = sorted(steps, key=lambda step: step["batch"])
        batches = [step["batch"] for step in ordered]
        if len(set(batches)) < 2 or len(set(batches)) < len(batches) or batches[0] < 1:
            raise ValueError(
                "step times are needed at two batch sizes or more, each once and 1 or more, and these are "
                f"at {', '.join(map(str, batches)) or 'none'}"
            )
        for step in ordered:
            samples = np.asarray(step["samples_s"], float)
            if not samples.size or not (np.isfinite(samples) & (samples > 0)).all():
                raise ValueError(
                    f"the step times at batch {step['batch']} must be seconds above 0, and are "
                    f"{list(step['samples_s'])[:5]}: measure them again"
                )
        return cls(
            np.array(batches, float),
            tuple(np.asarray(step["samples_s"], float) for step in ordered),
        )

    def curve(self) -> Curve:
        """t(B) of the medians."""
        return curve(
            self.batches, np.array([np.median(samples) for samples in self.samples_s])
        )

    def redrawn(self, draws: int, generator: np.random.Generator) -> Curve:
        """t(B) of as many medians of samples drawn with replacement; a batch timed once
        keeps its one time.
        """
        medians = [
            np.median(generator.choice(samples, (draws, samples.size)), axis=1)
            for samples in self.samples_s
        ]
        return curve(self.batches, np.stack(medians, axis=1))


@dataclass(frozen=True)
class Curve:
    """t(B) = intercepts + slopes·B between one of `ends`[P] and the one before (1
    before the first): [P] or [draws,P].

    `alpha_s` and `beta_s` are those of the law, `residuals`[N] each median over the
    law's time, less 1.
    """

    ends: np.ndarray
    intercepts: np.ndarray
    slopes: np.ndarray
    alpha_s: np.ndarray
    beta_s: np.ndarray
    residuals: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate([[1.0], self.ends[:-1]])

    def step_s(self, batch: float) -> float:
        """t(B) of a curve that is not one of draws."""
        piece = np.searchsorted(self.ends, batch)
        return float(self.intercepts[piece] + self.slopes[piece] * batch)

    def training(self, batch: float, weight: float) -> float:
        """T(B)/(1 + φ) in seconds, of a curve that is not one of draws."""
        piece = np.searchsorted(self.ends, batch)
        return float(
            _training(self.intercepts[piece], self.slopes[piece], batch, weight)
        )

    def fastest(self, weight: np.ndarray, most: np.ndarray) -> np.ndarray:
        """The whole batch from 1 to `most` of the least T, the smallest of equals;
        infinite if T falls without end.

        On each piece T is convex or monotonic, its least at √(intercept·φ/slope) or at
        the end that is nearer to it.

        Args:
            weight: w; it and `most` are numbers, or [draws] of a curve of draws.
        """
        weight = np.asarray(weight, float)[..., None]
        most = np.floor(most)[..., None]
        falling = self.intercepts * (1 - weight)
        rising = self.slopes * weight
        with np.errstate(divide="ignore", invalid="ignore"):
            least = np.where(
                falling <= 0,
                0,
                np.where(rising <= 0, np.inf, np.sqrt(falling / rising)),
            )
        ends = np.minimum(self.ends, most)
        batches = np.concatenate(
            [
                np.clip(near, self.starts, ends)
                for near in (np.floor(least), np.ceil(least))
            ],
            -1,
        )
        lines = (
            np.concatenate([part, part], -1) for part in (self.intercepts, self.slopes)
        )
        times = np.where(
            np.tile(self.starts, 2) > most, np.inf, _training(*lines, batches, weight)
        )
        order = np.lexsort((batches, times), axis=-1)
        return np.take_along_axis(batches, order[..., :1], -1)[..., 0]

    def within(
        self, ratio: float, best: float, weight: float, most: float
    ) -> tuple[int, int | None]:
        """The whole batches around `best`, without a gap, whose T is at most `ratio`
        times its own; None: no end.
        """
        allowed = ratio * self.training(best, weight)
        marks = [mark for mark in self.ends if mark < most]

        def allows(batch: float) -> bool:
            return self.training(batch, weight) <= allowed

        low = _last([mark for mark in [1.0, *marks] if mark < best][::-1], best, allows)
        high = _last(
            [*(mark for mark in marks if mark > best), np.floor(most)], best, allows
        )
        return int(low), None if np.isinf(high) else int(high)


def curve(batches: np.ndarray, times: np.ndarray) -> Curve:
    """t(B) of batches[N] and times[N] or [draws,N]: straight between the measured, the
    law beyond them.

    Beyond an end the law α + βB is scaled to meet the measured time there.
    """
    alpha, beta = fit_law(batches, times)
    fitted = alpha[..., None] + beta[..., None] * batches
    slopes = np.diff(times) / np.diff(batches)
    intercepts = times[..., :-1] - slopes * batches[:-1]
    scale = times[..., [0, -1]] / fitted[..., [0, -1]]
    outer_intercepts = scale * alpha[..., None]
    outer_slopes = scale * beta[..., None]
    return Curve(
        np.append(batches, np.inf),
        np.concatenate(
            [outer_intercepts[..., :1], intercepts, outer_intercepts[..., 1:]], -1
        ),
        np.concatenate([outer_slopes[..., :1], slopes, outer_slopes[..., 1:]], -1),
        alpha,
        beta,
        times / fitted - 1,
    )


def fit_law(batches: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """α and β of t = α + βB, in seconds: Huber's M-estimate on relative residuals, by
    reweighted least squares.

    α, β ≥ 0 is part of the fit: where the free line has one below 0, it is the best
    line through the origin, or the best constant. times: [N] or [draws,N].
    """
    weights = 1 / times**2
    for _ in range(_ROUNDS):
        alpha, beta = _line(batches, times, weights)
        off = np.abs((alpha[..., None] + beta[..., None] * batches) / times - 1)
        allowed = _HUBER * _MAD_TO_SIGMA * np.median(off, axis=-1, keepdims=True)
        weights = (
            np.where(off <= allowed, 1, allowed / np.where(off > 0, off, 1)) / times**2
        )
    return alpha, beta


def _line(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weighted least squares of a line whose intercept and slope are both 0 or more."""
    total, x_sum, y_sum, xx, xy = (
        (weights * term).sum(-1) for term in (np.ones_like(x), x, y, x * x, x * y)
    )
    slope = (total * xy - x_sum * y_sum) / (total * xx - x_sum**2)
    intercept = (y_sum - slope * x_sum) / total
    return (
        np.where(intercept < 0, 0, np.where(slope < 0, y_sum / total, intercept)),
        np.where(intercept < 0, xy / xx, np.where(slope < 0, 0, slope)),
    )


def _training(intercept, slope, batch, weight):
    """(intercept + slope·B)(w + (1 − w)/B), which has a limit at B = ∞ where nothing in
    it grows.
    """
    growth = np.asarray(slope * weight, float)
    growing = np.multiply(
        growth,
        batch,
        where=growth != 0,
        out=np.zeros(np.broadcast(growth, batch).shape),
    )
    return (
        intercept * weight
        + slope * (1 - weight)
        + growing
        + intercept * (1 - weight) / batch
    )


def _last(
    marks: Sequence[float], start: float, allows: Callable[[float], bool]
) -> float:
    """The last whole number from `start` towards each of `marks` in turn up to which
    `allows` stays true.

    Between two marks it is lost at most once, as T is convex or monotonic there:
    bisection finds where.
    """
    for mark in marks:
        if not allows(mark):
            inside = start
            outside = mark if np.isfinite(mark) else 2 * start
            while allows(outside):
                inside = outside
                outside = 2 * outside
            while abs(outside - inside) > 1:
                middle = (inside + outside) // 2
                inside, outside = (
                    (middle, outside) if allows(middle) else (inside, middle)
                )
            return inside
        start = mark
    return start
