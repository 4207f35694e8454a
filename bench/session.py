"""The pytest plugin behind `bench run`: hands the cases to bench_kernels.py and keeps what became of each.

The variants of a problem are measured together, in turns, when the first of them comes up. pytest-benchmark then
gets each one's rounds through `pedantic`, with a timer that goes on by one sample for each.
"""
from __future__ import annotations

import pytest

from bench.cases import Case, Plan, along
from bench.measure.task import Outcome
from bench.progress import Progress
from bench.records import INVALID, MEASURED, NOT_REACHED, OURS, NotMeasured
from bench.verdicts import roofline

_MOST_SUSPICIONS = 8  # each measures the ceilings again, some seconds


class Session:
    """One run's state: the plan, and the status and reason of every case that was selected.

    `measurer` gives the ceilings, once, and the outcomes of the cases of a problem. `ceilings` are those already known.
    `along` are the ids of cases that are measured only because others are compared with them.
    """

    def __init__(self, plan: Plan, measurer, machine: dict, progress: Progress, ceilings: dict | None = None):
        self._plan = plan
        self._cases = {case.id: case for case in plan.cases}
        self.along: set[str] = set()
        self._measurer = measurer
        self._machine = machine
        self.progress = progress
        self.ceilings = ceilings
        self.why_no_ceilings: str | None = None
        self._suspicions_left = _MOST_SUSPICIONS
        self._replay = _Replay()
        self._by_problem: dict[tuple, list[Case]] = {}
        self._results: dict[str, Outcome] = {}
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_generate_tests(self, metafunc):
        if "case_id" in metafunc.fixturenames:
            metafunc.parametrize("case_id", list(self._cases), ids=list(self._cases))

    @pytest.hookimpl(wrapper=True)
    def pytest_collection_modifyitems(self, items):
        """Let pytest choose by its -k, and add what the chosen cases are compared with, in the order of the plan."""
        every = list(items)
        yield
        chosen = {item.callspec.params["case_id"] for item in items}
        self.along = along(self._plan, chosen)
        items[:] = [item for item in every if item.callspec.params["case_id"] in chosen | self.along]
        for item in items:
            item.add_marker(pytest.mark.benchmark(timer=self._replay.timer))

    def pytest_collection_finish(self, session):
        selected = [self._cases[item.callspec.params["case_id"]] for item in session.items]
        self.outcomes = {case.id: (NOT_REACHED, "the run ended before it") for case in selected}
        for case in selected:
            if not case.refusal:
                self._by_problem.setdefault(case.problem, []).append(case)
        self.progress.start(selected)
        if self._by_problem:
            self.measure_ceilings()

    def pytest_benchmark_update_machine_info(self, machine_info):
        machine_info[OURS] = self._machine

    @pytest.fixture
    def batchline(self):
        return self

    def measure(self, name: str, benchmark) -> None:
        """Measure the case called `name`; its outcome is kept whether or not it raises NotMeasured."""
        case = self._cases[name]
        median_s = None
        try:
            if case.refusal:
                raise NotMeasured(*case.refusal)
            outcome = self._believed(self._result_of(case), case)
            self.outcomes[name] = outcome.status, outcome.reason
            if outcome.status != MEASURED:
                raise NotMeasured(outcome.status, outcome.reason)
            self._replay.into(benchmark, outcome)
            benchmark.extra_info.update(outcome.facts)
            median_s = benchmark.stats.stats.median
        except NotMeasured as refusal:
            self.outcomes[name] = refusal.status, refusal.reason
            raise
        finally:
            self.progress.done(case, *self.outcomes[name], median_s)

    def _believed(self, outcome: Outcome, case: Case) -> Outcome:
        """The outcome, or INVALID if one of its times is impossible.

        The machine may have been slower when its ceilings were measured than it is now: before a time is refused they
        are measured again, and the best of each counts; and what a baseline reaches, the vendor's, can be done.
        """
        if outcome.status == MEASURED and self.ceilings and case.variant.is_baseline:
            for facts in outcome.facts["clocks"].values():
                if "median_s" in facts:
                    self.ceilings = roofline.raised_by(self.ceilings, outcome.facts, facts["median_s"])
        why = self._why_impossible(outcome)
        if why and self._suspicions_left:
            self._suspicions_left -= 1
            self.measure_ceilings()
            why = self._why_impossible(outcome)
        return Outcome(INVALID, why) if why else outcome

    def _why_impossible(self, outcome: Outcome) -> str | None:
        if outcome.status != MEASURED or not self.ceilings:
            return None
        for name, facts in outcome.facts["clocks"].items():
            why = "median_s" in facts and roofline.why_impossible(outcome.facts, facts["median_s"], self.ceilings)
            if why:
                return f"by {name}, {why}"
        return None

    def measure_ceilings(self) -> None:
        """Measure what the machine can do, and keep the best that was seen in this run."""
        now, why_not = self._measurer.ceilings()
        if now:
            self.ceilings = roofline.best_of(self.ceilings, now) if self.ceilings else now
        elif not self.ceilings:
            self.why_no_ceilings = why_not

    def _result_of(self, case: Case) -> Outcome:
        if case.id not in self._results:
            self._results.update(self._measurer.outcomes(self._by_problem[case.problem]))
        return self._results.pop(case.id)


class _Replay:
    """Hands samples that were taken elsewhere to pytest-benchmark: a timer that each call moves on by its sample."""

    def __init__(self):
        self._elapsed_s = 0.0

    def timer(self) -> float:
        return self._elapsed_s

    def into(self, benchmark, outcome: Outcome) -> None:
        """Give `benchmark` (the fixture) the outcome's samples as its rounds."""
        calls = (sample for sample in outcome.samples_s for _ in range(outcome.iterations))

        def target():
            self._elapsed_s += next(calls, 0.0)  # beyond the rounds, pytest-benchmark calls once more for a result

        benchmark.pedantic(target, rounds=len(outcome.samples_s), iterations=outcome.iterations)
