"""Isolation: what ends a worker is one row, told apart by how it ended, and the others
are measured all the same.
"""

import contextlib
import os
import re
import signal
import time

import pytest

from batchline.bench.measure.doing import Doing
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker import isolation
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import Task, WorkerLost
from batchline.bench.statuses import (
    CRASHED,
    FAILED,
    HUNG,
    INVALID,
    MEASURED,
    NOT_REACHED,
    OUT_OF_MEMORY,
    WRONG,
)
from tests import fake_worker
from tests.fake_worker import DEADLINE_S, HANGS_S, task

pytestmark = pytest.mark.commands


@pytest.fixture
def isolated(monkeypatch, tmp_path):
    opened = fake_worker.isolated(monkeypatch, tmp_path)
    yield opened
    opened.close()


def statuses(outcomes):
    return {label: outcome.status for label, outcome in outcomes.items()}


@pytest.mark.parametrize(
    "variant, status, reason",
    [
        ("hangs", HUNG, f"not done after {DEADLINE_S:g} s (warm-up)"),
        ("stops_itself", HUNG, f"not done after {DEADLINE_S:g} s (warm-up)"),
        ("segfaults", CRASHED, "ended by SIGSEGV (warm-up)"),
        ("exits", CRASHED, "ended with exit code 7"),
        ("exits_clean", CRASHED, "ended with exit code 0"),
        ("loses_device", CRASHED, "RuntimeError: illegal access"),
        ("closes_everything", CRASHED, ""),
        ("tampers", WRONG, "it has set a rlimit (warm-up)"),
        ("writes_garbage", WRONG, "its process has sent no answer but '"),
        ("begins_a_message", HUNG, "not done after"),
        ("sends_without_end", WRONG, "more than 32 MiB in one answer"),
        ("takes_no_time", WRONG, "samples of 1e+09 s in an answer"),
        (
            "forges_an_answer",
            WRONG,
            "its process has sent an answer that nobody asked for",
        ),
        ("forges_with_the_number", WRONG, "its process has sent"),
        ("forges_and_exits", CRASHED, "exit code 0"),
    ],
)
def test_what_ends_its_worker_is_a_row_and_the_others_are_measured(
    isolated, variant, status, reason
):
    start_s = time.monotonic()
    outcomes = isolated.measure(task("first", variant, "last"))
    assert statuses(outcomes) == {"first": MEASURED, variant: status, "last": MEASURED}
    assert reason in outcomes[variant].reason and len(outcomes[variant].reason) < 600
    assert "alone" not in outcomes["first"].facts and outcomes["first"].facts == {
        "seen": 1
    }
    assert time.monotonic() - start_s < HANGS_S


def test_several_in_one_task(isolated):
    outcomes = isolated.measure(task("segfaults", "good", "exits"))
    assert statuses(outcomes) == {
        "segfaults": CRASHED,
        "good": MEASURED,
        "exits": CRASHED,
    }
    assert statuses(isolated.measure(task("good"))) == {"good": MEASURED}


def test_a_process_that_the_kernel_killed_for_memory_says_so(isolated, monkeypatch):
    isolated._oom_kills = 0
    monkeypatch.setattr(isolation, "_oom_kills", lambda: 1)
    assert statuses(isolated.measure(task("killed"))) == {"killed": OUT_OF_MEMORY}
    assert statuses(isolated.measure(task("killed"))) == {"killed": CRASHED}


@pytest.fixture
def ends(isolated, monkeypatch):
    """How each call has ended: None, or as what the worker was lost or has failed."""
    call, seen = isolated.call, []

    def noted(*arguments):
        try:
            answer = call(*arguments)
        except WorkerLost as lost:
            seen.append(lost.status)
            raise
        except RuntimeError:
            seen.append(FAILED)
            raise
        seen.append(None)
        return answer

    monkeypatch.setattr(isolated, "call", noted)
    return seen


