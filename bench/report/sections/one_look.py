"""What a report begins with: the run in a strip, who wins which problem at which batch,
and three numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

from batchline.bench.noise.advice import span
from batchline.bench.report import map_figure
from batchline.bench.report.document import (
    Details,
    Fact,
    Facts,
    Figure,
    Map,
    Only,
    Place,
    Section,
    Text,
)
from batchline.bench.report.findings import Findings, TrainingFindings
from batchline.bench.report.sections import checks, machine
from batchline.bench.stats.roofline import LAUNCH
from batchline.bench.statuses import is_machines_fault
from batchline.bench.store.records import Run

TITLE = "Which wins where"
_MOST_NAMED = 3


def one_look(run: Run, findings: Findings) -> Section:
    """The strip, the map and the numbers; without a map where nothing was timed."""
    strip = Facts(tuple(_strip(run)))
    if not findings.winners.rows:
        return Section("map", TITLE, (strip, Text("Nothing was timed.")))
    of = Map(findings.winners)
    picture = Figure(f"{TITLE}, by batch size", file=map_figure.NAME)
    return Section(
        "map",
        TITLE,
        (
            strip,
            Only(Place.README, (picture, Details("The map as a table", (of,)))),
            Only(Place.PAGE | Place.TERMINAL | Place.CI, (of,)),
            Facts(tuple(_numbers(findings)), large=True),
        ),
    )


def _strip(run: Run) -> Iterator[Fact]:
    """Where, of what and how well it was measured; and what broke."""
    timed = any(record.facts for record in run.records)
    yield Fact("machine", run.machine["device_name"])
    yield Fact("revision", machine.revision(run))
    yield Fact("run", f"{run.plan.profile}, {run.started[:10]}")
    if run.partial:
        yield Fact("ended", "stopped before its end", is_bad=True)
    yield _quiet_or_busy(run)
    if timed:
        yield Fact("medians known to", machine.precision_reached(run))
    else:
        yield Fact("medians known to", "nothing was timed", is_bad=True)
    yield _failures(run)


def _quiet_or_busy(run: Run) -> Fact:
    disturbed = sum(is_machines_fault(one.status, one.reason) for one in run.records)
    if disturbed:
        count = f"busy or throttled in {disturbed} of {len(run.records)} cases"
        return Fact("the machine was", count, is_bad=True)
    if run.ceilings and not run.ceilings.quiet:
        return Fact(
            "the machine was", "busy while its ceilings were measured", is_bad=True
        )
    return Fact("the machine was", "quiet")


def _failures(run: Run) -> Fact:
    broken = checks.broken(run)
    if not broken:
        return Fact("failures", "none")
    more = len(broken) - _MOST_NAMED
    named = ", ".join(broken[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
    return Fact("failures", named, is_bad=True)


def _numbers(findings: Findings) -> Iterator[Fact]:
    rows = findings.winners.rows
    won = sum(row.is_won for row in rows)
    yield Fact(
        "problems won",
        f"{won} of {len(rows)}",
        detail="something is faster than PyTorch's fastest at some batch",
    )
    yield _shares(findings)
    yield _batch_sizes(findings.training)


def _shares(findings: Findings) -> Fact:
    """The least and the largest share that a winner reached of the ceiling that binds
    it, and where; of those that more than a launch binds.
    """
    name = "of the ceiling reached, worst and best"
    bounds = [
        (findings.bounds.get(winner.case), winner.case)
        for row in findings.winners.rows
        for winner in row.winners
    ]
    shares = [
        (bound.share, case)
        for bound, case in bounds
        if bound and bound.regime != LAUNCH
    ]
    if not shares:
        return Fact(name, "not known", detail="no winner has a ceiling in this run")
    (worst, worst_case), (best, best_case) = min(shares), max(shares)
    return Fact(
        name,
        f"{worst:.0%} to {best:.0%}",
        detail=f"by the winners {worst_case} and {best_case}",
    )


def _batch_sizes(training: TrainingFindings | None) -> Fact:
    """The batch to train each workload at (bench.noise.advisor), in the middle of its
    training.
    """
    name = "B*, the batch to train at"
    if training is None or not training.workloads:
        return Fact(name, "not known", detail="the run has no gradient noise")
    batches, details = [], []
    for workload in training.workloads:
        try:
            advice = training.middle_advice(workload)
        except ValueError as error:
            details.append(f"{workload}: no advice, {error}")
            continue
        if advice.best_batch is None:
            details.append(f"{workload}: none")
            continue
        batches.append(f"{workload} {advice.best_batch:,}")
        details.append(f"{workload} {span(advice.interval)} (95%)")
    return Fact(name, ", ".join(batches) or "none", detail="; ".join(details))
