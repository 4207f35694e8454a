"""The order of a run's problems, what it is expected to take, and that it ends in its
time.
"""

import itertools
from pathlib import Path

import pytest

from batchline.bench.cases import PROFILES
from batchline.bench.running import budget
from batchline.bench.running.budget import Schedule, in_turns
from batchline.bench.store import load
from tests.plans import planned

QUICK_RUN = (
    Path(__file__).resolve().parents[1]
    / "reports/evidence/2026-11-29-100746-amd-epyc-25-17-avx-512"
)
NOTHING_TO_COMPILE = {"compile_s": lambda cases: 0.0}


@pytest.fixture
def gpu():
    return planned("quick", "cuda")


def timed(plan):
    """The cases that can be timed, in turns."""
    problems = {}
    for case in plan.cases:
        if not case.refusal:
            problems.setdefault(case.problem, []).append(case)
    return [case for problem in in_turns(problems) for case in problems[problem]]


@pytest.mark.commands
def test_each_problem_comes_once(gpu):
    problems = {case.problem for case in gpu.cases}
    assert (
        len(in_turns(problems)) == len(problems) and set(in_turns(problems)) == problems
    )


def test_ops_and_their_scenarios_take_turns():
    problems = [
        (op, scenario, "float16", batch)
        for op, scenarios in (("bmm", "abc"), ("sum", "x"))
        for scenario in scenarios
        for batch in (1, 2)
    ]
    order = in_turns(problems)
    assert [problem[:2] for problem in order] == [
        ("bmm", "a"),
        ("sum", "x"),
        ("bmm", "b"),
        ("bmm", "c"),
    ] * 2


@pytest.mark.commands
def test_a_run_that_is_cut_after_one_round_has_seen_every_scenario(gpu):
    problems = dict.fromkeys(case.problem for case in gpu.cases)
    scenarios = {problem[:2] for problem in problems}
    assert {
        problem[:2] for problem in in_turns(problems)[: len(scenarios)]
    } == scenarios


def test_batches_that_are_far_apart_come_first_and_each_dtype_a_round_later():
    problems = [
        ("bmm", "a", dtype, batch)
        for dtype in ("float16", "float32")
        for batch in (1, 3, 8, 33, 64)
    ]
    assert [problem[2:] for problem in in_turns(problems)] == [
        ("float16", 1),
        ("float16", 64),
        ("float32", 1),
        ("float16", 8),
        ("float32", 64),
        ("float16", 3),
        ("float32", 8),
        ("float16", 33),
        ("float32", 3),
        ("float32", 33),
    ]


@pytest.mark.commands
def test_the_forecast_of_the_stored_quick_run_is_what_it_took():
    """Measured with nothing else running; the machine is the one that the costs of a
    CPU were fitted on.
    """
    run = load(QUICK_RUN)
    cases_s = sum(record.facts["task_s"] for record in run.records if record.facts)
    plan = planned("quick", "cpu")
    forecast = Schedule(plan, lambda: 0.0).plan(timed(plan), **NOTHING_TO_COMPILE)
    assert forecast.cases_s == pytest.approx(cases_s, rel=0.2)
    assert forecast.total_s == pytest.approx(run.seconds, rel=0.2)


@pytest.mark.commands
@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_a_plan_for_a_gpu_fits_into_its_budget_and_leaves_the_rest(profile):
    plan = planned(profile, "cuda")
    cases = timed(plan)
    schedule = Schedule(plan, lambda: 0.0)
    forecast = schedule.plan(cases, compile_s=lambda cases: 0.5 * len(cases))
    assert (
        0.9 * schedule.budget_s
        < forecast.total_s
        <= schedule.budget_s
        == PROFILES[profile].budget_s["cuda"]
    )
    assert forecast.problems_s.keys() | forecast.left == {
        case.problem for case in cases
    }
    assert forecast.compile_s == 0.5 * sum(
        case.problem in forecast.problems_s for case in cases
    )
    refused = [
        problem
        for problem in dict.fromkeys(case.problem for case in cases)
        if schedule.why_not(problem)
    ]
    assert set(refused) == forecast.left