def test_a_hang_costs_two_deadlines_at_most(isolated, ends):
    assert statuses(isolated.measure(task("hangs", "good"))) == {
        "hangs": HUNG,
        "good": MEASURED,
    }
    assert ends.count(HUNG) == 2


def test_who_tampers_unseen_is_found_alone(isolated):
    outcomes = isolated.measure(task("first", "tampers_unseen", "last"))
    assert statuses(outcomes) == {
        "first": MEASURED,
        "tampers_unseen": WRONG,
        "last": MEASURED,
    }
    assert outcomes["tampers_unseen"].reason == "somebody has set a rlimit (warm-up)"


def test_a_crash_that_is_a_neighbours_fault_is_not_its_own(isolated):
    outcomes = isolated.measure(task("breaks_the_next", "breaks_if_changed", "good"))
    assert statuses(outcomes) == dict.fromkeys(
        ("breaks_the_next", "breaks_if_changed", "good"), MEASURED
    )
    assert all(
        outcome.facts["alone"] for outcome in outcomes.values()
    )  # not in turns with the others


def test_a_thread_left_behind_that_crashes_in_a_neighbours_step(isolated):
    outcomes = isolated.measure(
        task("leaves_a_thread_that_crashes", "takes_its_time", "good")
    )
    assert outcomes["takes_its_time"].status == outcomes["good"].status == MEASURED


def test_who_is_accused_and_does_nothing_alone_is_believed_where_another_is_found(
    isolated,
):
    outcomes = isolated.measure(task("first", "accuses_first", "last"))
    assert statuses(outcomes) == {
        "first": MEASURED,
        "accuses_first": WRONG,
        "last": MEASURED,
    }


def test_what_fails_in_the_probes_is_refused_in_all_its_cases_of_that_dtype(isolated):
    isolated.measure(task("exits@probes: ragged"))
    again = isolated.measure(task("good", "exits@probes: ragged"))
    assert statuses(again) == {"exits@probes: ragged": CRASHED, "good": MEASURED}
    assert (
        "alone" not in again["good"].facts and not isolated.untouched
    )  # it was not run again
    assert statuses(isolated.measure(task("exits", dtype="float16"))) == {
        "exits": CRASHED
    }
    assert isolated.untouched


def test_a_variant_that_keeps_hanging_is_given_up(isolated):
    assert [isolated.measure(task("hangs"))["hangs"].status for _ in range(3)] == [
        HUNG,
        HUNG,
        NOT_REACHED,
    ]


def test_an_error_of_our_own_ends_neither_the_run_nor_the_worker(isolated):
    with pytest.raises(RuntimeError, match="no attribute 'such'"):
        isolated.call("such")
    outcome = isolated.measure(task("fails"))["fails"]
    assert (outcome.status, outcome.reason) == (
        FAILED,
        "Batchline itself failed: KeyError: 'x'",
    )


def test_after_an_error_of_our_own_each_is_tried_alone_in_a_fresh_worker(isolated):
    outcomes = isolated.measure(task("good", "fails_in_company"))
    assert statuses(outcomes) == {"good": MEASURED, "fails_in_company": MEASURED}
    assert statuses(isolated.measure(task("good", "fails"))) == {
        "good": MEASURED,
        "fails": FAILED,
    }


def test_our_own_failures_are_not_tried_alone_for_ever(isolated, ends):
    outcomes = [isolated.measure(task("fails@a", "fails@b")) for _ in range(2)]
    before = len(ends)
    outcomes.append(isolated.measure(task("fails@a", "fails@b", "fails@c")))
    assert {status for found in outcomes for status in statuses(found).values()} == {
        FAILED
    }
    assert isolated._blame._own_failures == 2 and len(ends) - before == 1


def test_texts_of_60_mb_are_cut(isolated):
    assert len(isolated.measure(task("gives_60_mb"))["gives_60_mb"].reason) < 600
    outcome = isolated.measure(task("raises_60_mb"))["raises_60_mb"]
    assert (
        outcome.status == FAILED
        and len(outcome.reason) < 600
        and "::error::" not in outcome.reason
    )


