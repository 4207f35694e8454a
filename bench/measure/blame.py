"""Whose fault it is that a worker ended: each entry of a task gets its own outcome, and
nobody a neighbour's.

What ends a worker in one variant's step may be what another has left behind in the
process: a thread, a broken heap. So nobody is blamed for what he does not do alone as
well, in a fresh worker. Whoever ends that one gets his outcome, and the rest of the
task is measured anew without him. Where nobody does, what each was alone counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from batchline.bench.measure.task import OWN_FAULT, Outcome, Task, WorkerLost
from batchline.bench.measure.worker import STARTING
from batchline.bench.statuses import FAILED, HUNG, NOT_REACHED, WRONG

PROBES = (
    "probes"  # the step in which a variant is checked once for all its cases in a dtype
)
_MOST_HANGS = 2  # cases of one variant in one dtype; each costs two deadlines
_MOST_OWN_FAILURES = (
    2  # tasks of which each entry is tried alone after an error of our own
)


class Blame:
    """Measures tasks by `workers` (an Isolation), and keeps what must not be run again."""

    def __init__(self, workers):
        self._workers = workers
        self._refused: dict[tuple[str, str, str], Outcome] = {}
        self._hangs: dict[tuple[str, str, str], int] = {}
        self._own_failures = 0

    def measure(self, task: Task) -> dict[str, Outcome]:
        """Every entry's outcome, by label."""
        outcomes = dict(self._refusals(task))
        while left := task.without(outcomes):
            alone = self._workers.untouched and len(left.labels) == 1
            try:
                return outcomes | self._measured(left)
            except WorkerLost as lost:
                outcomes |= (
                    self._blamed(left, lost)
                    if alone or self._is_of_all(lost)
                    else self._found(left, lost)
                )
        return outcomes

    def _measured(self, task: Task) -> dict[str, Outcome]:
        """The task's outcomes, by one worker; raises WorkerLost, after an error of our
        own too.
        """
        try:
            return self._workers.call("measure", task)
        except RuntimeError as error:
            self._workers.renew()
            raise WorkerLost(FAILED, f"{OWN_FAULT}{error}", "", "") from error

    def _is_of_all(self, lost: WorkerLost) -> bool:
        """Whether no variant can be the reason: no worker comes up, or we have failed
        at too many tasks before.
        """
        return lost.step == STARTING or (
            lost.status == FAILED and self._own_failures >= _MOST_OWN_FAILURES
        )

    def _found(self, task: Task, lost: WorkerLost) -> dict[str, Outcome]:
        """The outcomes of the entries that end a worker of their own; where none does,
        everybody's.

        First the one whose step it was is tried. If that ends its worker too, no other
        is.
        """
        suspect = lost.whose if lost.whose in task.labels else None
        outcomes: dict[str, Outcome] = {}
        guilty: dict[str, Outcome] = {}
        for label in sorted(task.labels, key=lambda label: label != suspect):
            one = task.only(label)
            self._workers.renew()
            try:
                outcomes |= self._measured(one)
            except WorkerLost as alone:
                guilty |= self._blamed(one, alone)
                if label == suspect:
                    return guilty
                if (
                    not alone.whose and alone.status == HUNG
                ):  # over the inputs or the reference, as all others would
                    return guilty | dict.fromkeys(
                        task.without(guilty | outcomes).labels, guilty[label]
                    )
        if lost.status == FAILED and len(guilty) == len(task.labels):
            self._own_failures += 1
        if not guilty and lost.certain:
            return self._blamed(task.only(suspect), lost)
        return guilty or {label: _alone(outcome) for label, outcome in outcomes.items()}

    def _blamed(self, task: Task, lost: WorkerLost) -> dict[str, Outcome]:
        """What it means for all entries of the task that the worker was lost; kept
        where it need not be tried again.
        """
        for variant in {variant for _, variant in task.entries}:
            key = task.op, variant, task.dtype
            if lost.step.startswith(PROBES) or lost.status == WRONG:
                self._refused[key] = lost.outcome
            elif lost.status == HUNG and lost.step != STARTING:
                self._hangs[key] = self._hangs.get(key, 0) + 1
        return dict.fromkeys(task.labels, lost.outcome)

    def _refusals(self, task: Task) -> Iterator[tuple[str, Outcome]]:
        for label, variant in task.entries:
            key = task.op, variant, task.dtype
            if key in self._refused:
                yield label, self._refused[key]
            elif self._hangs.get(key, 0) >= _MOST_HANGS:
                yield label, Outcome(
                    NOT_REACHED,
                    f"given up: it hung on {_MOST_HANGS} cases in {task.dtype} before",
                )


def _alone(outcome: Outcome) -> Outcome:
    """The outcome of an entry that was not timed in turns with the others."""
    return replace(outcome, facts={**outcome.facts, "alone": True})
