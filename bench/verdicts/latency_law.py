"""How time grows with the batch: t(B) = launch + cost a sample · B, which may bend
once, where a cache is full.

With an interval for each, the batch from which on throughput is saturated, and the
batches that stand out. On a GPU time grows in waves of thread blocks: where the caller
knows how many fit (Waves), the law may count them instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record
from batchline.bench.verdicts.latency_fit import GOOD_FIT, Fit, Interval, Waves, fitted

LEAST_BATCHES = 4  # a line through fewer has no scatter to judge it by
SATURATED = 0.9  # of the best throughput
_EXACT = 1e-9  # of a batch or a time: what rounding leaves

Key = tuple[str, str, str, str]


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
    """A measured batch whose time is `over` the law as a share (below 0: under it), for
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
    the batches that are no cliffs. `saturation` is None where the last cost is not told
    from 0. There is a law, or `why_none` says why there is none; then the rest is None
    or empty.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    clock: str
    batches: tuple[int, ...]
    launch_s: float | None = None
    launch_interval_s: Interval | None = None
    cost_s: float | None = None
    cost_interval_s: Interval | None = None
    bends: Bend | None = None
    waves: Waves | None = None
    saturation: Saturation | None = None
    misfit: float | None = None
    cliffs: tuple[Cliff, ...] = ()
    why_none: str | None = None


def laws(
    records: Sequence[Record], waves: Mapping[Key, Waves] | None = None
) -> list[LatencyLaw]:
    """One for each variant, scenario, dtype and clock measured; `waves` is by (op,
    variant, scenario, dtype).
    """
    groups: dict[tuple[str, ...], dict[int, float]] = {}
    for record in records:
        if record.status == MEASURED:
            key = (
                record.op,
                record.variant,
                record.scenario,
                record.dtype,
                record.facts["clock"],
            )
            groups.setdefault(key, {})[record.batch] = record.median_s
    return [
        _law(key, dict(sorted(medians_s.items())), (waves or {}).get(key[:4]))
        for key, medians_s in groups.items()
    ]


def _law(
    key: tuple[str, ...], medians_s: Mapping[int, float], waves: Waves | None
) -> LatencyLaw:
    batches = tuple(medians_s)
    if len(batches) < LEAST_BATCHES:
        return LatencyLaw(
            *key,
            batches,
            why_none=f"{len(batches)} of at least {LEAST_BATCHES} batch sizes measured",
        )
    if not all(0 < median_s < math.inf for median_s in medians_s.values()):
        return LatencyLaw(
            *key, batches, why_none="a median is no time above 0: measure again"
        )
    fit = fitted(np.array(batches, float), np.array(list(medians_s.values())), waves)
    worst, misfit = fit.worst
    if misfit > GOOD_FIT:
        return LatencyLaw(
            *key,
            batches,
            why_none=f"the best line, bent or not, misses by {misfit:.0%} "
            f"at B={batches[worst]}",
        )
    bends = (
        None
        if fit.knot is None
        else Bend(batches[fit.knot], float(fit.values[2]), fit.interval(2))
    )
    return LatencyLaw(
        *key,
        batches,
        float(fit.values[0]),
        fit.interval(0),
        float(fit.values[1]),
        fit.interval(1),
        bends,
        fit.waves,
        _saturation(fit),
        misfit,
        tuple(_cliffs(fit, waves)),
    )


def _saturation(fit: Fit) -> Saturation | None:
    """Where B/t(B) = 90% of the best, which it has at the end, or at a bend from which
    on samples cost more.

    On each branch B is a ratio of two sums of coefficients: for a plain line 9 ·
    launch/cost.
    """
    launch, cost, *more = fit.values
    best_s = last = more[0] if more else cost  # a sample
    if fit.interval(len(more) + 1)[0] * fit.batches[-1] <= _EXACT * fit.times_s[-1]:
        return None
    at = fit.bend_at
    if not more:
        top, bottom = (1, 0), (0, 1 / SATURATED - 1)
    elif launch + (cost - last) * at < 0:  # throughput falls towards 1/last
        best_s = launch / at + cost
        top, bottom = (SATURATED * at, 0, 0), (1, (1 - SATURATED) * at, 0)
    elif (
        last > SATURATED * cost and at * (last - SATURATED * cost) >= SATURATED * launch
    ):  # there before the bend
        top, bottom = (SATURATED, 0, 0), (0, -SATURATED, 1)
    else:
        top, bottom = (1, at, -at), (0, 0, 1 / SATURATED - 1)
    batch, (low, high) = fit.ratio(np.array(top), np.array(bottom))
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
    """Rounded up, not for a rounding error, to at least 1; infinity stays."""
    return max(1, math.ceil(batch * (1 - _EXACT))) if math.isfinite(batch) else batch


def _cliffs(fit: Fit, waves: Waves | None) -> Iterator[Cliff]:
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
