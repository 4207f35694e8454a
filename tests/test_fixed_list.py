"""The fixed list of profile `evidence`: about 400 cases, every op and GPU variant, a
cut run has some of each.
"""

import dataclasses
import itertools

import pytest

from batchline.bench import cases, study
from batchline.bench.cases import PROFILES
from batchline.bench.declared import Problem
from batchline.bench.measure.compiled import pins, static_facts
from batchline.bench.running import after_cases
from batchline.bench.statuses import NOT_HERE
from batchline.bench.store.journal import RunBuilder
from tests.plans import planned

pytestmark = pytest.mark.slow  # one plan takes 16 s of processor time to read


@pytest.fixture
def the_plan():
    return planned("evidence", "cuda")


@pytest.fixture
def for_a_gpu(the_plan):
    """Its cases that a GPU times."""
    return [
        case
        for case in the_plan.cases
        if (not case.refusal or case.refusal[0] == NOT_HERE)
        and "cuda" in case.variant.runs_on
        and case.variant.backend not in ("opacus", "backpack")
        and not case.variant.slow_start
        and not case.variant.detail
    ]


@pytest.fixture
def problems(the_plan):
    return list(dict.fromkeys(case.problem for case in the_plan.cases))


def test_it_has_about_400_cases(for_a_gpu):
    assert 350 <= len(for_a_gpu) <= 480


def test_every_group_is_one_of_its_op_and_has_every_batch(problems):
    for op, groups in cases.GROUPS.items():
        for scenario, dtype in groups:
            batches = {
                batch
                for *group, batch in problems
                if tuple(group) == (op, scenario, dtype)
            }
            assert set(PROFILES["evidence"].batches) < batches, (op, scenario, dtype)


def test_every_op_and_every_gpu_variant_is_in_it(the_plan, for_a_gpu, problems):
    listed = {case.variant.id for case in for_a_gpu}
    every = {
        variant.id
        for op in the_plan.ops.values()
        for variant in op.variants.values()
        if variant.backend in ("triton", "numba_cuda")
        and not variant.slow_start
        and not variant.detail
    }
    assert every <= listed and {op for op, *_ in problems} == set(the_plan.ops)


def test_a_cut_run_has_some_of_every_op_and_group(the_plan, problems):
    groups = sum(map(len, cases.GROUPS.values()))
    first = problems[:groups]
    assert {batch for *_, batch in first} == {PROFILES["evidence"].batches[0]}
    assert len({tuple(group) for *group, _ in first}) == groups
    assert {op for op, *_ in problems[: len(the_plan.ops)]} == set(the_plan.ops)


def test_the_variants_of_a_problem_stay_together(the_plan, problems):
    assert [
        problem
        for problem, _ in itertools.groupby(case.problem for case in the_plan.cases)
    ] == problems


def _problem(dtype, flops, least_bytes):
    return Problem("bmm", "one", dtype, 1, flops, least_bytes, "", ())


def test_neighbours_are_around_where_the_work_takes_as_long_as_a_launch():
    assert cases.neighbours(_problem("float16", 1, 1e6)) == (
        8,
        16,
    )  # 5 µs are 15 MB
    assert cases.neighbours(_problem("float32", 1e8, 1)) == (2, 4)  # and 250 MFLOP
    assert cases.neighbours(_problem("float16", 1e8, 1)) == (16, 32)
    assert cases.neighbours(_problem("float16", 1, 1)) == (2048, 4096)


@pytest.mark.slow
def test_in_another_dtype_the_scenarios_stay():
    problems = list(
        dict.fromkeys(case.problem for case in planned("evidence", "cpu").cases)
    )
    assert {dtype for _, _, dtype, _ in problems} == {"float32"}
    assert {(op, scenario) for op, scenario, *_ in problems} == {
        (op, scenario) for op, groups in cases.GROUPS.items() for scenario, _ in groups
    }


JOBS = [("bmm/triton_naive", "float16"), ("bmm/triton_tiled", "float16")]


@pytest.mark.parametrize(
    "machine, shown", [({"gpu": {"compute_capability": "9.0"}}, [90]), ({}, [80, 90])]
)
def test_of_compiled_facts_only_what_is_pinned_for_the_gpu_is_shown(
    monkeypatch, machine, shown
):
    monkeypatch.setattr(pins, "load", dict)
    monkeypatch.setattr(static_facts, "is_current", lambda job, pinned: job == JOBS[0])
    monkeypatch.setattr(
        static_facts,
        "facts",
        lambda jobs: static_facts.Facts(
            [
                {"job": job, "architecture": number}
                for job in jobs
                for number in (80, 90)
            ],
            len(jobs),
            0,
            None,
        ),
    )
    rows, missing = after_cases._read_pinned(JOBS, machine)
    assert [(row["job"], row["architecture"]) for row in rows] == [
        (JOBS[0], number) for number in shown
    ]
    assert (
        missing == "1 of 2 are not as they were pinned, and this profile compiles none"
    )


class Worker:
    """Of which nothing is asked that matters here."""

    def call(self, *asked):
        return None

    def close(self):
        pass


@pytest.mark.parametrize(
    "profile, device, looked", [("evidence", "cuda", False), ("smoke", "cpu", True)]
)
def test_the_noise_is_another_part_of_the_evidence(
    monkeypatch, profile, device, looked
):
    seen = []
    monkeypatch.setattr(study, "surveys", lambda *asked: seen.append(asked) or iter(()))
    monkeypatch.setattr(after_cases, "read_compiled_facts", lambda *asked: ([], None))
    builder = RunBuilder()
    builder.begin()
    the_plan = dataclasses.replace(planned(profile, device), device="cpu")
    after_cases.measure_further(Worker(), the_plan, builder)
    assert bool(seen) == looked
