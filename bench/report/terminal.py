"""A run in the terminal: the answer first, then its tables, in lines that fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from batchline.bench import units
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.report import (
    audit,
    crossover,
    crossovers,
    ladder,
    tables,
    training,
)
from batchline.bench.report.answer import answer
from batchline.bench.report.fitting import TERMINAL, wrapped
from batchline.bench.report.readme import summary
from batchline.bench.verdicts import ranking


def terminal(run: Run, previous: Run | None = None) -> str:
    """The answer as on the page, then every table as plain text; * marks the fastest at
    a batch.

    Args:
        previous: the run before on the same machine in the same profile, for what is
        new.
    """
    return "\n\n".join(_parts(run, previous))


def _parts(run: Run, previous: Run | None) -> Iterator[str]:
    for subject, sentences in answer(run, previous):
        yield wrapped(f"{subject}: {' '.join(sentences)}")
    choices = crossovers.table(run, TERMINAL)
    if choices:
        yield f"Which variant at which batch size\n{choices}"
    for (op, scenario, dtype), records in run.groups().items():
        if table := latencies(records):
            title = (
                f"{op} · {scenario} · {dtype}: {run.about['scenarios'][op][scenario]}"
            )
            yield f"{wrapped(title)}\n{table}"
    for op in tables.unique(record.op for record in run.records):
        yield f"The ladder of {op}\n{ladder.table(run, op, TERMINAL, compiled=False)}"
    crossings = crossover.table(run, TERMINAL)
    if crossings:
        yield f"Ghost norms or fused?\n{crossings}"
    numerics = audit.findings(run)
    if numerics:
        yield "\n".join(
            ["Numerics of the statistics", *map(wrapped, numerics.splitlines())]
        )
    if run.about.get("noise"):
        yield from (
            "\n".join(map(wrapped, part.splitlines()))
            for part in training.terminal(
                run.about["noise"], run.about["sweep"], run.machine
            )
        )
    rest = tables.not_measured(run, TERMINAL)
    if rest:
        yield f"Without a time\n{rest}"
    yield wrapped(summary(run))


def latencies(records: Sequence[Record]) -> str | None:
    """One problem group, variants down and batches across, the medians; None if nothing
    was timed.

    The fastest of those that are ranked is marked; † and a line below mark the others.
    Speed-ups, memory and shares of the ceilings are in the report.
    """
    timed = [record for record in records if record.status == MEASURED]
    if not timed:
        return None
    batches = tables.unique(record.batch for record in timed)
    fastest = {
        batch: min(
            (
                record.median_s
                for record in timed
                if record.batch == batch and ranking.may_win(record)
            ),
            default=None,
        )
        for batch in batches
    }
    cells = {(record.variant, record.batch): record for record in timed}

    def cell(variant: str, batch: int) -> str:
        record = cells.get((variant, batch))
        if record is None:
            return ""
        shown = units.duration(record.median_s).replace(" ", "")
        if not ranking.may_win(record):
            return f"{shown}{tables.UNRANKED}"
        return (
            TERMINAL.best.format(shown) if record.median_s == fastest[batch] else shown
        )

    table = TERMINAL.render(
        ["", *(f"B={batch}" for batch in batches)],
        (
            [variant, *(cell(variant, batch) for batch in batches)]
            for variant in tables.unique(record.variant for record in timed)
        ),
    )
    note = tables.unranked(timed)
    return f"{table}\n{wrapped(note)}" if note else table
