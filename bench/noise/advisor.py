"""Which batch size trains the fastest, from step times, memory and the gradient noise
scale φ, and how sure that is; and a survey read back from its record, with the advice
that follows at each point of training.

T(B) = t(B)·(1 + φ/B) is the time to a loss, E(B) = 1 + B/φ the examples it takes over
the least (McCandlish et al. 2018, arXiv:1812.06162). Minimising T is maximising the
goodput of Pollux (Qiao et al. 2021, arXiv:2008.12260). Where t = α + βB, the best batch
is B* = √(αφ/β) and T* is (√α + √(βφ))².

How uncertain φ is, is carried into the advice by noise scales that are drawn from what
its estimate allows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

from batchline.bench.noise.advice import (
    COST,
    MEMORY,
    NOISE,
    NOTHING,
    STEP_TIME,
    TRIED,
    Accumulation,
    Advice,
    Point,
    Regret,
    StepLaw,
)
from batchline.bench.noise.step_time import Curve, StepTimes, signal_weight
from batchline.bench.stats.fits import MemoryLaw, fit_memory
from batchline.bench.stats.noise_scale import (
    BOUNDED,
    NO_UPPER_BOUND,
    NoiseEstimate,
    NoiseScale,
    over_batches,
)

NEAR = 1.05  # times the least T: what counts as fast as the best
_FACTORS = (2.0, 4.0)  # by which φ may be off
_DRAWS = 1000
_TAIL = 0.025
_GOOD_FIT = (
    0.05  # a memory law that misses by more of the largest peak predicts nothing
)
_FAR = 4  # times the largest batch measured: a wall further off is no row of the curve


@dataclass(frozen=True)
class _Limits:
    """The largest batch that fits and the law of its bytes, both None where memory sets
    no limit; `why` says so.
    """

    largest: int | None
    law: MemoryLaw | None
    why: str
    peaks: Mapping[int, float]

    @property
    def most(self) -> float:
        return math.inf if self.largest is None else self.largest

    def below(self, largest_fit: int | None) -> _Limits:
        """The same where no batch above this one has run."""
        if largest_fit is None or self.most <= largest_fit:
            return self
        return replace(self, largest=largest_fit, why=TRIED)

    def peak_bytes(self, batch: int) -> float | None:
        return self.peaks.get(batch, self.law.bytes_at(batch) if self.law else None)

    def fits(self, batch: int) -> bool | None:
        if self.why != TRIED and self.peak_bytes(batch) is None:
            return None
        return batch <= self.most


def advise(
    steps: Sequence[Mapping],
    estimate: Mapping,
    limit_bytes: float | None,
    current_batch: int | None = None,
    cost_cap: float | None = None,
    headroom: float = 0.1,
    optimizer_s: float | None = None,
    largest_fit: int | None = None,
    seed: int = 0,
) -> Advice:
    """The batch size of the least predicted time to a loss that fits and costs no more
    than it may.

    Args:
        steps: [{"batch", "samples_s", "peak_bytes"}, …], whole training steps;
        peak_bytes may be None or missing. estimate: what NoiseEstimate.to_json gives.
        limit_bytes: the device's memory, of which the share `headroom` is kept free;
        None: not known. current_batch: compared with the best; a smaller one may be
        advised.
        cost_cap: the examples used may be at most so many times the least, so that B ≤
        (cap − 1)·φ. optimizer_s: the part of a step that an accumulated micro-batch
        spares, t(kb) = k·(t(b) − optimizer_s) +
            optimizer_s; unknown, it is taken for 0, and accumulation for no faster than
            it surely is.
        largest_fit: the largest batch that ran, where a larger one did not: none above
        it is advised, whatever the law of memory says.

    Raises:
        ValueError: step times that are none or of one batch, a negative or NaN φ, a
            limit that holds no batch, a cap that no batch keeps, a headroom or an
            optimizer_s out of range.
    """
    times = StepTimes.of(steps)
    curve = times.curve()
    noise = _require_valid(NoiseEstimate.from_json(dict(estimate)))
    limits = _limits(steps, limit_bytes, headroom).below(largest_fit)
    if current_batch is not None and current_batch < 1:
        raise ValueError(f"the current batch must be 1 or more, and is {current_batch}")
    optimizer_s = _optimizer_s(optimizer_s, curve)
    believed = {BOUNDED: noise.scale.simple, NO_UPPER_BOUND: math.inf}.get(noise.answer)
    if believed is None:
        best = unlimited = None
        decided_by = NOTHING
        interval = None
        near = None
        regret = ()
        accumulation = None
    else:
        weight = signal_weight(believed)
        cap = _cap(cost_cap, _cautious(noise))
        most = min(limits.most, cap)
        best, unlimited = (
            _whole(curve.fastest(weight, upper)) for upper in (most, math.inf)
        )
        decided_by = _decided_by(best, unlimited, limits.most, cap, noise.answer)
        interval = _interval(times, noise, limits.most, cost_cap, seed)
        near = None
        regret = ()
        if best is not None and noise.answer == BOUNDED:
            near = curve.within(NEAR, best, weight, most)
            regret = _regret(curve, best, believed, limits.most)
        accumulation = (
            _accumulation(curve, best, weight, limits, cap, optimizer_s)
            if best is not None
            else None
        )
    return Advice(
        best,
        decided_by,
        interval,
        near,
        unlimited,
        limits.largest,
        limits.why,
        accumulation,
        noise.answer,
        believed if noise.answer == BOUNDED else None,
        (noise.simple.low, _finite(noise.simple.high)),
        StepLaw(
            float(curve.alpha_s),
            float(curve.beta_s),
            float(max(curve.residuals, key=abs)),
        ),
        regret,
        _points(curve, times, noise, best, believed, limits, current_batch),
        int(times.batches[-1]),
        current_batch,
        cost_cap,
        limit_bytes,
        headroom,
    )


def _require_valid(noise: NoiseEstimate) -> NoiseEstimate:
    if not all(map(math.isfinite, (noise.scale.trace, noise.scale.square))):
        raise ValueError(
            f"a noise scale of {noise.scale.trace}/{noise.scale.square} is no number: measure it again"
        )
    if noise.answer == BOUNDED and not (
        noise.scale.simple > 0 and noise.simple.low >= 0
    ):
        raise ValueError(
            f"the noise scale must be above 0, and is estimated at {noise.scale.simple:.3g}: measure it "
            "over more batches"
        )
    return noise


def _limits(
    steps: Sequence[Mapping], limit_bytes: float | None, headroom: float
) -> _Limits:
    if not 0 <= headroom < 1:
        raise ValueError(
            f"the headroom is a share of the memory, from 0 to below 1, and is {headroom}"
        )
    if limit_bytes is not None and not 0 < limit_bytes < math.inf:
        raise ValueError(
            f"the memory must be bytes above 0, and is {limit_bytes}: leave it out if it is not known"
        )
    peaks = {
        step["batch"]: step["peak_bytes"]
        for step in steps
        if step.get("peak_bytes") is not None
    }
    law = fit_memory(list(peaks), list(peaks.values()))
    if law is not None and law.misfit > _GOOD_FIT:
        law, why = None, f"it misses a line by {law.misfit:.0%}"
    else:
        why = "measured at fewer than three batches" if law is None else ""
    if limit_bytes is None:
        return _Limits(None, law, "its limit is not known", peaks)
    room_bytes = (1 - headroom) * limit_bytes
    over = [batch for batch, peak in peaks.items() if peak > room_bytes]
    largest = law.largest_batch(room_bytes) if law else None
    if largest is None and over:  # no law, or one that a measured batch breaks
        largest = max(
            (batch for batch, peak in peaks.items() if batch < min(over)), default=0
        )
    if largest == 0:
        raise ValueError(
            f"no batch fits into {limit_bytes:.4g} bytes less a headroom of {headroom:.0%}: give more "
            "memory"
        )
    return _Limits(
        largest,
        law,
        why or ("" if largest is not None else "it does not grow with the batch"),
        peaks,
    )


def _optimizer_s(optimizer_s: float | None, curve: Curve) -> float:
    if optimizer_s is None:
        return 0.0
    if not 0 <= optimizer_s < curve.step_s(1):
        raise ValueError(
            f"the optimiser's {optimizer_s} s must be 0 or more, and less than a step at batch 1"
        )
    return optimizer_s


def _cautious(noise: NoiseEstimate) -> float:
    """The φ by which a cost is not understated: the estimate, or the low end of one
    that has no high end.
    """
    return noise.scale.simple if noise.answer == BOUNDED else noise.simple.low


def _cap(cost_cap: float | None, noise_scale: float) -> float:
    """The largest batch that takes at most `cost_cap` times the least examples."""
    if cost_cap is None:
        return math.inf
    cap = (cost_cap - 1) * noise_scale
    if not cap >= 1:
        raise ValueError(
            f"no batch takes at most {cost_cap} times the least examples: a batch of 1 takes "
            f"{1 + 1 / noise_scale:.3g} times, so the cap must be that or more"
        )
    return math.floor(cap)


def _decided_by(
    best: int | None, unlimited: int | None, fits: float, cap: float, answer: str
) -> str:
    if best is None:
        return NOTHING
    if best == unlimited:
        return NOISE if answer == BOUNDED else STEP_TIME
    if best < min(fits, cap):
        return STEP_TIME
    return MEMORY if fits <= cap else COST


def _interval(
    times: StepTimes,
    noise: NoiseEstimate,
    fits: float,
    cost_cap: float | None,
    seed: int,
) -> tuple[int, int | None]:
    """The middle 95% of the best batches of redrawn timings and noise scales, under the
    same limits.
    """
    generator = np.random.default_rng(seed)
    scales = draw_noise_scales(noise, _DRAWS, generator)
    most = np.full(_DRAWS, fits)
    if cost_cap is not None:
        most = np.minimum(
            most, np.maximum((cost_cap - 1) * scales, 1)
        )  # a draw that no batch suits takes the smallest
    best = times.redrawn(_DRAWS, generator).fastest(signal_weight(scales), most)
    low, high = np.quantile(best, (_TAIL, 1 - _TAIL), method="inverted_cdf")
    return _whole(low), _whole(high)


def _regret(
    curve: Curve, best: int, believed: float, most: float
) -> tuple[Regret, ...]:
    def extra(noise_scale: float) -> float:
        weight = signal_weight(noise_scale)
        return (
            curve.training(best, weight)
            / curve.training(float(curve.fastest(weight, most)), weight)
            - 1
        )

    return tuple(
        Regret(
            factor,
            extra(believed * factor),
            extra(believed / factor),
            (2 + factor**0.5 + factor**-0.5) / 4 - 1,
        )
        for factor in _FACTORS
    )


def _accumulation(
    curve: Curve,
    best: int,
    weight: float,
    limits: _Limits,
    cap: float,
    optimizer_s: float,
) -> Accumulation | None:
    """The fastest sum of micro-batches past the largest that fits, if it is faster than
    the best batch by itself.

    Of micro-batches of b, T is least at a count of √(optimizer_s·φ/((t(b) −
    optimizer_s)·b)).
    """
    options = []
    for micro in sorted(
        {*(int(end) for end in curve.ends[:-1] if end <= limits.most), limits.largest}
        - {None}
    ):
        micro_s = curve.step_s(micro) - optimizer_s
        ideal = (
            math.sqrt(optimizer_s * (1 - weight) / (micro_s * micro * weight))
            if weight
            else math.inf
        )
        least = max(2, limits.most // micro + 1)
        most = cap / micro
        for near in (ideal, ideal + 1):
            count = max(least, min(most, near))
            if count <= most and math.isfinite(count):
                count = math.floor(count)
                step_s = count * micro_s + optimizer_s
                time = (
                    step_s
                    * (weight + (1 - weight) / (count * micro))
                    / curve.training(best, weight)
                )
                options.append(Accumulation(micro, count, step_s, float(time)))
    fastest = min(options, key=lambda option: option.time_relative, default=None)
    return fastest if fastest and fastest.time_relative < 1 else None


def _points(
    curve: Curve,
    times: StepTimes,
    noise: NoiseEstimate,
    best: int | None,
    believed: float | None,
    limits: _Limits,
    current_batch: int | None,
) -> tuple[Point, ...]:
    measured = set(map(int, times.batches))
    wall = {limits.largest} if limits.most <= _FAR * max(measured) else set()
    ends = () if believed is None else (noise.simple.low, noise.simple.high)
    known = believed is not None and best is not None

    def relative(batch: int, noise_scale: float, reference: float) -> float:
        weight = signal_weight(noise_scale)
        return curve.training(batch, weight) / curve.training(reference, weight)

    references = (
        [float(curve.fastest(signal_weight(end), limits.most)) for end in ends]
        if known
        else []
    )
    return tuple(
        Point(
            batch,
            curve.step_s(batch),
            batch in measured,
            relative(batch, believed, best) if known else None,
            tuple(
                relative(batch, end, reference)
                for end, reference in zip(ends, references)
            )
            or None,
            1 + batch / _cautious(noise) if known else None,
            limits.peak_bytes(batch),
            limits.fits(batch),
        )
        for batch in sorted((measured | wall | {best, current_batch}) - {None})
    )


def _whole(batch: float) -> int | None:
    return int(batch) if math.isfinite(batch) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def draw_noise_scales(
    estimate: NoiseEstimate, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """φ[draws] from 0 to infinity, half below the estimate and half above, with its
    interval's ends at their quantiles.

    As in Fieller's interval, what is uncertain is φ itself towards the low end, and 1/φ
    towards the high end: the first may so fall to 0, and the second to an unbounded φ.
    Where the estimate itself is unbounded, 1/φ is for both. Resampling the batches
    instead would be too sure of φ: few of them vary less than what they were drawn
    from.
    """
    ranks = (
        generator.permutation(draws) + 0.5
    ) / draws  # evenly spread, so that the ends are no matter of luck
    deviations = ndtri(ranks) / ndtri((1 + estimate.confidence) / 2)  # ±1 at the ends
    middle = estimate.scale.simple
    low = estimate.simple.low
    high = estimate.simple.high
    with np.errstate(divide="ignore"):
        if estimate.scale.square <= 0:
            inverse = np.where(deviations < 0, -deviations / low, 0)
        else:
            below = np.maximum(middle + (middle - low) * np.minimum(deviations, 0), 0)
            above = 1 / middle - (1 / middle - 1 / high) * np.maximum(deviations, 0)
            inverse = np.where(deviations < 0, 1 / below, np.maximum(above, 0))
        return 1 / inverse


@dataclass(frozen=True)
class Moment:
    """A workload after so many updates: the estimates of each seed there, and of all
    seeds together.

    The interval of `estimate` is that of the batches drawn; how far the seeds are
    apart, `by_seed` shows. `two_batch_sizes` is None where no larger batches were drawn.
    """

    updates: int
    loss: float
    by_seed: Mapping[int, NoiseEstimate]
    estimate: NoiseEstimate
    layers: Mapping[str, NoiseEstimate]
    tests: Mapping[str, float]
    two_batch_sizes: NoiseScale | None
    cosines: Mapping[int, tuple[float, ...]]


def moments(workload: Mapping) -> list[Moment]:
    """The points of training in order; the batches of all seeds count alike."""
    return [
        _moment(updates, points) for updates, points in by_updates(workload).items()
    ]


def middle(workload: Mapping) -> Moment:
    """The middle point of training, for which the one advice is given: the noise scale
    grows from start to end.
    """
    in_order = moments(workload)
    return in_order[len(in_order) // 2]


def advice(
    workload: Mapping,
    moment: Moment,
    current_batch: int | None = None,
    cost_cap: float | None = None,
) -> Advice:
    """The batch that the noise at that point of training, the step times and the memory
    lead to.

    Raises:
        ValueError: as bench.noise.advisor.advise; and where its steps could not be
        timed.
    """
    if workload.get("why_not_timed"):
        raise ValueError(f"its steps could not be timed: {workload['why_not_timed']}")
    return advise(
        workload["steps"],
        moment.estimate.to_json(),
        workload["limit_bytes"],
        current_batch=(
            workload["train_batch"] if current_batch is None else current_batch
        ),
        cost_cap=cost_cap,
        optimizer_s=_believable(workload.get("optimizer_s"), workload["steps"]),
        largest_fit=workload.get("largest_fit"),
    )


def _believable(optimizer_s: float | None, steps: Sequence[Mapping]) -> float | None:
    """The optimiser's time, where it is less than the whole step at a batch of 1."""
    if optimizer_s is None:
        return None
    is_part = optimizer_s < StepTimes.of(steps).curve().step_s(1)
    return optimizer_s if is_part else None


