"""The pytest plugin behind `batchline run`: hands the cases to bench_kernels.py and keeps
what became of each. The cases are measured by a worker process (Measurer).

The variants of a problem are measured together, in turns, when the first of them comes
up. pytest-benchmark then gets each one's rounds through `pedantic`, with a timer that
goes on by one sample for each.

Progress shows how far it is: one rewritten line on a terminal, a line every few seconds
in a log.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TextIO

import pytest

from batchline.bench import console, texts, units
from batchline.bench.cases import Case, Plan, Profile, along
from batchline.bench.declared import Refusal
from batchline.bench.measure import stand_in
from batchline.bench.measure.ahead import Ahead
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.timing.sustained import window_s
from batchline.bench.measure.worker.isolation import Isolation, WorkerLost
from batchline.bench.measure.worker.task import Outcome, Task
from batchline.bench.running.budget import Forecast, Schedule, in_turns
from batchline.bench.running.replay import Replay
from batchline.bench.stats import roofline
from batchline.bench.statuses import (
    BROKEN,
    FAILED,
    INVALID,
    MEASURED,
    NOT_HERE,
    NOT_REACHED,
    THE_MACHINE_WAS,
    NotMeasured,
)
from batchline.bench.store.journal import RunBuilder
from batchline.bench.units import duration

_TELL_EVERY_S = 5.0
# The forecast counts as so many seconds of measuring at the forecast's pace: a tenth of
# the cases', and half a minute at the least, for the first problem has what happens once
# in a run (the compilers start, a busy machine is waited for).
_PRIOR_SHARE, _LEAST_PRIOR_S = 0.1, 30.0
_MOST_TRIES = 3  # of a problem with a time that can't be
_LEAST_TO_COMPILE_S, _MOST_OF_EXPECTED = 30.0, 2.0


class Progress:
    """Counts the cases that really run here; the time left is the run's."""

    def __init__(self, stream: TextIO = sys.stderr, now=time.monotonic):
        self._stream = stream
        self._now = now
        self._on_terminal = stream.isatty()
        self._to_do = self._done = 0
        self._started_s = 0.0
        self._told_s = -math.inf
        self._problems_s: dict[tuple, float] = {}  # what each is expected to take
        self._open: set[tuple] = set()  # the problems of which nothing is measured yet
        self._done_s = self._left_s = self._prior_s = self._after_s = 0.0
        self._schedule: Schedule | None = None
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
        self._schedule = schedule
        self._problems_s = dict(forecast.problems_s)
        self._open = set(self._problems_s)
        self._done_s, self._left_s = 0.0, forecast.cases_s
        self._after_s = forecast.after_s
        self._prior_s = max(_LEAST_PRIOR_S, _PRIOR_SHARE * forecast.cases_s)
        self._done, self._to_do = 0, len(with_time)
        self._say(f"{len(cases)} cases planned, {len(can_run)} of them run here")
        if len(with_time) < len(can_run):
            self._say(
                f"{len(with_time)} of those, on {len(count)} problems, fit into {schedule.name}; the others are "
                "rows without a time (-k chooses)"
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
        if case.refusal or case.problem not in self._problems_s:
            return
        self._done += 1
        if case.problem in self._open:  # all its cases are measured with the first one
            self._open.remove(case.problem)
            self._left_s -= self._problems_s[case.problem]
            self._done_s += self._problems_s[case.problem]
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
        """By the plan's forecast, at the pace so far; never more than what is left of
        the schedule's budget.
        """
        pace = (self._now() - self._started_s + self._prior_s) / (
            self._done_s + self._prior_s
        )
        left_s = pace * max(0.0, self._left_s) + self._after_s
        return f"{units.clock(self._schedule.within_budget(left_s))} left"

    def _say(self, line: str) -> None:
        self._stream.write(
            f"{console.ERASED}{line}\n" if self._on_terminal else f"{line}\n"
        )
        self._stream.flush()


class Session:
    """One run's state: the plan, and the status and reason of every case that was
    selected.

    `schedule` knows the plan, and which problems there is time for. `measurer` compiles
    ahead, gives the ceilings, and the outcomes of the cases of a problem. `ceilings`
    are those already known.
    `builder` is the run that all of it is added to.
    """

    def __init__(
        self,
        schedule: Schedule,
        measurer,
        progress: Progress,
        builder: RunBuilder,
        ceilings: dict | None = None,
    ):
        plan = schedule.of
        self._plan = plan
        self._schedule = schedule
        self._cases = {case.id: case for case in plan.cases}
        self._along: set[str] = (
            set()
        )  # the ids of cases that are measured only because others are compared with them
        self._measurer = measurer
        self.progress = progress
        self.ceilings = ceilings
        self._builder = builder
        self._recorded_ceilings = ceilings, None
        self.why_no_ceilings: str | None = None
        self._refused: set[str] = (
            set()
        )  # the ids of variants with a time that can't be, however often it was looked at
        self._replay = Replay()
        self._by_problem: dict[tuple, list[Case]] = {}
        self._results: dict[str, Outcome] = {}
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_generate_tests(self, metafunc):
        if "case_id" in metafunc.fixturenames:
            metafunc.parametrize("case_id", list(self._cases), ids=list(self._cases))

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, items):
        """Let pytest choose by its -k, add what the chosen cases are compared with, and
        put the problems in turns.
        """
        every = list(items)
        yield
        chosen = {item.callspec.params["case_id"] for item in items}
        self._along = along(self._plan, chosen)
        by_problem: dict[tuple, list] = {}
        for item in every:
            name = item.callspec.params["case_id"]
            if name in chosen | self._along:
                by_problem.setdefault(self._cases[name].problem, []).append(item)
        items[:] = [
            item for problem in in_turns(by_problem) for item in by_problem[problem]
        ]
        for item in items:
            item.add_marker(pytest.mark.benchmark(timer=self._replay.timer))

    def pytest_collection_finish(self, session):
        chosen = [
            self._cases[item.callspec.params["case_id"]] for item in session.items
        ]
        names = {case.id for case in chosen}
        # A record's place is that of the plan, whenever it is measured.
        self.outcomes = {
            name: (NOT_REACHED, "the run ended before it")
            for name in self._cases
            if name in names
        }
        if chosen:
            self._builder.add_plan(
                list(self.outcomes),
                [name for name in self.outcomes if name in self._along],
            )
        can_run = [case for case in chosen if not case.refusal]
        self.progress.tell("which kernels are launched")
        self._measurer.note(can_run)
        forecast = self._schedule.plan(can_run, self._measurer.compile_s)
        self.progress.plan(chosen, forecast, self._schedule)
        self._by_problem = {problem: [] for problem in forecast.problems_s}
        with_time = [case for case in can_run if case.problem in self._by_problem]
        for case in with_time:
            self._by_problem[case.problem].append(case)
        if with_time:
            self._compile_ahead(with_time, forecast.compile_s)
            self.measure_ceilings()
            self._measurer.expect(self._to_begin())
        self._schedule.begin()
        self.progress.start()

    def _to_begin(self) -> Iterator[list[Case]]:
        """The cases of each problem, in turn; each is begun when it is asked for, if
        there is time for it by then.
        """
        for problem, cases in self._by_problem.items():
            if not self._schedule.why_not(problem):
                yield cases

    def _compile_ahead(self, cases: Sequence[Case], expected_s: float) -> None:
        """Compile what the cases need; what takes far longer than expected is left to
        the worker.
        """
        longest_s = max(_LEAST_TO_COMPILE_S, _MOST_OF_EXPECTED * expected_s)
        compiled = self._measurer.compile_ahead(cases, longest_s, self.progress.tell)
        if compiled:
            self._builder.add_compiled_ahead(compiled)
            self.progress.compiled(compiled)

    @pytest.fixture
    def batchline(self):
        return self

    def measure(self, name: str, benchmark) -> None:
        """Measure the case called `name`; its outcome is kept whether or not it raises
        NotMeasured.
        """
        case = self._cases[name]
        try:
            refusal = case.refusal or self._no_time_for(case)
            outcome = (
                Outcome(*refusal)
                if refusal
                else self._believed(self._result_of(case), case)
            )
            if outcome.status == MEASURED:
                self._replay.into(benchmark, outcome.samples_s, outcome.iterations)
                benchmark.extra_info.update(outcome.facts)
        except (
            Exception
        ) as error:  # ours, or a worker's answer that is none: a row, and the run goes on
            outcome = Outcome(
                FAILED, f"Batchline itself failed: {texts.error_line(error)}"
            )
        self._keep(case, outcome)
        if outcome.status != MEASURED:
            raise NotMeasured(*self.outcomes[name])

    def _keep(self, case: Case, outcome: Outcome) -> None:
        """Add the outcome of a case to the run."""
        status, reason = outcome.status, texts.clean_line(outcome.reason)
        self.outcomes[case.id] = status, reason
        self._builder.add_outcome(
            case.id,
            status,
            reason,
            outcome.samples_s,
            outcome.iterations,
            outcome.facts,
            outcome.rank,
        )
        self._record_ceilings()
        median_s = statistics.median(outcome.samples_s) if status == MEASURED else None
        self.progress.done(case, status, reason, median_s)

    def _believed(self, outcome: Outcome, case: Case) -> Outcome:
        """The outcome, or INVALID if one of its times is impossible.

        Where the machine was never quiet enough for its ceilings, nobody is accused by
        them, and nothing is believed either.
        """
        why = self._why_impossible(outcome)
        if why and not self.ceilings.get("quiet", True):
            why = f"{THE_MACHINE_WAS}busy whenever its ceilings were measured, so it is not known whether {why}"
        return Outcome(INVALID, why, rank=outcome.rank) if why else outcome

    def _measured(self, cases: Sequence[Case]) -> dict[str, Outcome]:
        """The outcomes of the cases of one problem, by id; measured again where one has
        a time that can't be.

        The machine may have been slower when its ceilings were measured than when the
        case was, and a virtual one's host may slow it down unseen. So the ceilings are
        measured again right after such a time, the best of each counts, and so does
        what a baseline reaches, the vendor's; a time that still can't be is taken again
        between two looks at the ceilings, and the last one counts. A variant that is
        refused for all that gets no more looks.
        """
        for _ in range(_MOST_TRIES):
            outcomes = self._measurer.outcomes(cases)
            self._raise_ceilings(cases, outcomes)
            if not self._suspects(cases, outcomes):
                return outcomes
            self.measure_ceilings()
            suspects = self._suspects(cases, outcomes)
            if not suspects:
                return outcomes
        self._refused.update(suspects)
        return outcomes

    def _suspects(
        self, cases: Sequence[Case], outcomes: Mapping[str, Outcome]
    ) -> set[str]:
        """The ids of the variants with a time that can't be, and that were not refused
        before.
        """
        return {
            case.variant.id for case in cases if self._why_impossible(outcomes[case.id])
        } - self._refused

    def _raise_ceilings(
        self, cases: Sequence[Case], outcomes: Mapping[str, Outcome]
    ) -> None:
        """By what the baseline of these cases of one problem has reached, before any of
        them is judged.
        """
        for case in cases:
            outcome = outcomes[case.id]
            if (
                self.ceilings
                and outcome.status == MEASURED
                and case.variant.is_baseline
            ):
                for facts in outcome.facts["clocks"].values():
                    if "median_s" in facts:
                        self.ceilings = roofline.raised_by(
                            self.ceilings, outcome.facts, facts["median_s"]
                        )

    def _why_impossible(self, outcome: Outcome) -> str | None:
        if outcome.status != MEASURED or not self.ceilings:
            return None
        for name, facts in outcome.facts["clocks"].items():
            why = "median_s" in facts and roofline.why_impossible(
                outcome.facts, facts["median_s"], self.ceilings
            )
            if why:
                return f"by {name}, {why}"
        return None

    def measure_ceilings(self) -> None:
        """Measure what the machine can do, and keep the best that was seen in this run."""
        now, why_not = self._measurer.ceilings()
        if now:
            self.ceilings = (
                roofline.best_of(self.ceilings, now) if self.ceilings else now
            )
        elif not self.ceilings:
            self.why_no_ceilings = why_not
        self._record_ceilings()

    def _record_ceilings(self) -> None:
        now = self.ceilings, self.why_no_ceilings
        if now != self._recorded_ceilings:
            self._builder.add(
                ceilings=self.ceilings, why_no_ceilings=self.why_no_ceilings
            )
            self._recorded_ceilings = now

    def _no_time_for(self, case: Case) -> Refusal | None:
        why = self._schedule.why_not(case.problem)
        return (NOT_HERE, why) if why else None

    def _result_of(self, case: Case) -> Outcome:
        if case.id not in self._results:
            self._results.update(self._measured(self._by_problem[case.problem]))
        return self._results.pop(case.id)


