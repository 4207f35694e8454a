"""Processes that compile: what each gives back, and that one that dies, hangs or raises
costs its job alone.
"""

import os
import time

import pytest

from batchline.bench.measure.compiled import compile_pool
from batchline.bench.measure.compiled.compile_pool import Pool


def double(number):
    return os.getpid(), 2 * number


def sometimes(what):
    if what == "dies":
        os._exit(7)
    if what == "raises":
        raise ValueError("no\nsuch thing")
    if what == "hangs":
        time.sleep(600)
    return what


@pytest.fixture(autouse=True)
def two_processes(monkeypatch):
    monkeypatch.setattr(compile_pool.os, "cpu_count", lambda: 2)


def test_every_job_is_done_once_by_other_processes():
    results, problems = compile_pool.each(double, [(number,) for number in range(40)])
    assert problems == []
    assert {job: doubled for job, (_, doubled) in results.items()} == {
        (number,): 2 * number for number in range(40)
    }
    assert os.getpid() not in {process for process, _ in results.values()}


def test_no_job_is_no_answer():
    assert compile_pool.each(double, []) == ({}, [])


def test_a_job_that_dies_or_raises_is_named_and_the_others_are_done():
    jobs = [("dies",), ("a",), ("raises",), ("b",), ("dies",), ("c",)]
    results, problems = compile_pool.each(sometimes, jobs)
    assert results == {(name,): name for name in "abc"}
    assert sorted(problems) == [
        "dies: its process died (exit 7)",
        "dies: its process died (exit 7)",
        "raises: ValueError: no",
    ]


def test_a_job_that_hangs_is_named_and_the_others_are_done(monkeypatch):
    with Pool(2) as pool:
        pool.each(double, [(1,), (2,)])  # both have started: that takes its time
        monkeypatch.setattr(compile_pool, "_LONGEST_S", 1)
        results, problems = pool.each(sometimes, [("hangs",), ("a",), ("b",)])
    assert results == {("a",): "a", ("b",): "b"}
    assert problems == ["hangs: did not compile within 1 s"]


def test_what_is_not_done_in_time_is_neither_done_nor_a_problem():
    told = []
    with Pool(2) as pool:
        assert pool.each(double, [(1,)])[1] == []
        results, problems = pool.each(
            sometimes, [("a",), ("hangs",), ("b",)], time.monotonic() + 2, told.append
        )
        assert (results, problems) == ({("a",): "a", ("b",): "b"}, [])
        assert told == [1, 2]
        again, problems = pool.each(sometimes, [("c",), ("d",)])
        assert set(again.values()) == {"c", "d"} and problems == []


def test_what_is_over_is_had_while_another_job_still_runs():
    with Pool(2) as pool:
        pool.each(double, [(1,), (2,)])
        over = pool.as_they_end(sometimes, [("hangs",), ("a",), ("raises",)])
        assert next(over) == (("a",), "a", None)
        assert next(over) == (("raises",), None, "raises: ValueError: no")


def test_a_pool_keeps_its_processes_from_one_piece_of_work_to_the_next():
    with Pool(1) as pool:
        (first, _), (second, _) = (
            pool.each(double, [(number,)])[0][(number,)] for number in (1, 2)
        )
    assert first == second
