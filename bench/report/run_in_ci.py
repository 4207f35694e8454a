"""What CI shows of an ordinary run: the step's summary, and its wrong and failed cases
as problems.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from batchline.bench.records import (
    BROKEN,
    MEASURED,
    NOT_REACHED,
    Record,
    Run,
    is_broken,
)
from batchline.bench.report import escaping, limits, tables
from batchline.bench.report.readme import summary

_WORST_FIRST = (*BROKEN, NOT_REACHED)


def of_run(run: Run) -> tuple[str, list[tuple[str, str]]]:
    """(Markdown, problems): a step's summary, and (title, message) pairs, the worst
    first; both for bench.report.ci.

    A run has problems exactly where `batchline run` does not exit with 0; cases of one
    variant and one reason are one.
    """
    return "\n\n".join(_sections(run)) + "\n", list(_problems(run))


def why_incomplete(run: Run) -> str | None:
    """What is wrong with the run as a whole, or None."""
    if all(record.status != MEASURED for record in run.records):
        return "Nothing was measured"
    return "Stopped before the end" if run.about["partial"] else None


def impossible(run: Run) -> Iterator[Mapping]:
    """The rows of the numerics audit in which a variant of this suite gave what can't
    be.
    """
    return (
        row
        for row in run.about.get("audit", ())
        if row["whose"] == "ours" and row["impossible"]
    )


def _sections(run: Run) -> Iterator[str]:
    style = escaping.GITHUB
    yield f"**{escaping.markdown(summary(run))}**"
    broken = tuple(record for record in run.records if _is_problem(record))
    if broken or tables.broken_files(run):
        yield f"### Wrong, failed or not reached\n\n{tables.not_measured(replace(run, records=broken), style)}"
    audited = list(impossible(run))
    if audited:
        yield "### Impossible statistics"
        yield style.render(
            ["variant", "dtype", "inputs", "what failed"],
            (
                [
                    f"{row['op']}/{row['variant']}",
                    row["dtype"],
                    _inputs(row),
                    row["failed"],
                ]
                for row in audited
            ),
        )
    for (op, scenario, dtype), records in run.groups().items():
        table = tables.comparison(records, style, run.about["ceilings"])
        if table:
            yield _folded(f"{op} · {scenario} · {dtype}", table)
    others = tuple(record for record in run.records if record not in broken)
    rest = tables.not_measured(
        replace(run, about={**run.about, "broken_files": ()}, records=others), style
    )
    if rest:
        yield _folded("Not timed here", rest)
    yield _folded(
        "The machine", f"{tables.machine(run, style)}\n\n{limits.ceilings(run, style)}"
    )


def _is_problem(record: Record) -> bool:
    return record.status == NOT_REACHED or is_broken(record.status, record.reason)


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escaping.markdown(title)}</summary>\n\n{content}\n\n</details>"


def _problems(run: Run) -> Iterator[tuple[str, str]]:
    if incomplete := why_incomplete(run):
        yield incomplete, escaping.one_line(summary(run))
    alike: dict[tuple[str, str, str], list[str]] = {}
    for record in sorted(
        (record for record in run.records if _is_problem(record)),
        key=lambda record: _WORST_FIRST.index(record.status),
    ):
        alike.setdefault(
            (record.status, f"{record.op}/{record.variant}", record.reason), []
        ).append(record.id)
    for (status, variant, reason), ids in alike.items():
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        yield escaping.one_line(f"{status}: {variant}"), escaping.one_line(
            f"{ids[0]}{more}: {reason}"
        )
    for one in tables.broken_files(run):
        yield escaping.one_line(f"{one['status']}: {one['file']}"), escaping.one_line(
            one["reason"]
        )
    for row in impossible(run):
        yield (
            escaping.one_line(f"impossible statistics: {row['op']}/{row['variant']}"),
            escaping.one_line(f"{row['dtype']}, {_inputs(row)}: {row['failed']}"),
        )


def _inputs(row: Mapping) -> str:
    return (row["condition"] or "").replace("_", " ")
