"""A run as tables: for each problem the variants side by side over the batch, then
everything that has no time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tabulate import tabulate

from batchline.bench import units
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.report import gpu_clocks
from batchline.bench.texts import one_line
from batchline.bench.stats import roofline
from batchline.bench.verdicts import ranking
from batchline.kernels.architectures import taken_for, why_too_old

_USUAL_BUSY_SHARE = 0.1  # bench.measure.machine.busy's, which imports torch


@dataclass(frozen=True)
class Style:
    """Markdown for the report's file, plain for the terminal.

    tabulate's format, how the best cell is marked, and how a bar inside a cell is
    written.
    """

    table_format: str
    best: str
    bar: str

    def render(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        escaped = [
            [one_line(cell).replace("|", self.bar) for cell in row] for row in rows
        ]
        return tabulate(
            escaped,
            headers=list(headers),
            tablefmt=self.table_format,
            disable_numparse=True,
        )


MARKDOWN = Style("github", "**{}**", r"\|")
PLAIN = Style("simple", "{} *", "|")
UNRANKED = "†"  # behind a time that is shown and not ranked


def comparison(
    records: Sequence[Record], style: Style, ceilings: Mapping | None = None
) -> str | None:
    """One problem group (an op, scenario and dtype): batches down, variants across;
    None if nothing was timed.

    A cell is the median latency, the speed-up over the fastest of PyTorch's variants at
    that batch, the peak memory above the inputs, and the share reached of the ceiling
    that binds it. The fastest of those that are ranked is marked; what is not has †
    behind its time, no speed-up, and its reason below the table. Variants with no time
    at any batch stand in `not_measured` alone.
    """
    timed = unique(record.variant for record in records if record.status == MEASURED)
    if not timed:
        return None
    cells = {(record.batch, record.variant): record for record in records}
    opponents = {
        problem[-1]: record for problem, record in ranking.opponents(records).items()
    }
    rows = []
    for batch in unique(record.batch for record in records):
        row = [cells.get((batch, variant)) for variant in timed]
        fastest = min(
            (record.median_s for record in row if record and ranking.may_win(record)),
            default=None,
        )
        rows.append(
            [
                str(batch),
                *(
                    _cell(record, opponents.get(batch), fastest, style, ceilings)
                    for record in row
                ),
            ]
        )
    table = style.render(["batch", *timed], rows)
    note = unranked(records)
    return f"{table}\n\n{note}" if note else table


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
    fastest: float | None,
    style: Style,
    ceilings: Mapping | None,
) -> str:
    if record is None:
        return ""
    if not _is_timed(record):
        return record.status
    latency, is_ranked = units.duration(record.median_s), ranking.may_win(record)
    if not is_ranked:
        latency = f"{latency} {UNRANKED}"
    parts = [
        (
            style.best.format(latency)
            if is_ranked and record.median_s == fastest
            else latency
        )
    ]
    if is_ranked and opponent and record.variant != opponent.variant:
        parts.append(units.ratio(opponent.median_s / record.median_s))
    peak = record.facts.get("peak_bytes")
    parts.append(units.size(peak) if peak is not None else "memory n/a")
    return " · ".join(
        parts + _bound(record, record.facts["clock"], record.median_s, ceilings)
    )


def _bound(
    record: Record, clock: str, median_s: float, ceilings: Mapping | None
) -> list[str]:
    """["71% memory"], or nothing where the run has no ceilings."""
    if not ceilings:
        return []
    bound = roofline.bound(record.facts, record.dtype, clock, median_s, ceilings)
    return [f"{bound.share:.0%} {bound.regime}"]


def clocks(
    records: Sequence[Record], style: Style, ceilings: Mapping | None
) -> str | None:
    """Every clock of one problem group side by side, one row per batch and variant;
    None if there is but one clock.

    A cell is the median, half the width of its 95% interval, and the share reached of
    the ceiling that binds it there. Where a case has a time under a load that lasts,
    that is the last column.
    """
    timed = [record for record in records if record.status == MEASURED]
    names = unique(name for record in timed for name in record.facts["clocks"])
    if len(names) < 2:
        return None
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
    sustained = [gpu_clocks.sustained(record.facts) for record in timed]
    if any(sustained):
        headers.append("sustained")
        rows = [[*row, words or ""] for row, words in zip(rows, sustained)]
    notes = [f"({number}) {reason}" for number, reason in enumerate(reasons, 1)]
    return "\n\n".join([style.render(headers, rows), *notes])


def _clock_cell(
    record: Record, name: str, reasons: Sequence[str], ceilings: Mapping | None
) -> str:
    facts = record.facts["clocks"].get(name)
    if facts is None:
        return ""
    if "why_not" in facts:
        return f"({reasons.index(facts['why_not']) + 1})"
    shown = f"{units.duration(facts['median_s'])} ±{facts['precision']:.1%}"
    note = [f"({reasons.index(facts['alone']) + 1})"] if "alone" in facts else []
    return " · ".join(
        [shown, *_bound(record, name, facts["median_s"], ceilings), *note]
    )


def not_measured(run: Run, style: Style) -> str | None:
    """Every case without a time, cases of one variant and one reason in a row; then
    files that are broken and have no case; None if there are neither.
    """
    rows: dict[tuple[str, str, str], list[Record]] = {}
    for record in run.records:
        if record.status != MEASURED:
            rows.setdefault(
                (f"{record.op}/{record.variant}", record.status, record.reason), []
            ).append(record)
    files = broken_files(run)
    if not rows and not files:
        return None
    return style.render(
        ["variant", "what became of it", "cases", "which"],
        [
            *(
                [
                    variant,
                    f"{status}: {reason}" if reason else status,
                    str(len(records)),
                    _which(records),
                ]
                for (variant, status, reason), records in rows.items()
            ),
            *(
                [one["file"], f"{one['status']}: {one['reason']}", "none", ""]
                for one in files
            ),
        ],
    )


def broken_files(run: Run) -> Sequence[Mapping]:
    """What should have been an op or a variant and is none: its "file", "status" and
    "reason".
    """
    return run.about.get("broken_files", ())  # runs of before have none


def _which(records: Sequence[Record]) -> str:
    problems = unique(f"{record.scenario}/{record.dtype}" for record in records)
    shown = ", ".join(problems[:3]) + (
        f" and {len(problems) - 3} more" if len(problems) > 3 else ""
    )
    batches = ", ".join(map(str, sorted({record.batch for record in records})))
    return f"{shown}; B {'=' if len(problems) == 1 else 'among'} {batches}"


def _chip(capability: str) -> str:
    """ "sm_90" of "9.0", and of a chip without an entry in the table of architectures
    what it is taken for.
    """
    number = int(capability.replace(".", ""))
    return f"sm_{number}" if why_too_old(number) else str(taken_for(number))


def machine(run: Run, style: Style) -> str:
    """The machine and the versions, a fact a row."""
    facts, gpu = run.machine, run.machine.get("gpu")
    commit = facts["revision"]["commit"]
    rows = [
        ["timed on", facts["device_name"]],
        ["processor", ", ".join(_processor(facts))],
    ]
    if gpu:
        rows.append(
            [
                "GPU",
                ", ".join(
                    (
                        gpu["name"],
                        _chip(gpu["compute_capability"]),
                        f"{gpu['multiprocessors']} SMs",
                        units.size(gpu["memory_bytes"]),
                        f"driver {gpu['driver']}",
                        f"CUDA {gpu['cuda_of_torch']}",
                    )
                ),
            ]
        )
    rows += [
        ["system", f"{facts['system']}, Python {facts['python']}"],
        [
            "versions",
            ", ".join(
                f"{name} {version}" for name, version in facts["versions"].items()
            ),
        ],
        [
            "revision",
            f"{commit[:12]}{' + uncommitted changes' if facts['revision']['dirty'] else ''}",
        ],
    ]
    return style.render(["", ""], rows)


def _processor(facts: Mapping) -> Iterator[str]:
    """What older runs have not stored is left out."""
    yield facts["cpu"]
    yield f"{facts['cpu_cores']} cores"
    if facts.get("cpu_quota") is not None:
        yield f"a quota of {facts['cpu_quota']:g} cores"
    yield f"{facts['cpu_threads_of_torch']} threads in torch"
    if facts.get("cpu_threads_of_numba") is not None:
        yield f"{facts['cpu_threads_of_numba']} in Numba"
    yield units.size(facts["memory_bytes"])
    if facts.get("memory_limit_bytes") is not None:
        yield f"of which a container may use {units.size(facts['memory_limit_bytes'])}"
    if facts.get("most_busy_share", _USUAL_BUSY_SHARE) != _USUAL_BUSY_SHARE:
        yield f"measured while others took up to {facts['most_busy_share']:.0%} of the cores"
    if facts.get("why_no_kernel_cache"):
        yield f"no kernel cache ({facts['why_no_kernel_cache']})"


def unique(values: Iterable) -> list:
    """The distinct values in the order in which they first come."""
    return list(dict.fromkeys(values))


def _is_timed(record: Record | None) -> bool:
    return record is not None and record.status == MEASURED
