"""A session: what the worker measured is what pytest-benchmark stores, and a time that
can't be is refused.
"""

import contextlib
import functools

import pytest

from batchline.bench.errors import ExitCode
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.running import benchmark
from batchline.bench.running.budget import Schedule
from batchline.bench.running.replay import Replay
from batchline.bench.running.session import Session
from batchline.bench.statuses import (
    INVALID,
    MEASURED,
    WRONG,
    NotMeasured,
    is_machines_fault,
)
from batchline.bench.store.journal import Journal, RunBuilder
from tests.plans import planned


def the_plan():
    return planned("smoke", "cpu")


@functools.cache
def case_of(variant):
    return next(
        case
        for case in the_plan().cases
        if case.id == f"bmm/{variant}/attention_scores/float32/B3"
    )


def baseline():
    return case_of("torch_bmm")


def other():
    return case_of("torch_einsum")


def third():
    return case_of("numba_cpu_blocked")


CEILINGS = {
    "copy_bytes_per_s": 2e10,
    "read_bytes_per_s": 2e10,
    "cache_bytes_per_s": 1e11,
    "cache_bytes": 2**25,
    "matmul_flops_per_s": {"float32": 1e11},
    "fma_flops_per_s": {},
    "launch_s": {"host": 1e-6},
    "best": {
        "copy_bytes_per_s": 2e10,
        "read_bytes_per_s": 2e10,
        "cache_bytes_per_s": 1e11,
        "matmul_flops_per_s": 1e11,
    },
}


def faster(factor):
    return CEILINGS | {
        "best": {name: factor * rate for name, rate in CEILINGS["best"].items()}
    }


def outcome(median_s, **other_clocks):
    clocks = {
        name: {"median_s": seconds}
        for name, seconds in {"host": median_s, **other_clocks}.items()
    }
    return Outcome(
        MEASURED,
        "",
        (median_s,) * 6,
        1,
        {"clocks": clocks, "flops": 1e9, "least_bytes": 1e6, "output_bytes": 1e5},
    )  # 10 ms at the ceiling


class Measurer:
    """Gives ceilings, and outcomes of a problem by variant, one after another, the last
    ones for ever; it counts.
    """

    def __init__(self, ceilings, outcomes=()):
        self._ceilings, self._outcomes = list(ceilings), list(outcomes)
        self.looked = self.measured = 0

    def compile_s(self, cases):
        return 0.0

    def note(self, cases):
        """Nothing is compiled."""

    def compile_ahead(self, cases, seconds, tell):
        return None

    def ceilings(self):
        self.looked += 1
        return self._ceilings[min(self.looked, len(self._ceilings)) - 1]

    def outcomes(self, cases):
        self.measured += 1
        now = self._outcomes[min(self.measured, len(self._outcomes)) - 1]
        return {case.id: now[case.variant.name] for case in cases}


class Progress:
    def start(self):
        pass

    def done(self, *told):
        self.told = told


def begun():
    """A run in memory that has begun."""
    builder = RunBuilder()
    builder.begin()
    return builder


def session(*ceilings, times=()):
    """One of a problem of baseline() and other(), whose times in seconds are pairs, those
    of each measurement.
    """
    given = [
        {"torch_bmm": outcome(own), "torch_einsum": outcome(other)}
        for own, other in times
    ]
    made = Session(
        Schedule(the_plan(), lambda: 0.0),
        Measurer([(one, None) for one in ceilings], given),
        Progress(),
        begun(),
    )
    made._by_problem[baseline().problem] = [other(), baseline()]
    made.measure_ceilings()
    return made


def judged(made, case=None):
    case = case or other()
    """What becomes of the case, and how often the ceilings were looked at and the
    problem measured until then.
    """
    return (
        made._believed(made._result_of(case), case),
        made._measurer.looked,
        made._measurer.measured,
    )


def test_a_possible_time_is_believed_and_nothing_is_measured_again():
    found, *looks = judged(session(CEILINGS, times=[(0.02, 0.0101)]))
    assert found.status == MEASURED and looks == [1, 1]


def test_an_impossible_time_is_refused_after_all_was_measured_again():
    found, *looks = judged(session(CEILINGS, times=[(0.02, 1e-6)]))
    assert found.status == INVALID and looks == [4, 3]
    assert found.reason.startswith(
        "by host, 1.00 µs is faster than its work allows: 1e+09 FLOP at the 1e+11 FLOP/s"
    )
    assert not found.samples_s


def test_a_machine_that_was_slow_when_its_ceilings_were_measured_costs_no_result():
    made = session(CEILINGS, faster(3), times=[(0.02, 0.004)])
    found, *looks = judged(made)
    assert found.status == MEASURED and looks == [2, 1]
    assert judged(made)[1:] == (2, 2)  # the best is kept


def test_a_machine_that_was_slow_in_both_looks_at_its_ceilings_costs_no_result():
    made = session(
        CEILINGS, times=[(0.01, 0.004), (0.025, 0.0101)]
    )  # and was quick between the looks
    found, *looks = judged(made)
    assert (
        found.status == MEASURED
        and found.samples_s == (0.0101,) * 6
        and looks == [2, 2]
    )
    assert (
        judged(made, baseline())[0].samples_s == (0.025,) * 6
    )  # of the same measurement, for they are compared
    found, *looks = judged(
        session(CEILINGS, CEILINGS, faster(3), times=[(0.02, 0.004)])
    )
    assert found.status == MEASURED and looks == [3, 2]


