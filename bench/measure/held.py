"""A problem held ready in a worker: timed a turn at a time, when the parent says so.

So the parent can take turns between two processes that are alive at once, each with another revision's kernels.
"""
from __future__ import annotations

import gc
import itertools
import os
import threading
from collections.abc import Callable

import kernels
from bench.measure import outcome
from bench.measure.preparing import RAISED, Preparing
from bench.measure.task import Outcome, Task
from bench.records import INVALID, MEASURED

_SETTLES_S = 3e-3  # a turn follows another process': its threads spin on for a while, and the caches are its own
_LONG_S = 0.02     # a call that takes so long has settled before most of it is done
_COPIES = 5             # of the inputs
_TURNS_OF_A_COPY = 2     # both turns of one side in A B B A
_PLACED_BYTES = 2 ** 26  # larger inputs are in no cache, and where they lie makes no difference


class Held:
    """The entries of one task, each ready to be timed by the task's first clock, on several copies of the inputs.

    Where a copy happens to lie in memory makes up to a tenth of a small call's time, for as long as its process lives.
    Garbage collection is off until they are let go of.
    """

    def __init__(self, task: Task, preparing: Preparing, hardware, state, begin: Callable[[str, str], None]):
        op, name = kernels.ops[task.op], task.clocks[0]
        self._preparing, self._hardware, self._state, self._begin = preparing, hardware, state, begin
        self._outcomes: dict[str, Outcome] = {}
        self._entries, self._clocks = {}, {}
        self._problem = preparing.problem(op, task, self._outcomes)
        if self._problem:
            self._entries = preparing.entries(op, task, self._problem, self._outcomes)
            for copy in self._problem.copies(_PLACED_BYTES, _COPIES):
                clocks, errors = preparing.clocks(name, task.effort, self._entries, [copy])
                for label, clock in clocks.items():
                    self._clocks.setdefault(label, []).append(clock)
                self._outcomes |= {label: outcome.of_error(error) for label, error in errors.items()}
            self._outcomes |= {label: Outcome(INVALID, entry.by_clock[name]) for label, entry in self._entries.items()
                               if name in entry.by_clock}
            self._clocks = {label: itertools.cycle(clock for clock in clocks for _ in range(_TURNS_OF_A_COPY))
                            for label, clocks in self._clocks.items() if label not in self._outcomes}
        if hardware.name == "cpu":
            _give_each_thread_a_core()
        gc.collect()
        gc.disable()
        state.why_throttled()  # what was before is not of these turns

    @property
    def ready(self) -> tuple[str, ...]:
        """The labels of those that can be timed."""
        return tuple(self._clocks)

    def turn(self, label: str, seconds: float) -> tuple[list[float], str | None]:
        """Seconds a call, in samples over so many seconds and at least one, and what slowed the machine down or None.

        No samples from an entry that has failed.
        """
        if label not in self._clocks:
            return [], None
        clock = next(self._clocks[label])
        self._begin(label, f"timing by {clock.name}")
        try:
            self._settle(clock, self._entries[label].call_s)
            return self._samples(clock, seconds), self._state.why_throttled()
        except RAISED as error:
            self._fail(label, error)
            return [], None
        finally:
            clock.result = None

    def outcomes(self) -> dict[str, Outcome]:
        """Each entry's outcome, with its facts: its output is compared with the reference, on the path that was timed.

        The samples are in the answers to `turn`.
        """
        for label, clocks in list(self._clocks.items()):
            clock = next(clocks)
            try:
                clock.sample()
                self._problem.check(self._entries[label].variant, clock.result,
                                    f"the output that was timed by {clock.name}")
                self._outcomes[label] = Outcome(MEASURED, facts=self._entries[label].facts)
            except RAISED as error:
                self._fail(label, error)
            finally:
                clock.result = None
        gc.enable()
        return self._outcomes

    def _settle(self, clock, call_s: float) -> None:
        until_s = self._hardware.now_s() + (_SETTLES_S if call_s < _LONG_S else 0)
        while self._hardware.now_s() < until_s:
            clock.sample()

    def _samples(self, clock, seconds: float) -> list[float]:
        start_s = self._hardware.now_s()
        samples_s = [clock.sample()]
        while self._hardware.now_s() - start_s < seconds:
            samples_s.append(clock.sample())
        return samples_s

    def _fail(self, label: str, error: BaseException) -> None:
        self._preparing.require_device(error)
        del self._clocks[label]
        self._outcomes[label] = outcome.of_error(error)


def _give_each_thread_a_core() -> None:
    """This thread the first, and the libraries' threads the others in turn.

    Left to the system, threads of one pool shared a core for as long as their process lived: with two processes taking
    turns, their ratio on a 10 µs mean varied by 15%, and by 3% so.
    """
    first, *others = sorted(os.sched_getaffinity(0))
    if others:
        mine = threading.get_native_id()
        os.sched_setaffinity(mine, [first])
        pools = sorted(int(name) for name in os.listdir("/proc/self/task") if int(name) != mine)
        for number, thread in enumerate(pools):
            os.sched_setaffinity(thread, [others[number % len(others)]])
