"""The pytest plugin behind `batchline run`: hands the cases to bench_kernels.py and keeps
what became of each.

The variants of a problem are measured together, in turns, when the first of them comes
up. pytest-benchmark then gets each one's rounds through `pedantic`, with a timer that
goes on by one sample for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from batchline.bench import texts
from batchline.bench.budget import Schedule, in_turns
from batchline.bench.cases import Case, along
from batchline.bench.declared import Refusal
from batchline.bench.measure.task import Outcome
from batchline.bench.progress import Progress
from batchline.bench.records import (
    FAILED,
    INVALID,
    MEASURED,
    NOT_HERE,
    NOT_REACHED,
    OURS,
    THE_MACHINE_WAS,
    NotMeasured,
)
from batchline.bench.verdicts import roofline

_MOST_TRIES = 3  # of a problem with a time that can't be
_LEAST_TO_COMPILE_S, _MOST_OF_EXPECTED = 30.0, 2.0


class Session:
    """One run's state: the plan, and the status and reason of every case that was
    selected.

    `schedule` knows the plan, and which problems there is time for. `measurer` compiles
    ahead, gives the ceilings, and the outcomes of the cases of a problem. `ceilings`
    are those already known.
    `record` is called with each entry for the run's journal (bench.journal).
    """

    def __init__(
        self,
        schedule: Schedule,
        measurer,
        machine: dict,
        progress: Progress,
        ceilings: dict | None = None,
        record: Callable[..., None] = lambda **entry: None,
    ):
        plan = schedule.of
        self._plan = plan
        self._schedule = schedule
        self._cases = {case.id: case for case in plan.cases}
        self._along: set[str] = (
            set()
        )  # the ids of cases that are measured only because others are compared with them
        self._measurer = measurer
        self._machine = machine
        self.progress = progress
        self.ceilings = ceilings
        self._record = record
        self._recorded_ceilings = ceilings, None
        self.why_no_ceilings: str | None = None
        self._refused: set[str] = (
            set()
        )  # the ids of variants with a time that can't be, however often it was looked at
        self._replay = _Replay()
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
            self._record(
                planned=list(self.outcomes),
                along=[name for name in self.outcomes if name in self._along],
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
        self._schedule.begin()
        self.progress.start()

    def _compile_ahead(self, cases: Sequence[Case], expected_s: float) -> None:
        """Compile what the cases need; what takes far longer than expected is left to
        the worker.
        """
        longest_s = max(_LEAST_TO_COMPILE_S, _MOST_OF_EXPECTED * expected_s)
        compiled = self._measurer.compile_ahead(cases, longest_s, self.progress.tell)
        if compiled:
            self._record(compiled_ahead=compiled)
            self.progress.compiled(compiled)

    def pytest_benchmark_update_machine_info(self, machine_info):
        machine_info[OURS] = self._machine

    @pytest.fixture
    def batchline(self):
        return self

    def measure(self, name: str, benchmark) -> None:
        """Measure the case called `name`; its outcome is kept whether or not it raises
        NotMeasured.
        """
        case, stats = self._cases[name], None
        try:
            refusal = case.refusal or self._no_time_for(case)
            outcome = (
                Outcome(*refusal)
                if refusal
                else self._believed(self._result_of(case), case)
            )
            if outcome.status == MEASURED:
                self._replay.into(benchmark, outcome)
                benchmark.extra_info.update(outcome.facts)
                stats = benchmark.stats
        except (
            Exception
        ) as error:  # ours, or a worker's answer that is none: a row, and the run goes on
            outcome = Outcome(
                FAILED, f"Batchline itself failed: {texts.error_line(error)}"
            )
        self._keep(case, outcome.status, texts.clean_line(outcome.reason), stats)
        if outcome.status != MEASURED:
            raise NotMeasured(*self.outcomes[name])

    def _keep(self, case: Case, status: str, reason: str, stats) -> None:
        """The outcome of a case, and pytest-benchmark's statistics of one that was
        measured; else None.
        """
        self.outcomes[case.id] = status, reason
        measured = {"benchmark": stats.as_dict()} if stats else {}
        self._record(case=case.id, status=status, reason=reason, **measured)
        self._record_ceilings()
        self.progress.done(case, status, reason, stats.stats.median if stats else None)

    def _believed(self, outcome: Outcome, case: Case) -> Outcome:
        """The outcome, or INVALID if one of its times is impossible.

        Where the machine was never quiet enough for its ceilings, nobody is accused by
        them, and nothing is believed either.
        """
        why = self._why_impossible(outcome)
        if why and not self.ceilings.get("quiet", True):
            why = f"{THE_MACHINE_WAS}busy whenever its ceilings were measured, so it is not known whether {why}"
        return Outcome(INVALID, why) if why else outcome

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
            self._record(about=dict(zip(("ceilings", "why_no_ceilings"), now)))
            self._recorded_ceilings = now

    def _no_time_for(self, case: Case) -> Refusal | None:
        why = self._schedule.why_not(case.problem)
        return (NOT_HERE, why) if why else None

    def _result_of(self, case: Case) -> Outcome:
        if case.id not in self._results:
            self._results.update(self._measured(self._by_problem[case.problem]))
        return self._results.pop(case.id)


class _Replay:
    """Hands samples that were taken elsewhere to pytest-benchmark: a timer that each
    call moves on by its sample.
    """

    def __init__(self):
        self._elapsed_s = 0.0

    def timer(self) -> float:
        return self._elapsed_s

    def into(self, benchmark, outcome: Outcome) -> None:
        """Give `benchmark` (the fixture) the outcome's samples as its rounds."""
        calls = (
            sample for sample in outcome.samples_s for _ in range(outcome.iterations)
        )

        def target():
            self._elapsed_s += next(
                calls, 0.0
            )  # beyond the rounds, pytest-benchmark calls once more for a result

        benchmark.pedantic(
            target, rounds=len(outcome.samples_s), iterations=outcome.iterations
        )
