"""What the page's plots of a run draw: curves over the batch, each point with what it
says when it is pointed at.

Times in seconds, memory in MiB, shares and speed-ups as ratios; None where a point has
none, so that JSON can hold it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batchline.bench import units
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.report.escaping import one_line
from batchline.bench.report.tables import unique
from batchline.bench.stats import roofline
from batchline.bench.verdicts import ranking
from batchline.bench.verdicts.ranking import opponents

QUANTITIES = {
    "latency": "Latency, median and quartiles (dotted: the least that the ceilings allow)",
    "speedup": "Speed-up over PyTorch's fastest",
    "memory": "Peak memory above the inputs",
    "share": "Share reached of the ceiling that binds",
}
_MIB = 2**20


def ops(run: Run) -> dict[str, dict]:
    """Op → {"variants": all that have a time, the baseline first; "problems": "scenario
    · dtype" → its curves}.

    An op of which nothing was timed has no entry.
    """
    found: dict[str, dict] = {}
    for (op, scenario, dtype), records in run.groups().items():
        timed = [record for record in records if record.status == MEASURED]
        if timed:
            entry = found.setdefault(op, {"variants": [], "problems": {}})
            entry["problems"][problem_name(scenario, dtype)] = _problem(
                timed, run.about["ceilings"]
            )
            entry["variants"] = unique(
                [*entry["variants"], *(record.variant for record in timed)]
            )
    for op, entry in found.items():
        entry["variants"].sort(key=lambda name: name != run.about["baselines"][op])
        entry["variants"] = [one_line(name) for name in entry["variants"]]
    return found


def problem_name(scenario: str, dtype: str) -> str:
    """How the page calls one scenario and dtype of an op."""
    return one_line(f"{scenario} · {dtype}")


def _problem(timed: Sequence[Record], ceilings: Mapping | None) -> dict:
    """{"batches", "curves": [{"name", "batch", "text", "low", "high", and each of
    QUANTITIES}], "floor"}.

    `low` and `high` are the quartiles of the latency; `floor` is the least time that
    the ceilings allow, by batch.
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
            {"name": one_line(variant)}
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


def _point(record: Record, base_s: float | None, ceilings: Mapping | None) -> dict:
    low, high = record.quartiles_s
    peak = record.facts.get("peak_bytes")
    speed_up = base_s / record.median_s if base_s and ranking.may_win(record) else None
    return {
        "batch": record.batch,
        "text": "\n".join(_words(record, speed_up, ceilings)),
        "latency": record.median_s,
        "low": low,
        "high": high,
        "speedup": speed_up,
        "memory": None if peak is None else peak / _MIB,
        "share": _bound(record, ceilings).share if ceilings else None,
    }


def _words(
    record: Record, speed_up: float | None, ceilings: Mapping | None
) -> list[str]:
    low, high = map(units.duration, record.quartiles_s)
    calls = f" of {record.iterations} calls" if record.iterations > 1 else ""
    precision = record.facts.get("precision")
    known = f", known to ±{precision:.1%} (95%)" if precision is not None else ""
    words = [
        f"{one_line(record.variant)}, B = {record.batch}",
        f"median {units.duration(record.median_s)}{known}",
        f"quartiles {low} to {high}",
        f"{len(record.samples_s)} samples{calls}, {record.facts['clock']} clock",
    ]
    if why := ranking.why_unranked(record):
        words.append(f"not ranked: {why}")
    if speed_up is not None:
        words.append(f"{units.ratio(speed_up)} as fast as PyTorch's fastest")
    peak = record.facts.get("peak_bytes")
    words.append(
        f"peak memory {units.size(peak)}" if peak is not None else "memory n/a"
    )
    if ceilings:
        bound = _bound(record, ceilings)
        words.append(
            f"{bound.share:.0%} of the {bound.regime} ceiling, {units.duration(bound.least_s)}"
        )
    return words


def _bound(record: Record, ceilings: Mapping) -> roofline.Bound:
    return roofline.bound(
        record.facts, record.dtype, record.facts["clock"], record.median_s, ceilings
    )
