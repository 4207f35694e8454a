"""The time that training took to a loss at each batch size, beside the time that the
noise scale predicts.

The law is updates = S_min·(1 + φ/B) (McCandlish et al. 2018, arXiv:1812.06162), and
time = t(B)·updates with the step time t. It is tested with φ as measured from
gradients, of which the sweep gives S_min alone, and with the φ that fits the sweep
best, which is its critical batch size. φ changes during training: a prediction says
where it was measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import stdtrit

from batchline.bench import units
from batchline.bench.noise.step_time import Curve, StepTimes, signal_weight
from batchline.bench.stats import fits
from batchline.bench.stats.noise_scale import BOUNDED, NO_SIGNAL, NoiseEstimate

_SEARCH = 1e3  # times the least and the largest batch: where a fitted φ is looked for
LEAST_BATCHES = 3


@dataclass(frozen=True)
class Spread:
    """The median over seeds, with the least and the most: None where it is a seed that
    did not reach the target.
    """

    median: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Reached:
    """What training took at a batch's best rate; `on_edge`: of the rates tried it was
    the least or the largest.
    """

    batch: int
    learning_rate: float | None
    on_edge: bool
    seeds: int
    reached: int
    updates: Spread
    examples: Spread
    time_s: Spread


@dataclass(frozen=True)
class Predicted:
    """What the law says of a batch; `time_band_s` is from φ at either end of its
    interval, S_min fitted for each.
    """

    batch: int
    updates: float
    time_s: float
    time_band_s: tuple[float, float] | None


@dataclass(frozen=True)
class Prediction:
    """By one φ, None where it is unbounded; then S_min is 0, and `least_updates` with
    it.
    """

    source: str
    noise_scale: float | None
    interval: tuple[float, float | None] | None
    least_updates: float
    batches: tuple[Predicted, ...]


@dataclass(frozen=True)
class TimeToTarget:
    """Measured and predicted, side by side. The law is fitted to the batches at which
    every seed reached the target.
    """

    workload: str
    target_loss: float
    measured: tuple[Reached, ...]
    predictions: tuple[Prediction, ...]

    @property
    def confidence(self) -> float:
        """With which the range of n seeds, the fewest, holds the median: 1 − 2·2⁻ⁿ
        (order statistics).
        """
        return 1 - 2.0 ** (
            1 - min(batch.seeds for batch in self.measured if batch.seeds)
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """For each prediction its worst disagreement, and what following it would have
        cost.
        """
        known = {
            batch.batch: batch.time_s.median
            for batch in self.measured
            if batch.time_s.median is not None
        }
        updates = {batch.batch: batch.updates.median for batch in self.measured}
        quickest = min(known, key=known.get)
        sentences = []
        for prediction in self.predictions:
            times = {
                one.batch: one.time_s
                for one in prediction.batches
                if one.batch in known
            }
            worst = max(
                times, key=lambda batch: abs(math.log(times[batch] / known[batch]))
            )
            said = next(one.updates for one in prediction.batches if one.batch == worst)
            chosen = min(times, key=times.get)
            off = math.exp(abs(math.log(times[worst] / known[worst])))
            sentences.append(
                f"With {prediction.source}, the worst disagreement is {units.ratio(off)}: at B = {worst} the model "
                f"says {units.duration(times[worst])} ({said:,.0f} updates), training took "
                f"{units.duration(known[worst])} ({updates[worst]:,.0f}). Of the batches trained it would choose "
                f"{chosen}, which took {units.ratio(known[chosen] / known[quickest])} the time of the fastest, "
                f"{quickest} ({units.duration(known[quickest])})."
            )
        return tuple(sentences)

    @property
    def of_updates(self) -> str:
        """Each prediction's worst disagreement in updates alone, which the machine has
        no part in.
        """
        taken = {
            batch.batch: batch.updates.median
            for batch in self.measured
            if batch.updates.median
        }
        worst = []
        for prediction in self.predictions:
            off = {
                one.batch: abs(math.log(one.updates / taken[one.batch]))
                for one in prediction.batches
                if one.batch in taken
            }
            batch = max(off, key=off.get)
            worst.append(
                f"{units.ratio(math.exp(off[batch]))} at B = {batch} with {prediction.source}"
            )
        return f"In updates alone, which the machine has no part in, it is {'; '.join(worst)}."

    def to_json(self) -> dict:
        return asdict(self) | {
            "confidence": self.confidence,
            "words": list(self.sentences),
        }


def steps_of(sweep: Mapping) -> list[dict]:
    """The step times of the sweep's own runs, one sample per run: its seconds of
    training over its updates.

    Raises:
        ValueError: where the machine was busy while they were taken.
    """
    if sweep.get("why_busy"):
        raise ValueError(
            f"the machine was busy while the sweep trained, so its times are none: {sweep['why_busy']}"
        )
    samples_s: dict[int, list[float]] = {}
    for run in sweep["runs"]:
        updates = run["curve"]["updates"]
        seconds = run["curve"]["train_s"]
        if updates and updates[-1] and seconds[-1]:
            samples_s.setdefault(run["batch"], []).append(seconds[-1] / updates[-1])
    return [
        {"batch": batch, "samples_s": samples}
        for batch, samples in sorted(samples_s.items())
    ]


def compare(
    sweep: Mapping,
    steps: Sequence[Mapping],
    estimates: Mapping[str, Mapping] | None = None,
    target_loss: float | None = None,
) -> TimeToTarget:
    """Each batch's updates, examples and seconds to the target at its best learning
    rate, and the predictions.

    Args:
        sweep: the record of bench/noise/experiments/sweep.py.
        steps: [{"batch", "samples_s"}, …], the step times that the prediction uses.
        estimates: what NoiseEstimate.to_json gives, by where in training it was
            measured ("after 50 updates"), a prediction for each that has a signal; the
            fitted one is always there.
        target_loss: of training; without it the one that the sweep was tuned for.

    Raises:
        ValueError: where fewer than three batch sizes reached the target with every
        seed.
    """
    target = sweep["grid"]["target_loss"] if target_loss is None else target_loss
    curve = StepTimes.of(steps).curve()
    batches = fits.batches(sweep)
    measured = tuple(
        _reached(sweep, batch, fits.best_rate(sweep, batch, target), target)
        for batch in batches
    )
    logs = {
        batch.batch: _log_updates(sweep, batch.batch, batch.learning_rate, target)
        for batch in measured
        if batch.reached == batch.seeds > 0
    }
    if len(logs) < LEAST_BATCHES:
        raise ValueError(
            f"a law of updates needs {LEAST_BATCHES} batch sizes at which every seed reaches a loss of "
            f"{target}, and {len(logs)} do: train longer, or aim at a higher loss"
        )
    predictions = []
    for where, stored in (estimates or {}).items():
        noise = NoiseEstimate.from_json(dict(stored))
        if noise.answer != NO_SIGNAL:
            predictions.append(
                _predict(
                    f"the noise scale measured {where}",
                    noise.scale.simple if noise.answer == BOUNDED else math.inf,
                    (noise.simple.low, noise.simple.high),
                    logs,
                    batches,
                    curve,
                )
            )
    predictions.append(
        _predict(
            "the critical batch size fitted to this sweep",
            _fit(logs),
            _jackknife(logs),
            logs,
            batches,
            curve,
        )
    )
    return TimeToTarget(sweep["workload"], target, measured, tuple(predictions))


def _reached(sweep: Mapping, batch: int, rate: float | None, target: float) -> Reached:
    runs = fits.runs(sweep, batch, rate)
    reaches = [fits.first_reach(run, target) or (math.inf, math.inf) for run in runs]
    updates, seconds = ([reach[part] for reach in reaches] for part in (0, 1))
    return Reached(
        batch,
        rate,
        rate is not None and fits.on_edge(sweep, batch, rate),
        len(runs),
        sum(map(math.isfinite, updates)),
        _spread(updates),
        _spread([batch * count for count in updates]),
        _spread(seconds),
    )


def _spread(values: Sequence[float]) -> Spread:
    if not values:
        return Spread(None, None, None)
    ends = (float(np.median(values)), min(values), max(values))
    return Spread(*(value if math.isfinite(value) else None for value in ends))


def _log_updates(
    sweep: Mapping, batch: int, rate: float, target: float
) -> dict[int, float]:
    return {
        run["seed"]: math.log(fits.first_reach(run, target)[0])
        for run in fits.runs(sweep, batch, rate)
    }


def _shape(batch: float, noise_scale: float) -> float:
    """log of (1 + φ/B)/(1 + φ): updates over those at a batch of 1, where an unbounded
    φ has one too.
    """
    weight = signal_weight(noise_scale)
    return math.log(weight + (1 - weight) / batch)


def _residuals(
    logs: Mapping[int, Mapping[int, float]], noise_scale: float
) -> np.ndarray:
    return np.array(
        [
            value - _shape(batch, noise_scale)
            for batch, seeds in logs.items()
            for value in seeds.values()
        ]
    )


def _fit(logs: Mapping[int, Mapping[int, float]]) -> float:
    """The φ of the least squares of log updates, S_min free."""
    ends = math.log(min(logs) / _SEARCH), math.log(max(logs) * _SEARCH)
    minimum = minimize_scalar(
        lambda log: _residuals(logs, math.exp(log)).var(),
        bounds=ends,
        method="bounded",
        options={"xatol": 1e-6},
    )
    return math.exp(minimum.x)


def _jackknife(logs: Mapping[int, Mapping[int, float]]) -> tuple[float, float] | None:
    """The fitted φ's 95% interval, by leaving each seed out in turn: Student's t on the
    pseudo-values of log φ.
    """
    seeds = sorted({seed for of_batch in logs.values() for seed in of_batch})
    if len(seeds) < 2:
        return None
    whole = math.log(_fit(logs))
    without = [
        {
            batch: {one: value for one, value in of_batch.items() if one != seed}
            for batch, of_batch in logs.items()
        }
        for seed in seeds
    ]
    pseudo = np.array(
        [
            len(seeds) * whole - (len(seeds) - 1) * math.log(_fit(left))
            for left in without
        ]
    )
    reach = (
        float(stdtrit(len(seeds) - 1, 0.975))
        * pseudo.std(ddof=1)
        / math.sqrt(len(seeds))
    )
    return math.exp(whole - reach), math.exp(whole + reach)


def _predict(
    source: str,
    noise_scale: float,
    interval: tuple[float, float] | None,
    logs: Mapping[int, Mapping[int, float]],
    batches: Sequence[int],
    curve: Curve,
) -> Prediction:
    def updates(batch: int, scale: float) -> float:
        return math.exp(_residuals(logs, scale).mean() + _shape(batch, scale))

    def time_s(batch: int, scale: float) -> float:
        return curve.step_s(batch) * updates(batch, scale)

    least = math.exp(_residuals(logs, noise_scale).mean()) * float(
        signal_weight(noise_scale)
    )
    return Prediction(
        source,
        noise_scale if math.isfinite(noise_scale) else None,
        interval and (interval[0], interval[1] if math.isfinite(interval[1]) else None),
        least,
        tuple(
            Predicted(
                batch,
                updates(batch, noise_scale),
                time_s(batch, noise_scale),
                interval and tuple(sorted(time_s(batch, end) for end in interval)),
            )
            for batch in batches
        ),
    )
