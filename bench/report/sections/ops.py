"""The ops of a run: for each problem the variants side by side over the batch, every
clock of theirs, and the op's ladder.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.report import figures, page_plots
from batchline.bench.report.document import (
    FILES,
    Cell,
    Details,
    Figure,
    Marked,
    Only,
    OpSection,
    Part,
    Place,
    ProblemSection,
    Text,
    anchor,
    join,
    table,
    unique,
)
from batchline.bench.report.findings import Findings
from batchline.bench.report.sections import ladder
from batchline.bench.report.sections.machine import sustained
from batchline.bench.stats import roofline
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import ranking

UNRANKED = "†"  # behind a time that is shown and not ranked
CELLS = (
    "A cell is the median latency · the speed-up over the fastest of PyTorch's variants at that batch · the "
    "peak memory above the inputs (outputs and workspace) · the share reached of the ceiling that binds it, and "
    "which that is (launch, cache, memory or compute). The best of a row of those that are ranked is marked; † "
    "marks what is not. Every variant passed its check against fp64 before it was timed, and its output was checked "
    "again behind the timing."
)


def ops(run: Run, findings: Findings) -> Iterator[OpSection]:
    """Every op of the run: its problems of which something was timed, and its ladder."""
    curves = page_plots.curves(run, findings.latency_laws)
    for number, op in enumerate(unique(record.op for record in run.records), 1):
        entry = curves.get(op, {"variants": (), "problems": {}})
        problems = [
            _problem(run, group, records)
            for group, records in run.groups().items()
            if group[0] == op and any(record.status == MEASURED for record in records)
        ]
        about = Only(Place.README, (Text(f"`{run.ops[op].signature}`"),))
        cells = (Only(FILES, (Text(CELLS),)),) if problems else ()
        yield OpSection(
            f"op-{number}",
            op,
            (about, *cells, *problems, ladder.section(run, findings, op)),
            run.ops[op].signature,
            tuple(entry["variants"]),
            entry["problems"],
        )


def _problem(
    run: Run, group: tuple[str, str, str], records: Sequence[Record]
) -> ProblemSection:
    op, scenario, dtype = group
    about = run.ops[op].scenarios[scenario].title
    ceilings = run.ceilings
    parts = [
        Only(FILES, (Text(about),)),
        Only(FILES | Place.CI, tuple(comparison(records, ceilings))),
        Only(Place.TERMINAL, tuple(latencies(records))),
        Only(Place.README, (_figure(group),)),
    ]
    every_clock = tuple(clocks(records, ceilings))
    if every_clock:
        parts.append(Only(FILES, (Details("Every clock", every_clock),)))
    return ProblemSection(
        anchor(*group),
        page_plots.problem_name(scenario, dtype),
        tuple(parts),
        *group,
        about,
    )


def _figure(group: tuple[str, str, str]) -> Figure:
    op, scenario, dtype = group
    return Figure(
        f"latency, speed-up and memory of {op} over the batch, {scenario}, {dtype}",
        file=figures.name_of(*group),
    )


def comparison(
    records: Sequence[Record], ceilings: Mapping | None = None
) -> list[Part]:
    """One problem (an op, scenario and dtype): batches down, variants across; nothing
    if nothing was timed.

    A cell is the median latency, the speed-up over the fastest of PyTorch's variants at
    that batch, the peak memory above the inputs, and the share reached of the ceiling
    that binds it. The fastest of those that are ranked is marked; what is not has †
    behind its time, no speed-up, and its reason below the table. Variants with no time
    at any batch are left out.
    """
    timed = unique(record.variant for record in records if record.status == MEASURED)
    if not timed:
        return []
    cells = {(record.batch, record.variant): record for record in records}
    opponents = {
        problem[-1]: record for problem, record in ranking.opponents(records).items()
    }
    rows = []
    batches = unique(record.batch for record in records)
    for batch in batches:
        row = [cells.get((batch, variant)) for variant in timed]
        fastest_s = _fastest_s(filter(None, row))
        rows.append(
            [
                str(batch),
                *(
                    _cell(record, opponents.get(batch), fastest_s, ceilings)
                    for record in row
                ),
            ]
        )
    note = unranked(records)
    first = records[0]
    anchors = (
        anchor(first.op, first.scenario, first.dtype, batch) for batch in batches
    )
    return [table(["batch", *timed], rows, anchors), *([Text(note)] if note else [])]


def _fastest_s(records: Iterable[Record]) -> float | None:
    """The least median of those that are ranked; None where none is."""
    ranked = (record.median_s for record in records if ranking.may_win(record))
    return min(ranked, default=None)


def latencies(records: Sequence[Record]) -> list[Part]:
    """One problem for a terminal: variants down, batches across, the medians; nothing
    if nothing was timed.

    The fastest of those that are ranked is marked; † and a line below mark the others.
    """
    timed = [record for record in records if record.status == MEASURED]
    if not timed:
        return []
    batches = unique(record.batch for record in timed)
    fastest_s = {
        batch: _fastest_s(record for record in timed if record.batch == batch)
        for batch in batches
    }
    cells = {
        (record.variant, record.batch): _latency(record, fastest_s[record.batch])
        for record in timed
    }
    rows = (
        [variant, *(cells.get((variant, batch), "") for batch in batches)]
        for variant in unique(record.variant for record in timed)
    )
    note = unranked(timed)
    return [
        table(["", *(f"B={batch}" for batch in batches)], rows),
        *([Text(note)] if note else []),
    ]


def _latency(record: Record, fastest_s: float | None) -> Cell:
    median = units.duration(record.median_s).replace(" ", "")
    if not ranking.may_win(record):
        return f"{median}{UNRANKED}"
    return Marked(median) if record.median_s == fastest_s else median


def unranked(records: Sequence[Record]) -> str | None:
    """Which of the timed variants are not ranked, and why, in a line; None if all are."""
    reasons: dict[str, str] = {}
    for record in records:
        if record.status == MEASURED and (why := ranking.why_unranked(record)):
            reasons.setdefault(record.variant, why)
    if not reasons:
        return None
    return f"{UNRANKED} not ranked: " + "; ".join(
        f"{name} ({why})" for name, why in reasons.items()
    )


def _cell(
    record: Record | None,
    opponent: Record | None,
    fastest_s: float | None,
    ceilings: Mapping | None,
) -> Cell:
    if record is None:
        return ""
    if record.status != MEASURED:
        return record.status
    latency, is_ranked = units.duration(record.median_s), ranking.may_win(record)
    if not is_ranked:
        latency = f"{latency} {UNRANKED}"
    is_fastest = is_ranked and record.median_s == fastest_s
    parts: list[Cell] = [Marked(latency) if is_fastest else latency]
    if is_ranked and opponent and record.variant != opponent.variant:
        parts.append(units.ratio(opponent.median_s / record.median_s))
    peak = record.facts.get("peak_bytes")
    parts.append(units.size(peak) if peak is not None else "memory n/a")
    parts += _bound(record, record.facts["clock"], record.median_s, ceilings)
    return join(" · ", parts)


def _bound(
    record: Record, clock: str, median_s: float, ceilings: Mapping | None
) -> list[str]:
    """["71% memory"], or nothing where the run has no ceilings."""
    if not ceilings:
        return []
    bound = roofline.bound(record.facts, record.dtype, clock, median_s, ceilings)
    return [f"{bound.share:.0%} {bound.regime}"]


def clocks(records: Sequence[Record], ceilings: Mapping | None) -> list[Part]:
    """Every clock of one problem group side by side, one row per batch and variant;
    nothing if there is but one clock.

    A cell is the median, half the width of its 95% interval, and the share reached of
    the ceiling that binds it there. Where a case has a time under a load that lasts,
    that is the last column.
    """
    timed = [record for record in records if record.status == MEASURED]
    names = unique(name for record in timed for name in record.facts["clocks"])
    if len(names) < 2:
        return []
    reasons = unique(
        facts[key]
        for record in timed
        for facts in record.facts["clocks"].values()
        for key in ("why_not", "alone")
        if key in facts
    )
    rows = [
        [
            str(record.batch),
            record.variant,
            *(_clock_cell(record, name, reasons, ceilings) for name in names),
        ]
        for record in timed
    ]
    headers = ["batch", "variant", *names]
    under_load = [sustained(record.facts) for record in timed]
    if any(under_load):
        headers.append("sustained")
        rows = [[*row, time or ""] for row, time in zip(rows, under_load)]
    notes = [Text(f"({number}) {reason}") for number, reason in enumerate(reasons, 1)]
    return [table(headers, rows), *notes]


def _clock_cell(
    record: Record, name: str, reasons: Sequence[str], ceilings: Mapping | None
) -> str:
    facts = record.facts["clocks"].get(name)
    if facts is None:
        return ""
    if "why_not" in facts:
        return f"({reasons.index(facts['why_not']) + 1})"
    median = f"{units.duration(facts['median_s'])} ±{facts['precision']:.1%}"
    note = [f"({reasons.index(facts['alone']) + 1})"] if "alone" in facts else []
    return " · ".join(
        [median, *_bound(record, name, facts["median_s"], ceilings), *note]
    )
