"""Runs of several machines side by side, in the terminal and on a page: which variant
wins on which, the choices of variant for all, and how fast each is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from string import ascii_uppercase

from batchline.bench import units
from batchline.bench.report.document import (
    Document,
    Part,
    Section,
    Table,
    Text,
    table,
)
from batchline.bench.report.render.terminal import render
from batchline.bench.report.sections.choices import ranges
from batchline.bench.report.two_runs import map_section, sides
from batchline.bench.store.records import Run
from batchline.bench.verdicts import across_runs
from batchline.bench.verdicts.judge import Findings, judge
from batchline.bench.verdicts.winners import Winner

MOST = len(ascii_uppercase)  # runs: each has a letter
_NOTE = (
    "A cell counts where every run has a winner of the same problem at the same batch. It is of one variant where "
    "that wins on every device, and of one family where variants of one family do."
)
_RATIOS_NOTE = (
    "Each device's time over A's, the geometric mean over the cases that both have timed by the same clock. Under 1x "
    "it is faster than A; n/a where there is no such case. The ratios compare machines and toolchains, and no code."
)


def terminal(runs: Sequence[Run]) -> str:
    """At most COLUMNS characters a line where the ids allow it."""
    return render(document(runs))


def document(runs: Sequence[Run]) -> Document:
    """The runs are called A, B, C, … in their order; there are from 2 to MOST.

    Raises:
        ValueError: where a time is no positive number.
    """
    devices = dict(zip(ascii_uppercase, runs))
    findings = {letter: judge(run) for letter, run in devices.items()}
    sections = [
        Section("choice", "Which variant on which device", (_choices(findings),)),
        Section("ratios", "Time over A's, by op", tuple(_ratios(devices))),
        *(map_section(letter, one) for letter, one in findings.items()),
    ]
    return Document(
        f"Batchline: {len(runs)} devices",
        (Text(_answer(findings)), sides(devices), Text(_NOTE)),
        tuple(sections),
    )


def _answer(findings: Mapping[str, Findings]) -> str:
    """On how many cells of the map all devices agree."""
    winners = [_winners(one) for one in findings.values()]
    cells = [cell for cell in winners[0] if all(cell in one for one in winners)]
    if not cells:
        return "No problem has a winner on every device at the same batch."
    alike = [[one[cell] for one in winners] for cell in cells]
    same = sum(len({one.variant for one in here}) == 1 for here in alike)
    family = sum(len({one.family for one in here}) == 1 for here in alike)
    return (
        f"Cells of the map that every device has: {len(cells)}. One variant wins {same} of them on every device, "
        f"one family {family}."
    )


def _winners(findings: Findings) -> dict[tuple[str, str, str, int], Winner]:
    """Who wins at each cell of the map: (op, scenario, dtype, batch)."""
    return {
        (row.op, row.scenario, row.dtype, cell.batch): cell.winner
        for row in findings.winners.rows
        for cell in row.cells
        if cell.winner
    }


def _choices(findings: Mapping[str, Findings]) -> Table:
    """One row per problem, with each device's choices in a column."""
    problems = dict.fromkeys(
        problem for one in findings.values() for problem in one.choices
    )
    rows = (
        [
            "/".join(problem),
            *(ranges(one.choices.get(problem, ())) for one in findings.values()),
        ]
        for problem in problems
    )
    return table(["problem", *findings], rows)


def _ratios(devices: Mapping[str, Run]) -> Iterator[Part]:
    """One row per op, with each device but the first in a column."""
    first, *others = devices
    by_op: dict[str, dict[str, across_runs.OpRatio]] = {}
    means = []
    for letter in others:
        compared = across_runs.compare(devices[first], devices[letter])
        for one in compared.ratios:
            by_op.setdefault(one.op, {})[letter] = one
        means.append(compared.mean_ratio)
    rows = [
        [op, *(_ratio(of_op.get(letter)) for letter in others)]
        for op, of_op in by_op.items()
    ]
    rows.append(["all", *(units.ratio(mean) if mean else "n/a" for mean in means)])
    yield Text(_RATIOS_NOTE)
    yield table(["op", *others], rows)


def _ratio(one: across_runs.OpRatio | None) -> str:
    if one is None:
        return "n/a"
    return f"{units.ratio(one.mean)} of {one.count}"
