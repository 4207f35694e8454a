"""What the page's plots of training draw: the noise, the advisor's three curves, and
the time to a loss.

A plot is {"x", "y": {"title", "unit", "log"}, "series": [{"name", "x", "y", "low",
"high", "text", "line"}], "marks": [{"x", "low", "high", "text"}]}; `low` and `high` are
the ends of an interval, None where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from batchline.bench import units
from batchline.bench.noise.advice import Advice, span
from batchline.bench.noise.stored_survey import moments
from batchline.bench.noise.time_to_target import TimeToTarget

_MIB = 2**20


def noise(workloads: Mapping[str, Mapping]) -> dict:
    """B_simple over the updates, a curve a workload; a point without an upper end is at
    its lower bound.
    """
    series = []
    for name, workload in workloads.items():
        known = [
            moment for moment in moments(workload) if moment.estimate.simple.low > 0
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


def advice(found: Advice) -> dict[str, dict]:
    """ "time", "step" and "memory" over the batch, the advised batch marked; only those
    that have a point.
    """
    marks = (
        []
        if found.best_batch is None
        else [
            {
                "x": found.best_batch,
                "low": found.interval[0],
                "high": found.interval[1] or max(point.batch for point in found.curve),
                "text": f"train at {found.best_batch:,} ({span(found.interval)})",
            }
        ]
    )
    predicted = [point for point in found.curve if point.time_relative is not None]
    known = [point for point in found.curve if point.peak_bytes is not None]
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
        _over("a step", found.curve, lambda point: point.step_s, units.duration),
        _over(
            "a sample",
            found.curve,
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
