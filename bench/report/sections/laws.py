"""How time and memory grow with the batch: the law of each variant, beside what an
empty launch and the roofline say, and the batch at which the device is full.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.errors import Missing
from batchline.bench.report.document import Part, Section, Text, table, unique
from batchline.bench.report.findings import Findings
from batchline.bench.stats import roofline
from batchline.bench.stats.fits import MemoryLaw
from batchline.bench.stats.intervals import Interval
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts.laws import (
    SATURATED,
    Cliff,
    Key,
    LatencyLaw,
    LawKey,
    MemoryGrowth,
    Saturation,
)

_LATENCY_NOTE = (
    "t(B) = launch floor + cost per sample · B, by least squares of relative errors over the batches measured, with "
    "95% intervals. A second slope, or a batch that stands out, is given only if the times refute the line without "
    f"it. Throughput is saturated from the batch on at which it is {SATURATED:.0%} of the law's best. The misfit "
    "is the worst batch's, as a share of the law, of those that don't stand out. The floor per sample is the "
    "roofline's at the largest batch, and the memory per sample is inputs and peak by the memory law."
)

_LATENCY_COLUMNS = (
    "variant",
    "scenario",
    "launch floor",
    "over an empty launch",
    "cost per sample",
    "floor per sample",
    "memory per sample",
    "second slope",
    "saturated from",
    "misfit",
    "stands out",
)
_PAGES_BYTES = 8192  # what a resident set rounds away


def latency(run: Run, findings: Findings) -> Section | None:
    """One row per law, then why the other variants have none; None where nothing was
    timed.
    """
    if not findings.latency_laws:
        return None
    several_dtypes = len(unique(key.dtype for key in findings.latency_laws)) > 1
    rows = _latency_rows(run, findings, several_dtypes)
    parts: list[Part] = []
    if rows:
        parts += [Text(_LATENCY_NOTE), table(_LATENCY_COLUMNS, rows)]
    without = [
        [variant, why, ", ".join(scenarios)]
        for (variant, why), scenarios in _without_law(
            findings.latency_laws, several_dtypes
        ).items()
    ]
    if without:
        parts.append(table(["variant", "no law", "scenarios"], without))
    unknown = unique(
        f"{op}/{variant}: {waves.reason}"
        for (op, variant, *_), waves in findings.launch_waves.items()
        if isinstance(waves, Missing)
    )
    if unknown:
        parts.append(Text(f"No waves are known of {'; '.join(unknown)}."))
    return Section("latency-law", "Latency over the batch", tuple(parts))


def _latency_rows(
    run: Run, findings: Findings, several_dtypes: bool
) -> list[list[str]]:
    ceilings = run.ceilings or {}
    largest = _largest_measured(run.records)
    rows = []
    for law in filter(None, findings.latency_laws.values()):
        key = law.op, law.variant, law.scenario, law.dtype
        rows.append(
            [
                f"{law.op}/{law.variant}",
                _scenario(law, several_dtypes),
                *_coefficients(law, ceilings),
                _floor(largest[key], law, ceilings),
                _memory_a_sample(findings.memory_growths.get(key)),
                _second_slope(law),
                _saturated(law),
                f"{law.misfit:.1%}",
                ", ".join(_stands_out(cliff, law) for cliff in law.cliffs),
            ]
        )
    return rows


def describe_law(law: LatencyLaw | Missing) -> str:
    """One law in a sentence: floor, cost per sample, where it bends, from where on it is
    saturated, what stands out.
    """
    if isinstance(law, Missing):
        return f"no law: {law.reason}"
    parts = [
        f"{_with_interval(law.launch_s, law.launch_interval_s)} + "
        f"{_with_interval(law.cost_s, law.cost_interval_s)} per sample",
        _second_slope(law),
        f"saturated from B={_saturated(law)}" if law.saturation else "not seen to grow",
        ", ".join(_stands_out(cliff, law) for cliff in law.cliffs),
    ]
    return "; ".join(filter(None, parts))


def _largest_measured(records: Sequence[Record]) -> dict[Key, Record]:
    largest: dict[Key, Record] = {}
    for record in records:
        key = record.op, record.variant, record.scenario, record.dtype
        if record.status == MEASURED and (
            key not in largest or record.batch > largest[key].batch
        ):
            largest[key] = record
    return largest


def _without_law(
    laws: Mapping[LawKey, LatencyLaw | Missing], several_dtypes: bool
) -> dict[tuple[str, str], list[str]]:
    """The scenarios without a law, by variant and reason."""
    scenarios: dict[tuple[str, str], list[str]] = {}
    for key, law in laws.items():
        if isinstance(law, Missing):
            scenarios.setdefault((f"{key.op}/{key.variant}", law.reason), []).append(
                _scenario(key, several_dtypes)
            )
    return scenarios


def _scenario(law: LatencyLaw | LawKey | MemoryGrowth, several_dtypes: bool) -> str:
    return f"{law.scenario} · {law.dtype}" if several_dtypes else law.scenario


def _coefficients(law: LatencyLaw, ceilings: Mapping) -> Iterator[str]:
    yield _with_interval(law.launch_s, law.launch_interval_s)
    empty_s = ceilings.get("launch_s", {}).get(law.clock)
    yield (
        f"{_over(empty_s, law)} ({units.duration(empty_s)} by {law.clock})"
        if empty_s
        else ""
    )
    yield _with_interval(law.cost_s, law.cost_interval_s)


def _over(empty_s: float, law: LatencyLaw) -> str:
    low, high = law.launch_interval_s
    return (
        "no clear difference"
        if low <= empty_s <= high
        else units.ratio(law.launch_s / empty_s)
    )


def _floor(record: Record, law: LatencyLaw, ceilings: Mapping) -> str:
    """What a sample of the largest batch takes at least; nothing where that is an empty
    launch.
    """
    if not ceilings:
        return ""
    bound = roofline.bound(
        record.facts, record.dtype, law.clock, record.median_s, ceilings
    )
    return (
        ""
        if bound.regime == roofline.LAUNCH
        else f"{_duration(bound.least_s / record.batch)} {bound.regime}"
    )


def _memory_a_sample(growth: MemoryGrowth | None) -> str:
    return (
        units.size(max(0, growth.total.per_sample))
        if growth and growth.is_a_line
        else ""
    )


def _second_slope(law: LatencyLaw) -> str:
    parts = [f"waves of {law.waves.samples:.4g} samples"] if law.waves else []
    if law.bends:
        parts.append(
            f"from B={law.bends.batch}: {_with_interval(law.bends.cost_s, law.bends.cost_interval_s)}"
        )
    return ", ".join(parts)


def _saturated(law: LatencyLaw) -> str:
    if law.saturation is None:
        return "not seen to grow"
    beyond = ", beyond the measured" if law.saturation.batch > law.batches[-1] else ""
    return f"{law.saturation.batch:,} ({_span(law.saturation)}{beyond})"


def _span(saturation: Saturation) -> str:
    bounded = saturation.high < float("inf")
    return (
        f"{saturation.low:,} to {saturation.high:,}"
        if bounded
        else f"{saturation.low:,} upwards"
    )


def _stands_out(cliff: Cliff, law: LatencyLaw) -> str:
    if cliff.waves is not None:
        return f"B={cliff.batch}: one more wave, {cliff.over:+.0%}"
    if cliff.over < 0:
        return f"B={cliff.batch}: {-cliff.over:.0%} under the law"
    last = (
        f", or dearer from B={law.batches[-2]} on"
        if cliff.batch == law.batches[-1]
        else ""
    )
    return f"B={cliff.batch}: {cliff.over:+.0%} over the law{last}"


def _with_interval(seconds: float, interval: Interval) -> str:
    low, high = interval
    return f"{_duration(seconds)} ({_duration(low)} to {_duration(high)})"


def _duration(seconds: float) -> str:
    return units.duration(seconds) if seconds else "0"


def memory(run: Run, findings: Findings) -> Section | None:
    """m(B) = fixed + per sample · B for each variant and scenario, and the batch at
    which the device is full; None where there is no law.
    """
    if not findings.memory_growths:
        return None
    room = run.capacity.room_bytes
    tried = {
        (row["op"], row["variant"], row["scenario"], row["dtype"]): row
        for row in run.capacity.trials
    }
    where = (
        f"The process had room for {units.size(room)}."
        if room
        else "The room was not known."
    )
    trial = (
        "for each variant the quickest of them was tried: a call 5% below must fit, one 5% above must not."
        if tried
        else "none was tried in this run."
    )
    note = (
        "The peak above the inputs is fixed + per sample · B (least squares over the batches measured; the misfit "
        f"is the worst batch's, of the largest total). {where} The largest batch is where inputs and peak together "
        f"fill it; {trial}"
    )
    columns = [
        "variant",
        "scenario",
        "fixed",
        "per sample",
        "inputs per sample",
        "misfit",
        "largest batch",
        "tried",
    ]
    rows = _memory_rows(findings.memory_growths, room, tried)
    return Section(
        "memory-law", "Memory over the batch", (Text(note), table(columns, rows))
    )


def _memory_rows(
    growths: Mapping[Key, MemoryGrowth],
    room: int | None,
    tried: Mapping[Key, Mapping],
) -> Iterator[list[str]]:
    several_dtypes = len(unique(growth.dtype for growth in growths.values())) > 1
    for key, growth in growths.items():
        yield [
            f"{growth.op}/{growth.variant}",
            _scenario(growth, several_dtypes),
            _bytes(growth.peak.fixed),
            _per_sample(growth.peak, growth.batch),
            _per_sample(growth.inputs, growth.batch),
            f"{growth.total.misfit:.1%}",
            _largest_batch(growth, room),
            _trial(tried.get(key)),
        ]


def _per_sample(line: MemoryLaw, largest_batch: int) -> str:
    """0 B where the growth up to the largest batch is a rounding of the resident set."""
    return _bytes(
        line.per_sample if abs(line.per_sample) * largest_batch > _PAGES_BYTES else 0
    )


def _bytes(count: float) -> str:
    return units.size(count) if count >= 0 else f"-{units.size(-count)}"


def _largest_batch(growth: MemoryGrowth, room: int | None) -> str:
    if room is None:
        return ""
    if not growth.is_a_line:
        return "no law: it does not grow in a line"
    batch = growth.largest_batch(room)
    return f"{batch:,}" if batch is not None else "does not grow"


def _trial(row: Mapping | None) -> str:
    if row is None:
        return ""
    if row["why_not"] is not None:
        return f"no: {row['why_not']}"
    below, above = row["fits"]["95%"], row["fits"]["105%"]
    if below and not above:
        return (
            f"confirmed: {row['predicted']:,} ±5% fill {units.size(row['room_bytes'])}"
        )
    what = (
        f"5% above {row['predicted']:,} still fits"
        if below
        else f"5% below {row['predicted']:,} does not fit"
    )
    return f"refuted: {what} in {units.size(row['room_bytes'])}"
