"""The article's four claims: each one's verdict, the effect with its interval, and the
tables that it rests on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from batchline.bench.noise.claims.verdict import Table, Verdict
from batchline.bench.report.tables import MARKDOWN, Style

EXPLAINED = (
    "The article that this project grew from makes four claims about batch size. Each is put as a hypothesis that this "
    "suite can refute. Intervals are at 95%. A difference that is within a stated margin does not count as one, and an "
    "interval too wide to tell leaves the part undecided."
)


def section(
    verdicts: Sequence[Verdict], sweep: Mapping | None, machine: Mapping | None = None
) -> str:
    """The verdicts in short, then each claim with its parts and its evidence, in
    markdown.

    Args:
        sweep: the record of the training sweep, or None where there is none.
        machine: that of the run which the section belongs to; a sweep of another is
        said to be that.
    """
    return "\n\n".join(
        [
            EXPLAINED,
            short(verdicts, MARKDOWN),
            provenance(sweep, machine),
            *_claims(verdicts),
        ]
    )


def short(verdicts: Sequence[Verdict], style: Style) -> str:
    """A row a claim: the verdict, and the effects that decide it."""
    return style.render(
        ["claim", "verdict", "measured"],
        (
            [
                verdict.claim,
                (
                    style.best.format(verdict.text)
                    if style is MARKDOWN
                    else verdict.text
                ),
                verdict.effect or "nothing",
            ]
            for verdict in verdicts
        ),
    )


def terminal(
    verdicts: Sequence[Verdict], sweep: Mapping | None, machine: Mapping | None = None
) -> str:
    """The verdicts as plain lines, each claim's parts set in under it."""
    lines = []
    for number, verdict in enumerate(verdicts, 1):
        lines += [
            f"{number}. {verdict.claim}: {verdict.text}",
            *(
                f"   - {finding.part}: {finding.text}"
                + (f" [{finding.effect}]" if finding.effect else "")
                for finding in verdict.findings
            ),
        ]
    return "\n".join([*lines, provenance(sweep, machine)])


def provenance(sweep: Mapping | None, machine: Mapping | None = None) -> str:
    """Whose training sweep the verdicts rest on: the machine, the date, and how much of
    it there is.
    """
    if sweep is None:
        return "There is no training sweep: `batchline claims` runs one."
    name = sweep["machine"]["device_name"]
    other = machine is not None and name != machine["device_name"]
    whose = (
        f" **That is another machine than this run's, {machine['device_name']}.**"
        if other
        else ""
    )
    missing = (
        f" It is partial: {len(sweep['not_run'])} runs were not begun in time."
        if sweep["partial"]
        else ""
    )
    grid = sweep["grid"]
    return (
        f"The training sweep was measured on {name}, {sweep['started'][:10]}, in {sweep['seconds']:.0f} s.{whose} "
        f"{len(sweep['runs'])} runs of {sweep['title']} by plain SGD: batches of {_series(grid['batches'])}, "
        f"learning rates {_series(grid['learning_rates'])}, {grid['tuning_seeds']} seeds at every rate and "
        f"{grid['seeds']} at those that matter, {sweep['samples']:,} samples to train on and {sweep['held_out']} "
        f"held out. Equal updates are {grid['updates']:,}, equal epochs {grid['epochs']}. Training times are those "
        f"of {sweep['processes']} processes at a time, of one thread each.{missing}"
    )


def _series(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values[:-1]) + f" and {values[-1]:.4g}"


def _claims(verdicts: Sequence[Verdict]) -> Iterator[str]:
    for number, verdict in enumerate(verdicts, 1):
        yield f'### {number}. "{verdict.claim}": {verdict.verdict}'
        yield f"Hypothesis: {verdict.hypothesis}"
        yield MARKDOWN.render(
            ["part", "verdict", "effect (95% interval)"],
            (
                [finding.part, finding.text, finding.effect]
                for finding in verdict.findings
            ),
        )
        if verdict.evidence:
            yield "<details><summary>the evidence</summary>"
            yield from map(_table, verdict.evidence)
            yield "</details>"
        yield f"Sources: {'; '.join(verdict.sources)}."


def _table(table: Table) -> str:
    return f"{table.title}:\n\n{MARKDOWN.render(table.headers, table.rows)}"
