"""What `batchline run` shows while it works: one rewritten line on a terminal, a line every
few seconds in a log.
"""

from __future__ import annotations

import collections
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from batchline.bench import console, units
from batchline.bench.budget import Forecast, Schedule
from batchline.bench.cases import Case
from batchline.bench.records import BROKEN, MEASURED
from batchline.bench.units import duration

_TELL_EVERY_S = 5.0
_PRIOR_SHARE = 0.1  # of the forecast, until as much has been measured


class Progress:
    """Counts the cases that really run here; the time left is the run's."""

    def __init__(self, stream: TextIO = sys.stderr, now=time.monotonic):
        self._stream = stream
        self._now = now
        self._on_terminal = stream.isatty()
        self._to_do = self._done = 0
        self._started_s = 0.0
        self._told_s = -math.inf
        self._case_s: dict[tuple, float] = (
            {}
        )  # what a case of a problem is expected to take
        self._done_s = self._left_s = self._prior_s = self._after_s = 0.0
        self._said: set[tuple[str, str, str]] = set()

    def plan(
        self, cases: Sequence[Case], forecast: Forecast, schedule: Schedule
    ) -> None:
        """Tell what is planned: all cases, those that there is time for, and how long
        that takes.
        """
        can_run = [case for case in cases if not case.refusal]
        with_time = [case for case in can_run if case.problem in forecast.problems_s]
        count = collections.Counter(case.problem for case in with_time)
        self._case_s = {
            key: seconds / count[key] for key, seconds in forecast.problems_s.items()
        }
        self._left_s, self._after_s = forecast.cases_s, forecast.after_s
        self._prior_s = _PRIOR_SHARE * forecast.cases_s
        self._to_do = len(with_time)
        self._say(f"{len(cases)} cases planned, {len(can_run)} of them run here")
        if len(with_time) < len(can_run):
            self._say(
                f"{len(with_time)} of those, on {len(count)} problems, fit into {schedule.name}; the others are "
                "rows without a time (K chooses)"
            )
        self._say(
            f"expected to take {units.clock(forecast.total_s)}: {units.clock(forecast.before_s)} before the "
            f"cases, {units.clock(forecast.compile_s)} to compile kernels, {units.clock(forecast.cases_s)} for "
            f"the cases, {units.clock(forecast.after_s)} after them"
        )

    def tell(self, what: str) -> None:
        """What is being done before the first case, where there is a terminal to show
        it on.
        """
        if self._on_terminal:
            self._stream.write(f"{console.ERASED}{what}")
            self._stream.flush()

    def compiled(self, compiled: Mapping) -> None:
        """Tell of the kernels that were compiled ahead, as
        bench.measure.ahead.CompiledAhead has them.
        """
        if compiled["why_none"]:
            self._say(f"no kernel is compiled ahead: {compiled['why_none']}")
            return
        self._say(
            f"{compiled['count']} kernels compiled ahead in {units.clock(compiled['seconds'])}, "
            f"{compiled['already']} were there, of {compiled['needed']}; {len(compiled['failed'])} did not "
            "compile, or are not known before their launch"
        )

    def start(self) -> None:
        """The first case comes next."""
        self._started_s = self._now()

    def done(
        self, case: Case, status: str, reason: str, median_s: float | None
    ) -> None:
        """Tell of one finished case and its median, None where it has none."""
        if status in BROKEN:
            self._say_once(case, status, reason)
        if case.refusal or case.problem not in self._case_s:
            return
        self._done += 1
        self._left_s -= self._case_s[case.problem]
        self._done_s += self._case_s[case.problem]
        what = duration(median_s) if status == MEASURED else status
        line = f"[{self._done:>{len(str(self._to_do))}}/{self._to_do}] {self._left():<16} {case.id} {what}"
        if self._on_terminal:
            self._stream.write(f"{console.ERASED}{line[:console.columns() - 1]}")
            self._stream.flush()
        elif self._now() - self._told_s > _TELL_EVERY_S:
            self._say(line)
            self._told_s = self._now()

    def _say_once(self, case: Case, status: str, reason: str) -> None:
        """A file that is broken is so in each of its cases: one line names them all."""
        key = case.variant.id, status, reason
        if key not in self._said:
            self._said.add(key)
            self._say(
                f"{case.id}: {status}: {reason}"
                if case.variant.broken is None
                else f"{case.variant.id}, in all its cases: {status}: {reason}"
            )

    def end(self) -> None:
        if self._on_terminal:
            self._stream.write(console.ERASED)
            self._stream.flush()

    def _left(self) -> str:
        """At the pace so far; the first cases of a run say little of it, so the
        forecast counts as some cases done.
        """
        pace = (self._now() - self._started_s + self._prior_s) / (
            self._done_s + self._prior_s
        )
        return f"{units.clock(pace * max(0.0, self._left_s) + self._after_s)} left"

    def _say(self, line: str) -> None:
        self._stream.write(
            f"{console.ERASED}{line}\n" if self._on_terminal else f"{line}\n"
        )
        self._stream.flush()
