"""The answer that a run gives, first thing, in a few sentences: what to use where, and
what is new.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

from batchline.bench import texts
from batchline.bench.noise import claims, stored_survey
from batchline.bench.report import advisor, comparison, tables
from batchline.bench.report import crossovers as crossovers_report
from batchline.bench.report.tables import unique
from batchline.bench.statuses import is_broken, is_machines_fault
from batchline.bench.store.records import Run
from batchline.bench.verdicts import crossovers
from batchline.bench.verdicts.across_runs import compare, machine_differences
from batchline.bench.verdicts.crossovers import Crossover

_MOST_NAMED = 3


def answer(run: Run, previous: Run | None = None) -> list[tuple[str, list[str]]]:
    """(what it is about, its sentences), in the order in which a reader wants them.

    Args:
        previous: an earlier run; it is left out where machine, toolchain or profile are
        not the same.
    """
    found = [("Which variant", [crossovers_report.answer(run)])]
    changes = [_change(crossing) for crossing in choice_changes(run)]
    if changes:
        found.append(("From which batch", _first(changes)))
    found += _training(run.about.get("noise"), run.about.get("sweep"))
    broken = unique(
        f"{record.op}/{record.variant} ({record.status})"
        for record in run.records
        if is_broken(record.status, record.reason)
    )
    broken += [f"{one['file']} ({one['status']})" for one in tables.broken_files(run)]
    if broken:
        found.append(("Broken", _first(broken)))
    disturbed = sum(
        is_machines_fault(record.status, record.reason) for record in run.records
    )
    if disturbed:
        found.append(
            (
                "The machine",
                [
                    f"It was busy or throttled during {disturbed} of {len(run.records)} cases, which "
                    "have no time for that."
                ],
            )
        )
    if previous is not None and is_comparable(previous, run):
        found.append(("Against the last run", [_against(previous, run)]))
    return found


def _against(previous: Run, run: Run) -> str:
    try:
        changed = comparison.answer(compare(previous, run))
    except (
        Exception
    ) as error:  # that run may be damaged, and this one's report is not the worse for it
        return f"It can't be compared ({texts.error_line(error)})."
    return f"{changed}. A is the run of {previous.about['started'][:16]}, B this one. It shows and does not judge."


def is_comparable(previous: Run, run: Run) -> bool:
    """Whether two runs are of one machine, toolchain and profile."""
    return previous.about["profile"] == run.about[
        "profile"
    ] and not machine_differences(previous.machine, run.machine)


def choice_changes(run: Run) -> list[Crossover]:
    """The crossovers at which the choice of a problem changes, and not only the leader
    of a pair.
    """
    changed = {
        (before.problem, before.variant, after.variant)
        for before, after in pairwise(
            crossovers.choices(run.records, run.about["baselines"])
        )
        if before.problem == after.problem
    }
    return [
        crossing
        for crossing in crossovers.crossovers(run.records)
        if (
            (crossing.op, crossing.scenario, crossing.dtype),
            crossing.first,
            crossing.then,
        )
        in changed
    ]


def _change(crossing: Crossover) -> str:
    return (
        f"{crossing.then} overtakes {crossing.first} at B = {crossing.batch:.3g} ({crossing.low:.3g} to "
        f"{crossing.high:.3g}) on {crossing.op}/{crossing.scenario}/{crossing.dtype}."
    )


def _training(
    noise: Mapping | None, sweep: Mapping | None
) -> Iterator[tuple[str, list[str]]]:
    if not noise:
        return
    for name, workload in noise["workloads"].items():
        if "failed" not in workload:
            yield f"Batch size for {name}", [_advice(workload)]
    yield "The article's claims", [
        f"“{one.claim}”: {one.text}." for one in claims.judge(sweep, noise)
    ]


def _advice(workload: Mapping) -> str:
    try:
        return advisor.summary(
            stored_survey.advice(workload, stored_survey.middle(workload))
        )
    except ValueError as error:
        return f"No advice: {error}."


def _first(items: Sequence[str]) -> list[str]:
    """The first few, and how many more there are."""
    more = [f"And {len(items) - _MOST_NAMED} more."] if len(items) > _MOST_NAMED else []
    return [*items[:_MOST_NAMED], *more]
