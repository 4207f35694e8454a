"""The latency law of each variant as a table, beside what an empty launch, the roofline
and the memory law say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.missing import Missing
from batchline.bench.report.tables import Style, unique
from batchline.bench.stats import roofline
from batchline.bench.stats.intervals import Interval
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import laws
from batchline.bench.verdicts.laws import (
    SATURATED,
    Cliff,
    Key,
    LatencyLaw,
    LawKey,
    Saturation,
    latency_laws,
    launch_waves,
)

NOTE = (
    "t(B) = launch floor + cost a sample · B, by least squares of relative errors over the batches measured, with "
    "95% intervals. A second slope, or a batch that stands out, is there only if the times refute the line without "
    f"it. Throughput is saturated from the batch on at which it is {SATURATED:.0%} of the law's best. The misfit "
    "is the worst batch's, as a share of the law, of those that don't stand out. The floor a sample is the "
    "roofline's at the largest batch, and the memory a sample is inputs and peak by the memory law."
)
_HEADERS = (
    "variant",
    "scenario",
    "launch floor",
    "over an empty launch",
    "cost a sample",
    "floor a sample",
    "memory a sample",
    "second slope",
    "saturated from",
    "misfit",
    "stands out",
)


def table(run: Run, style: Style) -> str | None:
    """A row a law, then why the others have none; None where nothing was timed."""
    found = latency_laws(run.records, launch_waves(run))
    if not found:
        return None
    several_dtypes = len(unique(key.dtype for key in found)) > 1
    ceilings = run.about["ceilings"] or {}
    largest = _largest(run.records)
    memory = {
        (growth.op, growth.variant, growth.scenario, growth.dtype): growth
        for growth in laws.memory_growths(run.records)
    }
    rows = []
    for law in filter(None, found.values()):
        key = law.op, law.variant, law.scenario, law.dtype
        rows.append(
            [
                f"{law.op}/{law.variant}",
                _scenario(law, several_dtypes),
                *_coefficients(law, ceilings),
                _floor(largest[key], law, ceilings),
                _memory(memory.get(key)),
                _second_slope(law),
                _saturated(law),
                f"{law.misfit:.1%}",
                ", ".join(_stands_out(cliff, law) for cliff in law.cliffs),
            ]
        )
    without = [
        [variant, why, ", ".join(scenarios)]
        for (variant, why), scenarios in _without(found, several_dtypes).items()
    ]
    parts = [NOTE, style.render(_HEADERS, rows)] if rows else []
    parts += (
        [style.render(["variant", "no law", "scenarios"], without)] if without else []
    )
    unknown = unique(
        f"{op}/{variant}: {waves.reason}"
        for (op, variant, *_), waves in launch_waves(run).items()
        if isinstance(waves, Missing)
    )
    return "\n\n".join(
        [*parts, *([f"No waves are known of {'; '.join(unknown)}."] if unknown else [])]
    )


def words(law: LatencyLaw | Missing) -> str:
    """One law in a sentence: floor, cost a sample, where it bends, from where on it is
    saturated, what stands out.
    """
    if isinstance(law, Missing):
        return f"no law: {law.reason}"
    parts = [
        f"{_with_interval(law.launch_s, law.launch_interval_s)} + "
        f"{_with_interval(law.cost_s, law.cost_interval_s)} a sample",
        _second_slope(law),
        f"saturated from B={_saturated(law)}" if law.saturation else "not seen to grow",
        ", ".join(_stands_out(cliff, law) for cliff in law.cliffs),
    ]
    return "; ".join(filter(None, parts))


def _largest(records: Sequence[Record]) -> dict[Key, Record]:
    found: dict[Key, Record] = {}
    for record in records:
        key = record.op, record.variant, record.scenario, record.dtype
        if record.status == MEASURED and (
            key not in found or record.batch > found[key].batch
        ):
            found[key] = record
    return found


def _without(
    found: Mapping[LawKey, LatencyLaw | Missing], several_dtypes: bool
) -> dict[tuple[str, str], list[str]]:
    """The scenarios without a law, by variant and reason."""
    scenarios: dict[tuple[str, str], list[str]] = {}
    for key, law in found.items():
        if isinstance(law, Missing):
            scenarios.setdefault((f"{key.op}/{key.variant}", law.reason), []).append(
                _scenario(key, several_dtypes)
            )
    return scenarios


def _scenario(law: LatencyLaw | LawKey, several_dtypes: bool) -> str:
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
        "not told apart"
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


def _memory(growth: laws.MemoryGrowth | None) -> str:
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
