"""A session: what the worker measured is what pytest-benchmark stores, and a time that can't be is refused."""
import pytest

from bench.measure.task import Outcome
from bench.records import INVALID, MEASURED, WRONG, NotMeasured, is_machines_fault
from bench.session import Session, _Replay
from tests.plans import planned

PLAN = planned("smoke", "cpu")
BASELINE, OTHER = (next(case for case in PLAN.cases if case.id == f"bmm/{name}/attention_scores/float32/B3")
                   for name in ("torch_bmm", "torch_einsum"))
CEILINGS = {"copy_bytes_per_s": 2e10, "read_bytes_per_s": 2e10, "cache_bytes_per_s": 1e11, "cache_bytes": 2 ** 25,
            "matmul_flops_per_s": {"float32": 1e11}, "fma_flops_per_s": {}, "launch_s": {"host": 1e-6},
            "best": {"copy_bytes_per_s": 2e10, "read_bytes_per_s": 2e10, "cache_bytes_per_s": 1e11,
                     "matmul_flops_per_s": 1e11}}


def faster(factor):
    return CEILINGS | {"best": {name: factor * rate for name, rate in CEILINGS["best"].items()}}


def outcome(median_s, **other_clocks):
    clocks = {name: {"median_s": seconds} for name, seconds in {"host": median_s, **other_clocks}.items()}
    return Outcome(MEASURED, "", (median_s,) * 6, 1, {"clocks": clocks, "flops": 1e9, "least_bytes": 1e6,
                                                      "output_bytes": 1e5})  # 10 ms at the ceiling


class Measurer:
    """Gives ceilings one after another, and outcomes by case id; counts what it is asked for."""

    def __init__(self, ceilings, outcomes=None):
        self._ceilings, self._outcomes = iter(ceilings), outcomes
        self.asked = 0

    def ceilings(self):
        self.asked += 1
        return next(self._ceilings)

    def outcomes(self, cases):
        return {case.id: self._outcomes[case.id] for case in cases}


class Progress:
    def start(self, cases):
        pass

    def done(self, *told):
        self.told = told


def session(*ceilings):
    made = Session(PLAN, Measurer(ceilings), {}, Progress())
    made.measure_ceilings()
    return made


def test_a_possible_time_is_believed_and_the_ceilings_are_not_measured_again():
    made = session((CEILINGS, None))
    assert made._believed(outcome(0.0101), OTHER).status == MEASURED and made._measurer.asked == 1


def test_an_impossible_time_is_refused_after_the_ceilings_were_measured_again():
    made = session((CEILINGS, None), (CEILINGS, None))
    refused = made._believed(outcome(1e-6), OTHER)
    assert refused.status == INVALID and made._measurer.asked == 2
    assert refused.reason.startswith("by host, 1.00 µs is faster than its work allows: 1e+09 FLOP at the 1e+11 FLOP/s")
    assert not refused.samples_s


def test_a_machine_that_was_slow_when_its_ceilings_were_measured_costs_no_result():
    made = session((CEILINGS, None), (faster(3), None))
    assert made._believed(outcome(0.004), OTHER).status == MEASURED and made._measurer.asked == 2
    assert made._believed(outcome(0.004), OTHER).status == MEASURED and made._measurer.asked == 2  # the best is kept


def test_ceilings_of_a_busy_machine_accuse_nobody_and_let_nobody_pass():
    low = CEILINGS | {"quiet": False}
    made = session((low, None), (low, None))
    refused = made._believed(outcome(0.004), OTHER)
    assert is_machines_fault(refused.status, refused.reason) and made._measurer.asked == 2
    assert "busy whenever its ceilings were measured, so it is not known whether by host, 4.00 ms is" in refused.reason
    made = session((low, None), (CEILINGS | {"quiet": True}, None))
    assert not is_machines_fault(INVALID, made._believed(outcome(0.004), OTHER).reason)  # it was quiet the second time


def test_any_clock_can_give_it_away():
    made = session((CEILINGS, None), (CEILINGS, None))
    assert made._believed(outcome(0.02, host_cold=1e-6), OTHER).reason.startswith("by host_cold, 1.00 µs")


def test_what_the_baseline_reaches_can_be_done():
    made = session((CEILINGS, None))
    made._measurer._outcomes = {BASELINE.id: outcome(0.002), OTHER.id: outcome(0.002)}
    made._by_problem[BASELINE.problem] = [OTHER, BASELINE]
    assert made._believed(made._result_of(OTHER), OTHER).status == MEASURED  # before the baseline itself is judged
    assert made._believed(made._result_of(BASELINE), BASELINE).status == MEASURED and made._measurer.asked == 1
    assert made.ceilings["matmul_flops_per_s"] == CEILINGS["matmul_flops_per_s"]  # shares are of what was measured


def test_suspicions_end_some_time():
    made = session(*[(CEILINGS, None)] * 100)
    assert {made._believed(outcome(1e-6), OTHER).status for _ in range(50)} == {INVALID}
    assert made._measurer.asked < 15


def test_without_ceilings_nothing_is_refused_and_the_reason_is_kept():
    made = session((None, "RuntimeError: no"))
    assert made._believed(outcome(1e-9), OTHER).status == MEASURED
    assert made.why_no_ceilings == "RuntimeError: no"


def test_what_was_not_measured_is_not_judged():
    wrong = Outcome(WRONG, "on ragged: no")
    assert session((CEILINGS, None))._believed(wrong, BASELINE) is wrong


class Fixture:
    """pytest-benchmark's `pedantic`, as it times its rounds; the last call, for a result, is outside of them."""

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
    replay = _Replay()
    for _ in range(2):  # the second case's clock has gone on from the first's
        fixture = Fixture(replay.timer)
        replay.into(fixture, Outcome(MEASURED, "", samples, iterations))
        assert fixture.data == pytest.approx(list(samples), rel=1e-6)


def test_a_case_that_was_not_measured_raises_and_says_what_became_of_it():
    progress = Progress()
    made = Session(PLAN, Measurer([], {BASELINE.id: Outcome(WRONG, "on ragged: no")}), {}, progress)
    made._by_problem[BASELINE.problem] = [BASELINE]
    made.outcomes = {}
    with pytest.raises(NotMeasured, match="wrong: on ragged: no"):
        made.measure(BASELINE.id, None)
    assert made.outcomes == {BASELINE.id: (WRONG, "on ragged: no")}
    assert progress.told == (BASELINE, WRONG, "on ragged: no", None)
