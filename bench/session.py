"""The pytest plugin behind `bench run`: hands the cases to bench_kernels.py and keeps what became of each."""
from __future__ import annotations

import pytest

from bench.cases import Plan
from bench.progress import Progress
from bench.records import MEASURED, NOT_REACHED, OURS, NotMeasured


class Session:
    """One run's state: the plan, and the status and reason of every case that was selected."""

    def __init__(self, plan: Plan, runner, machine: dict, progress: Progress):
        self._cases = {case.id: case for case in plan.cases}
        self._runner = runner
        self._machine = machine
        self._progress = progress
        self.outcomes: dict[str, tuple[str, str]] = {}

    def pytest_generate_tests(self, metafunc):
        if "case_id" in metafunc.fixturenames:
            metafunc.parametrize("case_id", list(self._cases), ids=list(self._cases))

    def pytest_collection_modifyitems(self, items):
        for item in items:
            item.add_marker(pytest.mark.benchmark(timer=self._runner.clock.timer))

    def pytest_collection_finish(self, session):
        selected = [item.callspec.params["case_id"] for item in session.items]
        self.outcomes = {name: (NOT_REACHED, "the run ended before it") for name in selected}
        self._progress.start([self._cases[name] for name in selected])

    def pytest_benchmark_update_machine_info(self, machine_info):
        machine_info[OURS] = self._machine

    @pytest.fixture
    def batchline(self):
        return self

    def measure(self, name: str, benchmark) -> None:
        """Measure the case called `name`; its outcome is kept whether or not it raises NotMeasured."""
        case = self._cases[name]
        try:
            self._runner.measure(case, benchmark)
        except NotMeasured as refusal:
            self.outcomes[name] = refusal.status, refusal.reason
            raise
        else:
            self.outcomes[name] = MEASURED, ""
        finally:
            self._progress.done(case, *self.outcomes[name], benchmark.stats)
