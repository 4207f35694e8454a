"""A problem held ready in a worker: timed a turn at a time, when the parent says so.

So the parent can take turns between two processes that are alive at once, each with
another revision's kernels.
"""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterable

from batchline import kernels
from batchline.bench.measure.checking.check import SECRET
from batchline.bench.measure.machine import busy
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.timing.sampling import Ledger, Unwatched
from batchline.bench.measure.worker import outcome
from batchline.bench.measure.worker.preparing import RAISED, Preparing
from batchline.bench.measure.worker.task import Outcome, Task
from batchline.bench.measure.worker.watch import Watch
from batchline.bench.statuses import INVALID, MEASURED, WRONG

_SETTLES_S = 3e-3  # a turn follows another process': its threads spin on for a while, and the caches are its own
_LONG_S = 0.02  # a call that takes so long has settled before most of it is done
_COPIES = 5  # of the inputs
_TURNS_OF_A_COPY = 2  # both turns of one side in A B B A
_PLACED_BYTES = (
    2**26
)  # larger inputs are in no cache, and where they lie makes no difference


class Held:
    """The entries of one task, each ready to be timed by the task's first clock, on
    several copies of the inputs.

    Where a copy happens to lie in memory makes up to a tenth of a small call's time,
    for as long as its process lives. Garbage collection is off until they are let go
    of.
    """

    def __init__(
        self,
        task: Task,
        preparing: Preparing,
        hardware,
        state,
        begin: Callable[[str, str], None],
    ):
        self._preparing, self._hardware, self._state, self._begin = (
            preparing,
            hardware,
            state,
            begin,
        )
        self._outcomes: dict[str, Outcome] = {}
        self._entries, self._clocks = {}, {}
        self._watched: dict[str, object] = {}  # every clock, by what it times
        self._copies: dict[str, list[str]] = {}  # what each entry's clocks time
        self._watch = Unwatched()
        ledger = Ledger()
        self._problem = preparing.problem(kernels.ops[task.op], task, self._outcomes)
        ledger.check_s = (
            ledger.total_s
        )  # to draw values and compute what is expected of them
        if self._problem:
            try:
                self._prepare(task, ledger)
            except Tampered as tampered:
                self._end_all(tampered, task.labels)
        if hardware.name == "cpu":
            busy.give_each_thread_a_core()
            preparing.fence.accept()  # that was ours
        gc.collect()
        gc.disable()
        if self._clocks:
            variants = {label: self._entries[label].variant for label in self._clocks}
            self._watch = Watch(self._problem, variants, preparing.fence, ledger)
        self._watch.begin(collects=False, clocks=self._watched)
        state.why_throttled()  # what was before is not of these turns

    def _prepare(self, task: Task, ledger: Ledger) -> None:
        op, name = kernels.ops[task.op], task.clocks[0]
        self._entries = self._preparing.entries(
            op, task, self._problem, self._outcomes, ledger
        )
        for number, copy in enumerate(self._problem.copies(_PLACED_BYTES, _COPIES), 1):
            clocks, errors = self._preparing.clocks(
                name, task.effort, self._entries, [copy]
            )
            for label, clock in clocks.items():
                self._clocks.setdefault(label, []).append(clock)
                which = f"{label} on copy {number}"
                self._watched[which] = clock
                self._copies.setdefault(label, []).append(which)
            self._outcomes |= {
                label: outcome.of_error(error) for label, error in errors.items()
            }
        self._outcomes |= {
            label: Outcome(INVALID, entry.by_clock[name])
            for label, entry in self._entries.items()
            if name in entry.by_clock
        }
        self._clocks = {
            label: itertools.cycle(
                clock for clock in clocks for _ in range(_TURNS_OF_A_COPY)
            )
            for label, clocks in self._clocks.items()
            if label not in self._outcomes
        }

    @property
    def ready(self) -> tuple[str, ...]:
        """The labels of those that can be timed."""
        return tuple(self._clocks)

    def turn(self, label: str, seconds: float) -> tuple[list[float], str | None]:
        """Seconds a call, in samples over so many seconds and at least one, and what
        slowed the machine down or None.

        No samples from an entry that has failed.
        """
        if label not in self._clocks:
            return [], None
        clock = next(self._clocks[label])
        self._begin(label, f"timing by {clock.name}")
        self._watch.before_round()
        taken: tuple[list[float], str | None] = [], None
        try:
            self._settle(clock, self._entries[label].call_s)
            taken = self._samples(label, clock, seconds), self._state.why_throttled()
        except RAISED as error:
            self._fail(label, error)
        finally:
            clock.result = None
        try:
            self._watch.after_turn(label)
        except Tampered as tampered:
            self._end_all(tampered, self.ready)
            return [], None
        return taken

    def outcomes(self) -> dict[str, Outcome]:
        """Each entry's outcome, with its facts: its output is compared with the
        reference, on the path that was timed.

        The samples are in the answers to `turn`.
        """
        for label, clocks in list(self._clocks.items()):
            clock = next(clocks)
            try:
                clock.sample()
                self._problem.require_right(
                    label,
                    self._entries[label].variant,
                    clock.result,
                    f"the output that was timed by {clock.name}",
                )
                self._outcomes[label] = Outcome(
                    MEASURED, facts=self._entries[label].facts
                )
            except RAISED as error:
                self._fail(label, error)
            finally:
                clock.result = None
        try:
            self._watch.end(collects=True)
        except Tampered as tampered:
            self._end_all(tampered, self.ready)
        gc.enable()
        return self._outcomes

    def _settle(self, clock, call_s: float) -> None:
        until_s = self._hardware.now_s() + (_SETTLES_S if call_s < _LONG_S else 0)
        while self._hardware.now_s() < until_s:
            clock.sample()

    def _samples(self, label: str, clock, seconds: float) -> list[float]:
        """Samples for so many seconds and at least one; at a random moment among them
        what is computed is looked at.
        """
        look = next(filter(None, self._watch.plan(label, clock, 1)), None)
        start_s = self._hardware.now_s()
        look_s = start_s + SECRET.uniform(0, seconds)
        samples_s = [clock.sample()]
        while self._hardware.now_s() - start_s < seconds:
            samples_s.append(clock.sample())
            if look and self._hardware.now_s() > look_s:
                look.take(clock)
                look = None
        if look:
            look.take(clock)
        return samples_s

    def _fail(self, label: str, error: BaseException) -> None:
        self._preparing.require_device(error)
        self._clocks.pop(label, None)
        for which in (label, *self._copies.get(label, ())):
            self._watch.drop(which)
        self._outcomes[label] = outcome.of_error(error)

    def _end_all(self, tampered: Tampered, labels: Iterable[str]) -> None:
        """No more turns for anybody in a process that was tampered with: wrong is who
        did it, or whoever may have.
        """
        for label in tuple(labels):
            if tampered.whose in (label, None):
                self._outcomes[label] = Outcome(WRONG, tampered.reason)
            else:
                self._outcomes[label] = Outcome(
                    INVALID, f"{tampered.whose} changed its process: {tampered.reason}"
                )
        self._clocks.clear()
