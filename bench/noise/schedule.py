"""A batch size that grows with the noise scale over training: what it saves by the
advisor's own model, which is a prediction and nothing that was trained.

Merrill et al. 2025, arXiv:2505.23971, start small and grow the batch as the critical
batch size does. Here it is chosen for the stretch between two looks at the noise, whose
φ is the geometric mean of both.

An update at batch B is worth 1/(1 + φ/B) of one without noise (McCandlish et al. 2018,
arXiv:1812.06162). A stretch that took u updates at batch B₀ so needs p = u/(1 + φ/B₀)
updates without noise, and p·(1 + φ/B) at batch B, in t(B) each. Of all batches that
never shrink, those with the least sum of time are taken.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.noise import advisor
from batchline.bench.noise.advisor import Moment
from batchline.bench.noise.step_time import Curve, StepTimes, signal_weight
from batchline.bench.stats.noise_scale import BOUNDED

_LEAST_SAVED = 0.01


@dataclass(frozen=True)
class Stretch:
    """From one look at the noise to the next: from the loss `loss` on, `updates` at
    `batch`.
    """

    loss: float
    noise_scale: float
    batch: int
    updates: float
    time_s: float

    @property
    def examples(self) -> float:
        return self.updates * self.batch


@dataclass(frozen=True)
class Schedule:
    """The batch of each stretch, beside the one `constant` batch of the least time."""

    stretches: tuple[Stretch, ...]
    constant: int
    constant_s: float
    constant_examples: float

    @property
    def time_saved(self) -> float:
        """As a share of the constant batch's time."""
        return 1 - sum(one.time_s for one in self.stretches) / self.constant_s

    @property
    def examples_saved(self) -> float:
        return 1 - sum(one.examples for one in self.stretches) / self.constant_examples

    @property
    def is_worth_it(self) -> bool:
        return self.time_saved >= _LEAST_SAVED

    @property
    def sentence(self) -> str:
        if not self.is_worth_it:
            return (
                f"Prediction: growing the batch with the noise saves less than {_LEAST_SAVED:.0%} of the time of "
                f"batch {self.constant:,} throughout."
            )
        batches = [one.batch for one in self.stretches]
        steps = " → ".join(f"{batch:,}" for batch, _ in itertools.groupby(batches))
        return (
            f"Prediction: growing the batch with the noise, {steps}, saves {self.time_saved:.1%} of the time and "
            f"{self.examples_saved:.1%} of the examples of the best constant batch, {self.constant:,}, over the "
            "training that was looked at."
        )


def why_none(moments: Sequence[Moment]) -> str | None:
    """Why there is no schedule; None where the noise has grown beyond doubt."""
    bounded = [moment for moment in moments if moment.estimate.answer == BOUNDED]
    if len(bounded) < 2:
        return "the noise scale is known at fewer than two points of training"
    first, last = bounded[0].estimate, bounded[-1].estimate
    if last.simple.low <= first.simple.high:
        return (
            f"the noise scale has not grown beyond doubt ({first.text()} after {bounded[0].updates} updates, "
            f"{last.text()} after {bounded[-1].updates})"
        )
    return None


def schedule(workload: Mapping, largest: float = math.inf) -> Schedule | None:
    """The schedule over the points of training of a workload
    (bench.noise.experiments.survey); None where `why_none` says why.

    Args:
        largest: the largest batch that fits.
    """
    moments = advisor.moments(workload)
    if why_none(moments):
        return None
    curve = StepTimes.of(workload["steps"]).curve()
    bounded = [moment for moment in moments if moment.estimate.answer == BOUNDED]
    trained = workload.get("trained_batch", workload["train_batch"])
    scales = []
    updates = []
    for before, after in itertools.pairwise(bounded):
        ends = (before.estimate.scale.simple, after.estimate.scale.simple)
        scale = math.sqrt(ends[0] * ends[1])
        taken = after.updates - before.updates
        scales.append(scale)
        updates.append(taken / (1 + scale / trained))
    candidates = _candidates(curve, scales, largest)
    if not candidates:
        return None
    times = [
        {batch: _time_s(curve, need, scale, batch) for batch in candidates}
        for need, scale in zip(updates, scales)
    ]
    constant = min(candidates, key=lambda batch: sum(one[batch] for one in times))
    stretches = tuple(
        Stretch(
            moment.loss,
            scale,
            batch,
            need * (1 + scale / batch),
            of_batch[batch],
        )
        for moment, scale, need, batch, of_batch in zip(
            bounded, scales, updates, _growing(times, candidates), times
        )
    )
    return Schedule(
        stretches,
        constant,
        sum(one[constant] for one in times),
        sum(need * (constant + scale) for need, scale in zip(updates, scales)),
    )


def _candidates(curve: Curve, scales: Sequence[float], largest: float) -> list[int]:
    """The best batch of each stretch, and those that were timed, which fit."""
    best = [float(curve.fastest(signal_weight(scale), largest)) for scale in scales]
    timed = curve.ends[:-1].tolist()
    return sorted(
        {
            int(batch)
            for batch in (*best, *timed)
            if math.isfinite(batch) and batch <= largest
        }
    )


def _time_s(curve: Curve, need: float, scale: float, batch: int) -> float:
    return need * (1 + scale / batch) * curve.step_s(batch)


def _growing(
    times: Sequence[Mapping[int, float]], candidates: Sequence[int]
) -> list[int]:
    """The batch of each stretch with the least sum of times, none smaller than the one
    before: by dynamic programming over the batch of the last.
    """
    best = {batch: (times[0][batch], [batch]) for batch in candidates}
    for of_batch in times[1:]:
        best = {batch: _extended(best, batch, of_batch[batch]) for batch in candidates}
    return min(best.values(), key=lambda way: way[0])[1]


def _extended(
    best: Mapping[int, tuple[float, list[int]]], batch: int, time_s: float
) -> tuple[float, list[int]]:
    before = min(
        (way for last, way in best.items() if last <= batch), key=lambda way: way[0]
    )
    return before[0] + time_s, [*before[1], batch]
