"""The findings on training: what was measured has its verdict, and the rest says why."""

from batchline.bench.errors import Missing
from batchline.bench.noise import advisor, claims
from batchline.bench.noise.claims.training_findings import judge_training
from tests import claims_evidence
from tests.noise_evidence import noise, point, workload

DIGITS = workload([point(0, 0, 20.0), point(50, 0, 100.0), point(400, 0, 300.0)])


def test_each_workload_has_its_moments_and_an_advice_for_each():
    findings = judge_training(noise(digits=DIGITS), None)
    digits = findings.workloads["digits"]
    assert [moment.updates for moment in digits.moments] == [0, 50, 400]
    assert digits.middle.updates == advisor.middle(DIGITS).updates
    assert digits.middle_advice == advisor.advice(DIGITS, digits.middle)
    assert [moment for moment, _ in digits.advice] == digits.moments
    assert digits.advice[1][1] == digits.middle_advice
    assert digits.middle is digits.middle


def test_what_was_not_measured_says_why():
    findings = judge_training(
        {"workloads": {"digits": {"failed": "the worker was lost"}}}, None
    )
    assert findings.workloads == {"digits": Missing("the worker was lost")}
    assert "no training sweep" in findings.time_to_target.reason
    assert judge_training(None, None).workloads == {}


def test_a_workload_without_step_times_has_no_advice():
    untimed = DIGITS | {"why_not_timed": "the machine was busy"}
    digits = judge_training(noise(digits=untimed), None).workloads["digits"]
    assert "could not be timed" in digits.middle_advice.reason


def test_the_claims_are_those_of_the_sweep_and_the_survey():
    sweep = claims_evidence.sweep()
    findings = judge_training(noise(digits=DIGITS), sweep)
    assert findings.claims == claims.judge(sweep, noise(digits=DIGITS))
    assert findings.time_to_target.workload == sweep["workload"]