def test_a_slow_clock_is_seen_by_the_parents(isolated, monkeypatch):
    monkeypatch.setattr(isolation, "_LATE_S", 0.5)
    outcomes = isolated.measure(task("slows_its_clock", "good"))
    assert statuses(outcomes) == {"slows_its_clock": INVALID, "good": MEASURED}
    assert re.match(
        r"by its own clock its process was done \d\.",
        outcomes["slows_its_clock"].reason,
    )


def test_a_worker_that_ends_between_two_calls_is_replaced(isolated):
    isolated.measure(task("good"))
    os.kill(_worker_of(isolated), signal.SIGKILL)
    with pytest.raises(WorkerLost):
        isolated.call("room")
    assert statuses(isolated.measure(task("good"))) == {"good": MEASURED}


def test_a_mould_that_ends_between_two_calls_is_replaced(isolated):
    isolated._mould._process.kill()
    with pytest.raises(WorkerLost, match="forked from has ended"):
        isolated.call("room")
    assert statuses(isolated.measure(task("good"))) == {"good": MEASURED}


def test_a_worker_that_comes_up_wrong_costs_no_second_try(isolated, monkeypatch):
    isolated.call("room")
    monkeypatch.setattr(isolation, "_START_S", 0)
    isolated.renew()
    calls = []
    monkeypatch.setattr(
        isolated, "call", lambda *call: calls.append(call) or _lose(STARTING_LOST)
    )
    assert (
        statuses(isolated.measure(task("good", "other")))
        == {"good": HUNG, "other": HUNG}
        and len(calls) == 1
    )


STARTING_LOST = WorkerLost(HUNG, "not done after 120 s", "", "starting")


def _lose(lost):
    raise lost


def _worker_of(isolated):
    from batchline.bench.measure.worker.worker import descendants

    (worker,) = descendants(isolated._mould._process.pid)
    return worker


def test_doing_is_cut_to_what_it_holds():
    import multiprocessing

    doing = Doing(multiprocessing.get_context("spawn"))
    doing.begin("bmm/x/y/z/B1", "µ" * 600)
    whose, step, since_s = doing.read()
    assert (
        whose == "bmm/x/y/z/B1" and len(step) < 600 and time.monotonic() - since_s < 5
    )


def test_a_ctrl_c_while_a_worker_starts_counts_when_it_has_started(monkeypatch):
    start, started = isolation.multiprocessing.context.SpawnProcess.start, []

    def interrupted(process):
        os.kill(os.getpid(), signal.SIGINT)
        start(process)
        started.append(process)

    monkeypatch.setattr(
        isolation.multiprocessing.context.SpawnProcess, "start", interrupted
    )
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # where it runs in the background, it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            Isolation("cpu", 5)
        assert (
            len(started) == 1
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    started[0].kill()
    started[0].join()


@pytest.mark.slow
def test_a_worker_which_is_forked_starts_threads_of_its_own():
    effort = Effort(0.5, 0.01)
    entries = (("naive", "numba_cpu_naive"), ("blocked", "numba_cpu_blocked"))
    with contextlib.closing(Isolation("cpu", 60)) as workers:
        outcomes = workers.measure(
            Task(
                "bmm",
                "square_64",
                "float32",
                8,
                entries,
                ("host",),
                effort,
                effort,
                0.01,
            )
        )
    assert not [one for one in outcomes.values() if "forked" in one.reason], outcomes
    assert {one.status for one in outcomes.values()} <= {
        MEASURED,
        INVALID,
    }  # by a machine that was busy


def test_a_tree_without_kernels_is_not_measured_as_if_it_were_another_one(tmp_path):
    """What is imported then are the kernels beside this bench: a revision would be
    compared with itself.
    """
    isolation = Isolation("cpu", 60, tmp_path)
    try:
        with pytest.raises(
            RuntimeError, match=f"the kernels of {tmp_path} were asked for"
        ):
            isolation.call("planned", "smoke")
    finally:
        isolation.close()
