"""The data that the page's plots are drawn from: latency and memory of an op over the
batch, and the plots of training. Each point has the text that it shows when it is
pointed at.

Times in seconds, memory in MiB, shares and speed-ups as ratios; None where a point has
none, so that JSON can hold it. A plot of training is {"x", "y": {"title", "unit",
"log"}, "series": [{"name", "x", "y", "low", "high", "text", "line"}], "marks": [{"x",
"low", "high", "text"}]}; `low` and `high` are the ends of an interval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from batchline.bench import units
from batchline.bench.errors import Missing
from batchline.bench.noise.advice import Advice, span
from batchline.bench.noise.advisor import Moment
from batchline.bench.noise.rank_scaling import Scaling
from batchline.bench.noise.time_to_target import TimeToTarget
from batchline.bench.report.document import unique
from batchline.bench.stats import roofline
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.texts import one_line
from batchline.bench.verdicts import ranking
from batchline.bench.verdicts.laws import LatencyLaw, LawKey
from batchline.bench.verdicts.ranking import opponents

QUANTITIES = {
    "latency": "Latency, median and quartiles (thin: its law; dotted: the least that the ceilings allow)",
    "speedup": "Speed-up over PyTorch's fastest",
    "memory": "Peak memory above the inputs",
    "share": "Share reached of the ceiling that binds",
}


_MIB = 2**20
_LAW_STEPS = 24  # of a law's line, which is curved where axes are logarithmic


Laws = Mapping[LawKey, LatencyLaw | Missing]


def curves(run: Run, laws: Laws = MappingProxyType({})) -> dict[str, dict]:
    """Op → {"variants": all that have a time, the baseline first; "problems": "scenario
    · dtype" → its curves}. `laws` are how the times grow (bench.verdicts.laws).

    An op of which nothing was timed has no entry.
    """
    by_op: dict[str, dict] = {}
    for (op, scenario, dtype), records in run.groups().items():
        timed = [record for record in records if record.status == MEASURED]
        if timed:
            entry = by_op.setdefault(op, {"variants": [], "problems": {}})
            entry["problems"][problem_name(scenario, dtype)] = _problem(
                timed, run.ceilings, laws
            )
            entry["variants"] = unique(
                [*entry["variants"], *(record.variant for record in timed)]
            )
    for op, entry in by_op.items():
        entry["variants"].sort(key=lambda name: name != run.baselines[op])
        entry["variants"] = [one_line(name) for name in entry["variants"]]
    return by_op


def problem_name(scenario: str, dtype: str) -> str:
    """How the page calls one scenario and dtype of an op."""
    return one_line(f"{scenario} · {dtype}")


def _problem(timed: Sequence[Record], ceilings: Mapping | None, laws: Laws) -> dict:
    """{"batches", "curves": [{"name", "batch", "text", "low", "high", "law", and each
    of QUANTITIES}], "floor"}.

    `low` and `high` are the quartiles of the latency, `law` is {"x", "y"} of its law or
    None; `floor` is the least time that the ceilings allow, by batch.
    """
    base = {
        problem[-1]: record.median_s for problem, record in opponents(timed).items()
    }
    curves, floors = [], {}
    for variant in unique(record.variant for record in timed):
        curve = sorted(
            (record for record in timed if record.variant == variant),
            key=lambda record: record.batch,
        )
        points = [_point(record, base.get(record.batch), ceilings) for record in curve]
        curves.append(
            {"name": one_line(variant), "law": _law(curve[0], laws)}
            | {name: [point[name] for point in points] for name in points[0]}
        )
        for record in curve:
            if ceilings:
                least_s = _bound(record, ceilings).least_s
                floors[record.batch] = min(floors.get(record.batch, least_s), least_s)
    batches = sorted({record.batch for record in timed})
    return {
        "batches": batches,
        "curves": curves,
        "floor": [floors.get(batch) for batch in batches],
    }


def _law(record: Record, laws: Laws) -> dict | None:
    """The law of a record's curve over the batches that it was measured at."""
    law = laws.get(
        LawKey(
            record.op,
            record.variant,
            record.scenario,
            record.dtype,
            record.facts["clock"],
        )
    )
    if not law:
        return None
    first, last = law.batches[0], law.batches[-1]
    batches = unique(
        round(first * (last / first) ** (step / _LAW_STEPS))
        for step in range(_LAW_STEPS + 1)
    )
    return {"x": batches, "y": [law.seconds_at(batch) for batch in batches]}


def _point(record: Record, base_s: float | None, ceilings: Mapping | None) -> dict:
    low, high = record.quartiles_s
    peak = record.facts.get("peak_bytes")
    speed_up = base_s / record.median_s if base_s and ranking.may_win(record) else None
    return {
        "batch": record.batch,
        "text": "\n".join(_describe(record, speed_up, ceilings)),
        "latency": record.median_s,
        "low": low,
        "high": high,
        "speedup": speed_up,
        "memory": None if peak is None else peak / _MIB,
        "share": _bound(record, ceilings).share if ceilings else None,
    }


def _describe(
    record: Record, speed_up: float | None, ceilings: Mapping | None
) -> list[str]:
    low, high = map(units.duration, record.quartiles_s)
    calls = f" of {record.iterations} calls" if record.iterations > 1 else ""
    precision = record.facts.get("precision")
    known = f", known to ±{precision:.1%} (95%)" if precision is not None else ""
    lines = [
        f"{one_line(record.variant)}, B = {record.batch}",
        f"median {units.duration(record.median_s)}{known}",
        f"quartiles {low} to {high}",
        f"{len(record.samples_s)} samples{calls}, {record.facts['clock']} clock",
    ]
    if why := ranking.why_unranked(record):
        lines.append(f"not ranked: {why}")
    if speed_up is not None:
        lines.append(f"{units.ratio(speed_up)} as fast as PyTorch's fastest")
    peak = record.facts.get("peak_bytes")
    lines.append(
        f"peak memory {units.size(peak)}" if peak is not None else "memory n/a"
    )
    if ceilings:
        bound = _bound(record, ceilings)
        lines.append(
            f"{bound.share:.0%} of the {bound.regime} ceiling, {units.duration(bound.least_s)}"
        )
    return lines


def _bound(record: Record, ceilings: Mapping) -> roofline.Bound:
    return roofline.bound(
        record.facts, record.dtype, record.facts["clock"], record.median_s, ceilings
    )


def noise(workloads: Mapping[str, Sequence[Moment]]) -> dict:
    """B_simple over the updates, one curve per workload; a point without an upper end is at
    its lower bound.
    """
    series = []
    for name, moments in workloads.items():
        known = [
            moment for moment in moments if moment.estimate.simple.low > 0
        ]  # of the rest nothing is
        bands = [
            (moment.estimate.simple.low, moment.estimate.simple.high)
            for moment in known
        ]
        series.append(
            _series(
                name,
                [moment.updates for moment in known],
                [
                    moment.estimate.scale.simple if math.isfinite(high) else low
                    for moment, (low, high) in zip(known, bands)
                ],
                [
                    f"{name}, after {moment.updates} updates\n"
                    f"B_simple {moment.estimate.text()}\nloss {moment.loss:.3g}"
                    for moment in known
                ],
                bands,
            )
        )
    return _plot(_axis("updates", log=False), _axis("B_simple, samples"), series)


def advice(chosen: Advice) -> dict[str, dict]:
    """ "time", "step" and "memory" over the batch, the advised batch marked; only those
    that have a point.
    """
    marks = (
        []
        if chosen.best_batch is None
        else [
            {
                "x": chosen.best_batch,
                "low": chosen.interval[0],
                "high": chosen.interval[1]
                or max(point.batch for point in chosen.curve),
                "text": f"train at {chosen.best_batch:,} ({span(chosen.interval)})",
            }
        ]
    )
    predicted = [point for point in chosen.curve if point.time_relative is not None]
    known = [point for point in chosen.curve if point.peak_bytes is not None]
    batch = _axis("batch")
    time = [
        _over(
            "time to a loss",
            predicted,
            lambda point: point.time_relative,
            units.ratio,
            [point.time_band or (None, None) for point in predicted],
        ),
        _over(
            "examples", predicted, lambda point: point.examples_relative, units.ratio
        ),
    ]
    step = [
        _over("a step", chosen.curve, lambda point: point.step_s, units.duration),
        _over(
            "a sample",
            chosen.curve,
            lambda point: point.step_s / point.batch,
            units.duration,
        ),
    ]
    memory = [
        _over(
            "peak memory",
            known,
            lambda point: point.peak_bytes / _MIB,
            lambda mebibytes: units.size(mebibytes * _MIB),
        )
    ]
    plots = {
        "time": _plot(batch, _axis("relative to the best batch", "ratio"), time, marks),
        "step": _plot(batch, _axis("time", "duration"), step, marks),
        "memory": _plot(batch, _axis("MiB", log=False), memory, marks),
    }
    return {
        name: plot
        for name, plot in plots.items()
        if any(curve["x"] for curve in plot["series"])
    }


def time_to_target(result: TimeToTarget) -> dict:
    """The seeds' median and range at each batch, and each prediction with φ's band."""
    reached = [one for one in result.measured if one.time_s.median is not None]
    series = [
        _series(
            "measured",
            [one.batch for one in reached],
            [one.time_s.median for one in reached],
            [
                f"measured, B = {one.batch}\n{units.duration(one.time_s.median)}, "
                f"{one.reached} of {one.seeds} seeds reached the loss"
                for one in reached
            ],
            [(one.time_s.low, one.time_s.high) for one in reached],
            line=False,
        )
    ]
    series += [
        _series(
            prediction.source,
            [one.batch for one in prediction.batches],
            [one.time_s for one in prediction.batches],
            [
                f"predicted, {prediction.source}, B = {one.batch}\n{units.duration(one.time_s)}, "
                f"{one.updates:,.0f} updates"
                for one in prediction.batches
            ],
            [one.time_band_s or (None, None) for one in prediction.batches],
        )
        for prediction in result.predictions
    ]
    return _plot(
        _axis("batch"),
        _axis(f"time to a loss of {result.target_loss:g}", "duration"),
        series,
    )


def ranks(result: Scaling) -> dict[int, dict]:
    """By how many ranks: the time of each way and wire over the samples of a rank, with
    the quartiles.
    """
    plots = {}
    for count in result.ranks:
        series = [
            _way(f"{way} {wire}", result.quartiles_s[way, wire], medians_s, count)
            for (way, wire), medians_s in result.medians_s.items()
        ]
        timed = [one for one in series if one["x"]]
        if timed:
            axes = _axis("samples of each rank"), _axis("time", "duration")
            plots[count] = _plot(*axes, timed)
    return plots


def _way(
    name: str,
    quartiles_s: Mapping[tuple[int, int], tuple[float, float]],
    medians_s: Mapping[tuple[int, int], float],
    count: int,
) -> dict:
    """The series of one way and wire on so many ranks."""
    places = sorted(at for at in medians_s if at[0] == count)
    bands = [quartiles_s[at] for at in places]
    return _series(
        one_line(name),
        [batch for _, batch in places],
        [medians_s[at] for at in places],
        [
            f"{one_line(name)}, B = {at[1]}\nmedian {units.duration(medians_s[at])}\n"
            "quartiles {} to {}".format(*map(units.duration, band))
            for at, band in zip(places, bands)
        ],
        bands,
    )


def _over(
    name: str,
    points: Sequence,
    value: Callable,
    unit: Callable[[float], str],
    bands: Sequence[tuple] | None = None,
) -> dict:
    return _series(
        name,
        [point.batch for point in points],
        [value(point) for point in points],
        [
            f"{name}, B = {point.batch}\n{unit(value(point))}{_band(band, unit)}"
            for point, band in zip(points, bands or [(None, None)] * len(points))
        ],
        bands,
    )


def _band(band: tuple, unit: Callable[[float], str]) -> str:
    return (
        ""
        if None in band
        else "\n{} to {} with φ at its ends".format(*map(unit, sorted(band)))
    )


def _series(
    name: str,
    x: Sequence,
    y: Sequence,
    text: Sequence[str],
    bands: Sequence[tuple] | None = None,
    line: bool = True,
) -> dict:
    ends = [
        [None if end is None or not math.isfinite(end) else end for end in band]
        for band in bands or ()
    ]
    ends = [[min(band), max(band)] if None not in band else band for band in ends]
    return {
        "name": name,
        "x": list(x),
        "y": list(y),
        "text": list(text),
        "line": line,
        "low": [low for low, _ in ends],
        "high": [high for _, high in ends],
    }


def _axis(title: str, unit: str = "number", log: bool = True) -> dict:
    return {"title": title, "unit": unit, "log": log}


def _plot(x: dict, y: dict, series: Sequence[dict], marks: Sequence[dict] = ()) -> dict:
    return {"x": x, "y": y, "series": list(series), "marks": list(marks)}