def by_updates(workload: Mapping) -> dict[int, list[Mapping]]:
    """The stored points of all seeds, by how far training was."""
    grouped: dict[int, list[Mapping]] = {}
    for point in sorted(workload.get("points", ()), key=lambda point: point["updates"]):
        grouped.setdefault(point["updates"], []).append(point)
    return grouped


def estimate_of(points: Sequence[Mapping]) -> NoiseEstimate:
    """The estimate over the batches of all the points."""
    if len(points) == 1:
        return NoiseEstimate.from_json(points[0]["estimate"])
    return _pooled([point["estimate"] for point in points])


def cosines_of(points: Sequence[Mapping]) -> dict[int, tuple[float, ...]]:
    """The cosines of all the points, by batch."""
    by_batch: dict[int, list[float]] = {}
    for point in points:
        for entry in point["cosines"]:
            by_batch.setdefault(entry["batch"], []).extend(entry["cosines"])
    return {batch: tuple(cosines) for batch, cosines in sorted(by_batch.items())}


def _moment(updates: int, points: Sequence[Mapping]) -> Moment:
    count = len(points)
    tests = {
        name: sum(point["tests"][name] for point in points) / count
        for name in points[0]["tests"]
    }
    two = [point["two_batch_sizes"] for point in points if "two_batch_sizes" in point]
    return Moment(
        updates,
        sum(point["loss"] for point in points) / count,
        {point["seed"]: NoiseEstimate.from_json(point["estimate"]) for point in points},
        estimate_of(points),
        {
            layer: _pooled([point["layers"][layer] for point in points])
            for layer in points[0]["layers"]
        },
        tests,
        _mean_scale(two) if two else None,
        cosines_of(points),
    )


def _mean_scale(scales: Sequence[Mapping]) -> NoiseScale:
    return NoiseScale(
        *(
            sum(scale[part] for scale in scales) / len(scales)
            for part in ("trace", "square")
        )
    )


def _pooled(stored: Sequence[Mapping]) -> NoiseEstimate:
    pairs = [NoiseScale(*pair) for estimate in stored for pair in estimate["pairs"]]
    return over_batches(pairs, stored[0]["batch"])