@pytest.mark.commands
def test_a_tenth_of_quick_fits_on_a_gpu_and_has_every_scenario(gpu):
    """As README says, before anything is counted that must be compiled."""
    begun = (
        Schedule(gpu, lambda: 0.0)
        .plan(timed(gpu), **NOTHING_TO_COMPILE)
        .problems_s.keys()
    )
    cases = timed(gpu)
    assert sum(case.problem in begun for case in cases) / len(cases) == pytest.approx(
        0.1, abs=0.03
    )
    assert {problem[:2] for problem in begun} == {case.problem[:2] for case in cases}


@pytest.mark.commands
def test_four_devices_begin_more_and_one_does_what_comes_after_for_all(gpu):
    one, four = (
        Schedule(gpu, lambda: 0.0, devices).plan(timed(gpu), **NOTHING_TO_COMPILE)
        for devices in (1, 4)
    )
    assert len(four.problems_s) > 1.3 * len(one.problems_s)
    assert four.problems_s.keys() >= one.problems_s.keys()
    for problem, seconds in one.problems_s.items():
        assert four.problems_s[problem] == pytest.approx(seconds / 4)
    assert four.after_s == budget.after_s("cuda", 4 * four.cases_s)
    assert four.total_s <= Schedule(gpu, lambda: 0.0).budget_s


@pytest.mark.commands
def test_what_must_be_compiled_takes_from_the_time_for_cases(gpu):
    schedule = Schedule(gpu, lambda: 0.0)
    quick = schedule.plan(timed(gpu), **NOTHING_TO_COMPILE)
    slow = schedule.plan(timed(gpu), compile_s=lambda cases: 10.0)
    assert (
        len(slow.problems_s) < len(quick.problems_s)
        and slow.total_s <= schedule.budget_s
    )


@pytest.mark.commands
def test_no_problem_is_begun_when_the_time_is_up_however_wrong_the_forecast_was(gpu):
    seconds = itertools.count(0, 20)  # each problem takes 20 s
    schedule = Schedule(gpu, lambda: next(seconds))
    problems = schedule.plan(timed(gpu), **NOTHING_TO_COMPILE).problems_s
    schedule.begin()
    reasons = [schedule.why_not(problem) for problem in problems]
    begun = reasons.index(next(filter(None, reasons)))
    after_s = budget.after_s("cuda", 20 * begun)
    assert 20 * begun + after_s <= schedule.budget_s < 20 * (begun + 2) + after_s + 5
    assert (
        all(reasons[begun:]) and "beyond the 5 min 00 s of PROFILE=quick" in reasons[-1]
    )


@pytest.mark.commands
def test_a_problem_that_has_begun_is_not_refused(gpu):
    seconds = iter([0.0, 0.0, 1.0])  # to plan, to begin, and before the first problem
    schedule = Schedule(gpu, lambda: next(seconds, 1e6))
    first, second, *_ = schedule.plan(timed(gpu), **NOTHING_TO_COMPILE).problems_s
    schedule.begin()
    assert [
        schedule.why_not(problem) is None for problem in (first, first, second, first)
    ] == [True, True, False, True]


@pytest.mark.commands
def test_one_problem_is_begun_however_small_the_budget(gpu):
    schedule = Schedule(gpu, lambda: 0.0)
    assert len(schedule.plan(timed(gpu), compile_s=lambda cases: 1e9).problems_s) == 1


@pytest.mark.commands
def test_full_and_the_cpu_take_as_long_as_they_take():
    assert PROFILES["full"].budget_s["cuda"] is None
    assert Schedule(planned("quick", "cpu"), lambda: 1e9).budget_s is None


@pytest.mark.commands
def test_an_estimate_says_no_more_than_the_budget_has(gpu):
    schedule = Schedule(gpu, lambda: 100.0)
    assert schedule.within_budget(1e4) == schedule.budget_s - 100
    assert schedule.within_budget(5.0) == 5
    assert Schedule(planned("quick", "cpu"), lambda: 0.0).within_budget(1e4) == 1e4