def _other_effort(profile: Profile) -> Effort:
    """By every clock but the first; on the stand-in, whose times are made up, few
    samples.
    """
    effort = Effort(profile.precision, profile.other_clocks_s)
    if stand_in.is_on():
        return dataclasses.replace(
            effort, least=stand_in.SAMPLES, most=stand_in.SAMPLES
        )
    return effort


class Measurer:
    """Puts cases and ceilings to the worker, with the effort of a plan's profile, and
    compiles ahead for them.
    """

    def __init__(
        self,
        the_plan: Plan,
        isolation: Isolation,
        clocks: Sequence[str],
        ahead: Ahead | None,
    ):
        self._plan = the_plan
        self.isolation = isolation
        self._ahead = ahead
        profile = the_plan.profile
        self._settings = {
            "nearby_seed": ahead.nearby_seed if ahead else None,
            "clocks": tuple(clocks),
            "warm_up_s": profile.warm_up_s,
            "energy_s": profile.energy_s,
            "sustained_s": window_s(),
            "longest_call_s": profile.longest_call_s,
            "effort": Effort(profile.precision, profile.sampling_s),
            "other_effort": _other_effort(profile),
        }

    @property
    def ceilings_asked(self) -> tuple[Sequence[str], Effort]:
        """The dtypes of the ceilings, and the effort for them."""
        dtypes = self._plan.profile.dtypes[self._plan.device]
        return dtypes, self._settings["effort"]

    def ceilings(self) -> tuple[dict | None, str | None]:
        """The machine's ceilings, or None and why it has none."""
        try:
            return self.isolation.call("ceilings", *self.ceilings_asked)
        except (WorkerLost, RuntimeError) as error:
            return None, str(error)

    def note(self, cases: Sequence[Case]) -> None:
        """Find what must be compiled for these cases, which come in this order."""
        if self._ahead:
            self._ahead.note(cases)

    def compile_s(self, cases: Sequence[Case]) -> float:
        """Seconds to compile what these cases need and the noted ones before them do
        not.
        """
        return self._ahead.seconds_for(cases) if self._ahead else 0.0

    def compile_ahead(
        self, cases: Sequence[Case], seconds: float, tell: Callable[[str], None]
    ) -> dict | None:
        """Compile what these cases need, for so many seconds at most; None where
        nothing is compiled.
        """
        if not self._ahead:
            return None

        def progress(done: int, of: int) -> None:
            tell(f"{done} of {of} kernels compiled")

        return dataclasses.asdict(self._ahead.compile(cases, seconds, progress))

    def expect(self, problems: Iterable[Sequence[Case]]) -> None:
        """The cases of these problems come next. One device begins none of them before
        its outcomes are asked for.
        """

    def outcomes(self, cases: Sequence[Case]) -> dict[str, Outcome]:
        """The outcomes of the cases of one problem, by case id."""
        return self.isolation.measure(self.task(cases))

    def release(self) -> None:
        """The cases are done. The isolation goes on to what comes after them."""

    def task(self, cases: Sequence[Case]) -> Task:
        """What is asked of a worker for the cases of one problem."""
        op, scenario, dtype, batch = cases[0].problem
        entries = tuple((case.id, case.variant.name) for case in cases)
        return Task(op, scenario, dtype, batch, entries, **self._settings)
