"""How the time and the memory of a variant grow with the batch.

Time: t(B) = launch + cost per sample · B, which may bend once, where a cache is full.
With an interval for each, the batch from which on throughput is saturated, and the
batches that stand out. On a GPU time grows in waves of thread blocks: where the caller
knows how many fit (Waves), the law may count them instead.

Memory: m(B) = fixed + per sample · B, and the largest batch that a device then holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from batchline.bench.errors import Missing
from batchline.bench.stats.fits import (
    GOOD_FIT,
    LatencyFit,
    MemoryLaw,
    fit_latency,
    fit_memory,
)
from batchline.bench.stats.intervals import Interval
from batchline.bench.stats.roofline import Waves
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run

LEAST_BATCHES = 4  # a line through fewer has no scatter to judge it by
SATURATED = 0.9  # of the best throughput
_EXACT = 1e-9  # of a batch or a time: what rounding leaves

Key = tuple[str, str, str, str]


class LawKey(NamedTuple):
    """What has one latency law."""

    op: str
    variant: str
    scenario: str
    dtype: str
    clock: str


@dataclass(frozen=True)
class Bend:
    """From `batch` on, a measured one, a sample costs `cost_s` seconds; with its 95%
    interval.
    """

    batch: int
    cost_s: float
    cost_interval_s: Interval


@dataclass(frozen=True)
class Saturation:
    """The least batch whose throughput is 90% of the law's best, and its 95% interval;
    `high` may be infinite.

    By waves the ends are those of a wave.
    """

    batch: int
    low: int
    high: float


@dataclass(frozen=True)
class Cliff:
    """A measured batch whose time is `over` the law as a share (below 0: under it), by
    more than scatter explains.

    `waves` is how many it takes, the last of them not full, and `over` is then over the
    line that has no waves; None where that is not known, or not the reason.
    """

    batch: int
    over: float
    waves: int | None = None


@dataclass(frozen=True)
class LatencyLaw:
    """Seconds: t(B) = launch_s + cost_s · B, or up to the batch from which it `bends`,
    and at the bend's cost beyond.

    By `waves`, B is rounded up to full ones, and cost_s is a sample's in a full one.
    Intervals are of 95%, and not below 0. `misfit` is the worst |measured/law − 1| of
    the batches that are no cliffs. `saturation` is None where the last cost may be 0.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    clock: str
    batches: tuple[int, ...]
    launch_s: float
    launch_interval_s: Interval
    cost_s: float
    cost_interval_s: Interval
    bends: Bend | None
    waves: Waves | None
    saturation: Saturation | None
    misfit: float
    cliffs: tuple[Cliff, ...]

    def seconds_at(self, batch: int) -> float:
        """The time of a batch by the law, which has no cliffs."""
        filled = self._filled(batch)
        if self.bends is None:
            return self.launch_s + self.cost_s * filled
        bend_at = self._filled(self.bends.batch)
        return (
            self.launch_s
            + self.cost_s * min(filled, bend_at)
            + self.bends.cost_s * max(filled - bend_at, 0)
        )

    def _filled(self, batch: int) -> float:
        return self.waves.filled(batch) if self.waves else batch


def latency_laws(
    records: Sequence[Record], waves: Mapping[Key, Waves | Missing] | None = None
) -> dict[LawKey, LatencyLaw | Missing]:
    """A law for each variant, scenario, dtype and clock measured, or why there is none.

    `waves` is by (op, variant, scenario, dtype).
    """
    groups: dict[LawKey, dict[int, float]] = {}
    for record in records:
        if record.status == MEASURED:
            key = LawKey(
                record.op,
                record.variant,
                record.scenario,
                record.dtype,
                record.facts["clock"],
            )
            groups.setdefault(key, {})[record.batch] = record.median_s
    return {
        key: _latency_law(
            key, dict(sorted(medians_s.items())), (waves or {}).get(key[:4]) or None
        )
        for key, medians_s in groups.items()
    }


def launch_waves(run: Run) -> dict[Key, Waves | Missing]:
    """How each variant fills the run's GPU, or why that is not known, by op, variant,
    scenario and dtype.
    """
    waves = {}
    for row in run.waves:
        key = row.op, row.variant, row.scenario, row.dtype
        if row.why_not is not None:
            waves[key] = Missing(row.why_not)
        else:
            waves[key] = Waves(
                row.ctas_per_sample,
                row.multiprocessors,
                row.ctas_per_multiprocessor,
            )
    return waves


def _latency_law(
    key: LawKey, medians_s: Mapping[int, float], waves: Waves | None
) -> LatencyLaw | Missing:
    batches = tuple(medians_s)
    if len(batches) < LEAST_BATCHES:
        return Missing(
            f"{len(batches)} of at least {LEAST_BATCHES} batch sizes measured"
        )
    if not all(0 < median_s < math.inf for median_s in medians_s.values()):
        return Missing("a median is no time above 0: measure again")
    fit = fit_latency(
        np.array(batches, float), np.array(list(medians_s.values())), waves
    )
    worst, misfit = fit.worst
    if misfit > GOOD_FIT:
        return Missing(
            f"the best line, bent or not, misses by {misfit:.0%} at B={batches[worst]}"
        )
    bends = None
    if fit.knot is not None:
        bends = Bend(batches[fit.knot], float(fit.values[2]), fit.interval(2))
    return LatencyLaw(
        *key,
        batches,
        launch_s=float(fit.values[0]),
        launch_interval_s=fit.interval(0),
        cost_s=float(fit.values[1]),
        cost_interval_s=fit.interval(1),
        bends=bends,
        waves=fit.waves,
        saturation=_saturation(fit),
        misfit=misfit,
        cliffs=tuple(_cliffs(fit, waves)),
    )