def test_ceilings_of_a_busy_machine_accuse_nobody_and_let_nobody_pass():
    low = CEILINGS | {"quiet": False}
    found, *_ = judged(session(low, times=[(0.02, 0.004)]))
    assert is_machines_fault(found.status, found.reason)
    assert (
        "busy whenever its ceilings were measured, so it is not known whether by host, 4.00 ms is"
        in found.reason
    )
    found, *_ = judged(session(low, CEILINGS | {"quiet": True}, times=[(0.02, 0.004)]))
    assert found.status == INVALID and not is_machines_fault(
        found.status, found.reason
    )  # quiet the second time


def test_any_clock_can_give_it_away():
    made = session(CEILINGS)
    made._measurer._outcomes = [
        {"torch_bmm": outcome(0.02), "torch_einsum": outcome(0.02, host_cold=1e-6)}
    ]
    assert judged(made)[0].reason.startswith("by host_cold, 1.00 µs")


def test_what_the_baseline_reaches_can_be_done():
    made = session(CEILINGS, times=[(0.002, 0.002)])
    assert judged(made)[0].status == judged(made, baseline())[0].status == MEASURED
    assert made._measurer.looked == made._measurer.measured == 1
    assert (
        made.ceilings["matmul_flops_per_s"] == CEILINGS["matmul_flops_per_s"]
    )  # shares are of what was measured


def test_a_variant_that_was_refused_costs_no_more_looks_and_others_still_get_theirs():
    made = session(CEILINGS, times=[(0.02, 1e-6)])
    assert judged(made)[1:] == (4, 3)
    for again in range(1, 50):
        found, *looks = judged(made)
        assert found.status == INVALID and looks == [4, 3 + again]
    made._by_problem[other().problem] = [other(), third()]
    made._measurer._outcomes = [
        {"torch_einsum": outcome(1e-6), third().variant.name: outcome(0.004)},
        {"torch_einsum": outcome(1e-6), third().variant.name: outcome(0.0101)},
    ]
    made._measurer.measured = 0
    assert judged(made)[0].status == INVALID
    assert judged(made, third())[0].status == MEASURED


def test_without_ceilings_nothing_is_refused_and_the_reason_is_kept():
    made = Session(
        Schedule(the_plan(), lambda: 0.0),
        Measurer([(None, "RuntimeError: no")]),
        Progress(),
        begun(),
    )
    made.measure_ceilings()
    assert made._believed(outcome(1e-9), other()).status == MEASURED
    assert made.why_no_ceilings == "RuntimeError: no"


def test_what_was_not_measured_is_not_judged():
    wrong = Outcome(WRONG, "on ragged: no")
    assert session(CEILINGS)._believed(wrong, baseline()) is wrong


class Fixture:
    """pytest-benchmark's `pedantic`, as it times its rounds; the last call, for a
    result, is outside of them.
    """

    def __init__(self, timer):
        self._timer = timer
        self.data = []

    def pedantic(self, target, rounds, iterations):
        for _ in range(rounds):
            start = self._timer()
            for _ in range(iterations):
                target()
            self.data.append((self._timer() - start) / iterations)
        if iterations > 1:
            target()


@pytest.mark.parametrize("iterations", [1, 7])
def test_pytest_benchmark_gets_the_very_samples(iterations):
    samples = (1.25e-6, 3e-3, 2e-6, 0.5, 1.5e-6, 4e-6)
    replay = Replay()
    for _ in range(2):  # the second case's clock has gone on from the first's
        fixture = Fixture(replay.timer)
        replay.into(fixture, samples, iterations)
        assert fixture.data == pytest.approx(list(samples), rel=1e-6)


def test_a_stop_before_anything_is_planned_is_a_stop_and_no_fault_of_ours(tmp_path):
    class Stopped(Measurer):
        def note(self, cases):
            raise KeyboardInterrupt

    with contextlib.closing(RunBuilder(Journal(tmp_path))) as builder:
        schedule = Schedule(the_plan(), lambda: 0.0)
        ended = benchmark.measure_cases(
            schedule, Stopped([(None, "no")]), {}, "tiny_16 and torch_bmm", builder
        )
    assert ended == ExitCode.STOPPED and builder.has_begun


def test_a_case_that_was_not_measured_raises_and_says_what_became_of_it():
    progress = Progress()
    measurer = Measurer(
        [(None, "no")], [{"torch_bmm": Outcome(WRONG, "on ragged: no")}]
    )
    made = Session(Schedule(the_plan(), lambda: 0.0), measurer, progress, begun())
    made._by_problem[baseline().problem] = [baseline()]
    made.outcomes = {}
    with pytest.raises(NotMeasured, match="wrong: on ragged: no"):
        made.measure(baseline().id, None)
    assert made.outcomes == {baseline().id: (WRONG, "on ragged: no")}
    (record,) = made._builder.records
    assert (record.id, record.status) == (baseline().id, WRONG)
    assert progress.told == (baseline(), WRONG, "on ragged: no", None)
