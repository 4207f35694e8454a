"""The parent's side of isolation: a worker process that is asked to measure, and
replaced when a variant ends it.

Whose fault it is that a worker ended: each entry of a task gets its own outcome, and
nobody a neighbour's.

What ends a worker in one variant's step may be what another has left behind in the
process: a thread, a broken heap. So nobody is blamed for what he does not do alone as
well, in a fresh worker. Whoever ends that one gets his outcome, and the rest of the
task is measured anew without him. Where nobody does, what each was alone counts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from batchline.bench.measure.doing import Doing
from batchline.bench.measure.worker.task import (
    DONE,
    LOST,
    OWN_FAULT,
    TAMPERED,
    Answer,
    Asked,
    Forged,
    Lines,
    Outcome,
    Task,
    WorkerLost,
    decoded,
)
from batchline.bench.measure.worker.worker import IDLE, STARTING, Mould, serve
from batchline.bench.statuses import (
    CRASHED,
    FAILED,
    HUNG,
    INVALID,
    NOT_CAPTURED,
    NOT_REACHED,
    OUT_OF_MEMORY,
    WRONG,
)
from batchline.bench.stopping import put_off_and_kept_from_children

PROBES = (
    "probes"  # the step in which a variant is checked once for all its cases in a dtype
)
_MOST_HANGS = 2  # cases of one variant in one dtype; each costs two deadlines
_MOST_OWN_FAILURES = (
    2  # tasks of which each entry is tried alone after an error of our own
)
_START_S = 120  # to import torch, and on a GPU to make a context
_LATE_S, _LATE_SHARE = (
    1.0,
    0.1,
)  # how long after its end by the worker's clock an answer may come by ours
_PRELOADED = (
    "batchline.bench.measure.worker.runner",
)  # and with it torch, the compilers and scipy, but no op


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
                    else self._find_culprits(left, lost)
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

    def _find_culprits(self, task: Task, lost: WorkerLost) -> dict[str, Outcome]:
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


class Isolation:
    """Measures tasks in a worker process. A variant that ends it gets its row, and the
    others a fresh worker.

    `tree`: the folder whose `kernels` are measured, where that is not the one beside
    this `bench`. `starts_now`: the worker starts before it is asked anything.
    """

    def __init__(
        self,
        device: str,
        deadline_s: float,
        tree: Path | None = None,
        starts_now: bool = True,
    ):
        self._device = device
        self._tree = str(tree) if tree else None
        self._deadline_s = deadline_s
        self._context = multiprocessing.get_context("spawn")
        self._blame = Blame(self)
        self._mould: Mould | None = None
        self._connection = None
        if starts_now:
            self._start()

    @property
    def untouched(self) -> bool:
        """Whether the next request is the first that its worker is asked."""
        return self._connection is None or self._fresh

    def call(self, method: str, *arguments):
        """Runner.`method`(*arguments) in the worker.

        Raises:
            WorkerLost: if the worker ended, was not done with one step by the deadline,
                or can't be believed any more; the next call is answered by a fresh one.
            RuntimeError: if it answered with an error of our own.
        """
        self.ask(method, *arguments)
        return self.answer()

    def ask(self, method: str, *arguments) -> None:
        """Put a request to the worker; its `answer` must be fetched before the next."""
        if self._connection is None:
            self._start()
        self._fresh = False
        self._put(method, *arguments)

    def answer(self):
        """What the worker answers to what it was asked. Raises as `call` does."""
        try:
            answer = self._believed()
        except WorkerLost:
            self.renew()
            raise
        if answer.kind == DONE:
            return answer.content
        raise RuntimeError(answer.content)

    def measure(self, task: Task) -> dict[str, Outcome]:
        """Every entry's outcome, by label; those that end their worker have that as
        theirs (bench.measure.worker.isolation).
        """
        outcomes = self._blame.measure(task)
        if any(map(_has_failed_to_capture, outcomes.values())):
            self.renew()  # a capture that fails may leave its process in any state
        return outcomes

    def renew(self) -> None:
        """End the worker, whatever it is doing, and all that it has left behind; the
        next call gets a fresh one.
        """
        if self._connection is None:
            return
        self._connection.close()
        self._connection = None
        if not self._mould.end_worker():
            self.close()

    def close(self) -> None:
        """End the worker and the process that it was forked from; the next call starts
        both anew.
        """
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._mould is not None:
            mould, self._mould = self._mould, None
            mould.close()

    def _start(self) -> None:
        if self._mould is None:
            self._doing = Doing(self._context)
            with put_off_and_kept_from_children():  # or a Ctrl-C while it starts would print its traceback
                arguments = self._doing, self._device, self._tree
                self._mould = Mould(
                    self._context, serve, arguments, _PRELOADED, self._tree
                )
        self._doing.begin("", STARTING)
        self._connection = self._mould.fork()
        self._lines = Lines(self._connection.fileno())
        self._fresh = True
        self._oom_kills = _oom_kills()

    def _put(self, method: str, *arguments) -> None:
        labels = arguments[0].labels if method == "measure" else ()
        self._asked = Asked(secrets.token_hex(16), method, labels, time.perf_counter())
        with contextlib.suppress(
            BrokenPipeError, ConnectionResetError
        ):  # it has just died: wait for its exit code
            self._connection.send((self._asked.number, method, arguments))

    def _believed(self) -> Answer:
        """The worker's answer, if nothing speaks against it; raises WorkerLost."""
        answer = self._received()
        whose, step, _ = self._doing.read()
        if answer.kind == LOST:
            raise WorkerLost(CRASHED, answer.content, whose, step)
        if answer.kind == TAMPERED:
            named, reason = answer.content
            raise WorkerLost(
                WRONG, reason, named or "", step, certain=named in self._asked.labels
            )
        late_s = time.perf_counter() - answer.ended_s
        if self._asked.method == "measure" and late_s > _LATE_S + _LATE_SHARE * (
            answer.ended_s - answer.began_s
        ):
            reason = f"by its own clock its process was done {late_s:.1f} s before its answer came"
            raise WorkerLost(INVALID, reason, "", step)
        self._put(IDLE)  # while it is still at it, what has come was not from it
        self._received()
        return answer

    def _received(self) -> Answer:
        """The answer to what was asked last; raises WorkerLost."""
        try:
            line = self._next_line()
            answer = decoded(line, self._asked, time.perf_counter())
        except Forged as forged:
            raise WorkerLost(
                WRONG, f"its process has sent {forged}", *self._doing.read()[:2]
            ) from forged
        return answer

    def _next_line(self) -> bytes:
        """What the worker sends next; raises WorkerLost where it ends or its deadline
        passes first, and Forged.
        """
        asked_s = time.monotonic()
        while True:
            whose, step, since_s = self._doing.read()
            longest_s = self._deadline_s + (_START_S if step == STARTING else 0)
            left_s = max(since_s, asked_s) + longest_s - time.monotonic()
            if left_s <= 0:
                raise WorkerLost(HUNG, f"not done after {longest_s:g} s", whose, step)
            look_s = min(
                left_s, self._deadline_s / 8
            )  # the next step has its own deadline, and no way to say so
            ready = multiprocessing.connection.wait(
                [self._connection, *self._mould.signs], look_s
            )
            if self._connection in ready:
                try:
                    if line := self._lines.next():
                        return line
                except (EOFError, ConnectionResetError):
                    self._raise_lost(
                        multiprocessing.connection.wait(self._mould.signs, _LATE_S)
                    )
            elif ready:
                self._raise_lost(ready)

    def _raise_lost(self, signs: list) -> None:
        """Raise WorkerLost: its process has ended if there are `signs` of that; else it
        has closed its connection.
        """
        status, reason = (
            self._how_it_ended()
            if signs
            else (CRASHED, "its process has closed its connection")
        )
        raise WorkerLost(status, reason, *self._doing.read()[:2])

    def _how_it_ended(self) -> tuple[str, str]:
        code = self._mould.exit_code()
        if code is None:
            return CRASHED, "the process that its process was forked from has ended"
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return OUT_OF_MEMORY, "the kernel killed its process when memory ran out"
        if code < 0:
            return CRASHED, f"its process was ended by {signal.Signals(-code).name}"
        return CRASHED, f"its process ended with exit code {code}"


def _has_failed_to_capture(outcome: Outcome) -> bool:
    return any(
        clock.get("why_not", "").startswith(NOT_CAPTURED)
        for clock in outcome.facts.get("clocks", {}).values()
    )


def _oom_kills() -> int:
    """How many processes the kernel has killed for want of memory so far; 0 where it
    does not say.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