def _saturation(fit: LatencyFit) -> Saturation | None:
    """Where B/t(B) = 90% of the best, which it has at the end, or at a bend from which
    on samples cost more.

    On each branch B is a ratio of two sums of coefficients: for a plain line 9 ·
    launch/cost.
    """
    launch, cost, *more = fit.values
    best_s = last = more[0] if more else cost  # a sample
    if fit.interval(len(more) + 1).low * fit.batches[-1] <= _EXACT * fit.times_s[-1]:
        return None
    at = fit.bend_at
    if not more:
        top = (1, 0)
        bottom = (0, 1 / SATURATED - 1)
    elif launch + (cost - last) * at < 0:  # throughput falls towards 1/last
        best_s = launch / at + cost
        top = (SATURATED * at, 0, 0)
        bottom = (1, (1 - SATURATED) * at, 0)
    elif (
        last > SATURATED * cost and at * (last - SATURATED * cost) >= SATURATED * launch
    ):  # there before the bend
        top = (SATURATED, 0, 0)
        bottom = (0, -SATURATED, 1)
    else:
        top = (1, at, -at)
        bottom = (0, 0, 1 / SATURATED - 1)
    batch, interval = fit.ratio(np.array(top), np.array(bottom))
    low = interval.low
    high = interval.high
    if fit.waves is None:
        return Saturation(_whole(batch), _whole(low), _whole(high))
    wave = fit.waves.samples
    end, low, high = (
        _whole(batches / wave) * wave if math.isfinite(batches) else batches
        for batches in (batch, low, high)
    )
    return Saturation(
        _whole(SATURATED * float(fit.seconds_at([end])[0]) / best_s),
        math.floor(low - wave) + 1,
        math.floor(high) if math.isfinite(high) else high,
    )


def _whole(batch: float) -> float:
    """Rounded up to a whole batch, at least 1, but not for a rounding error; infinity
    stays.
    """
    return max(1, math.ceil(batch * (1 - _EXACT))) if math.isfinite(batch) else batch


def _cliffs(fit: LatencyFit, waves: Waves | None) -> Iterator[Cliff]:
    for row, (batch, miss) in enumerate(zip(fit.batches, fit.misses)):
        begun = (
            waves.count(batch)
            if waves is not None and waves.filled(batch) > batch > waves.samples
            else None
        )
        if row in fit.jumps:
            yield Cliff(
                int(batch),
                float(miss),
                begun if fit.waves is None and miss > 0 else None,
            )
        elif fit.waves is not None and begun:
            over = float(fit.times_s[row] / fit.seconds_at([batch])[0]) - 1
            if over > fit.clear:
                yield Cliff(int(batch), over, begun)


_GOOD_MEMORY_FIT = 0.05  # a law that misses by more than this share of the largest total predicts nothing


@dataclass(frozen=True)
class MemoryGrowth:
    """How one variant's memory and time grow on one scenario: `peak` above the inputs,
    `inputs`, and both together.

    `batch` is the largest that was measured, and `seconds_a_sample` its median over it.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    peak: MemoryLaw
    inputs: MemoryLaw
    total: MemoryLaw
    batch: int
    seconds_a_sample: float

    def largest_batch(self, room_bytes: float) -> int | None:
        """The largest batch whose inputs, outputs and workspace fit into `room_bytes`;
        None where there is no law.
        """
        return self.total.largest_batch(room_bytes) if self.is_a_line else None

    @property
    def is_a_line(self) -> bool:
        return self.total.misfit <= _GOOD_MEMORY_FIT

    def seconds_at(self, batch: int) -> float:
        """About what a call takes there, at the cost a sample of the largest batch
        measured.
        """
        return self.seconds_a_sample * batch


def memory_growths(records: Sequence[Record]) -> list[MemoryGrowth]:
    """One for each variant and scenario with at least three measured batches."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        if record.status == MEASURED and record.facts.get("peak_bytes") is not None:
            groups.setdefault(
                (record.op, record.variant, record.scenario, record.dtype), []
            ).append(record)
    growths = []
    for key, group in groups.items():
        batches = [record.batch for record in group]
        peaks = [record.facts["peak_bytes"] for record in group]
        inputs = [record.facts["input_bytes"] for record in group]
        laws = [
            fit_memory(batches, sizes)
            for sizes in (peaks, inputs, [sum(both) for both in zip(peaks, inputs)])
        ]
        if None not in laws:
            largest = max(group, key=lambda record: record.batch)
            growths.append(
                MemoryGrowth(
                    *key, *laws, largest.batch, largest.median_s / largest.batch
                )
            )
    return growths


def quickest(growths_: Sequence[MemoryGrowth], room_bytes: float) -> list[MemoryGrowth]:
    """For each op and variant the one whose call at its largest batch would be the
    quickest.
    """
    best: dict[tuple[str, str], tuple[float, MemoryGrowth]] = {}
    for growth in growths_:
        batch = growth.largest_batch(room_bytes)
        if batch:
            item = growth.seconds_at(batch), growth
            key = growth.op, growth.variant
            best[key] = min(best.get(key, item), item, key=lambda pair: pair[0])
    return [growth for _, growth in best.values()]
