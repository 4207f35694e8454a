"""Isolation: what ends a worker is one row, told apart by how it ended, and the others are measured all the same."""
import os
import signal
import time

import pytest

from bench.measure import isolation, worker
from bench.measure.isolation import Isolation, WorkerLost
from bench.measure.sampling import Effort
from bench.measure.task import Outcome, Task
from bench.records import CRASHED, FAILED, HUNG, MEASURED, NOT_REACHED, OUT_OF_MEMORY

EFFORT = Effort(0.1, 0.01)


def fake_serve(connection, doing, device, tree):
    """A worker whose variants do what their names say, in the step that their label names."""
    worker._be_a_good_child()
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        if method != "measure":
            connection.send(("raised", f"ValueError: no {method}"))
            continue
        for label, variant in arguments[0].entries:
            doing.begin(label, label.partition("@")[2] or "warm-up")
            if variant == "hangs":
                time.sleep(60)
            elif variant == "segfaults":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif variant == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif variant == "exits":
                os._exit(7)
            elif variant == "loses_device":
                connection.send(("lost", "RuntimeError: illegal access"))
                return
        connection.send(("done", {label: Outcome(MEASURED) for label in arguments[0].labels}))


@pytest.fixture
def isolated(monkeypatch):
    monkeypatch.setattr(isolation, "serve", fake_serve)
    monkeypatch.setattr(isolation, "_START_S", 20)
    opened = Isolation("cpu", deadline_s=0.5)
    yield opened
    opened.close()


def task(*entries, dtype="float32"):
    return Task("bmm", "tiny_16", dtype, 1, tuple((entry, entry.partition("@")[0]) for entry in entries), ("host",),
                EFFORT, EFFORT, 0.0)


@pytest.mark.parametrize("variant, status, words", [
    ("hangs", HUNG, "not done after 0.5 s (warm-up)"), ("segfaults", CRASHED, "ended by SIGSEGV (warm-up)"),
    ("exits", CRASHED, "ended with exit code 7"), ("loses_device", CRASHED, "RuntimeError: illegal access (warm-up)")])
def test_what_ends_its_worker_is_a_row_and_the_others_are_measured(isolated, variant, status, words):
    outcomes = isolated.measure(task("first", variant, "last"))
    assert {label: outcome.status for label, outcome in outcomes.items()} == {
        "first": MEASURED, variant: status, "last": MEASURED}
    assert words in outcomes[variant].reason


def test_several_in_one_task(isolated):
    outcomes = isolated.measure(task("segfaults", "good", "exits"))
    assert [outcomes[name].status for name in ("segfaults", "good", "exits")] == [CRASHED, MEASURED, CRASHED]
    assert isolated.measure(task("good"))["good"].status == MEASURED


def test_a_process_that_the_kernel_killed_for_memory_says_so(isolated, monkeypatch):
    kills = iter((1, 1))  # after the worker that is there now was started, which saw fewer
    monkeypatch.setattr(isolation, "_oom_kills", lambda: next(kills, 1))
    isolated._oom_kills = 0
    assert isolated.measure(task("killed"))["killed"].status == OUT_OF_MEMORY
    isolated._oom_kills = 1
    assert isolated.measure(task("killed"))["killed"].status == CRASHED


def test_what_fails_in_the_probes_is_refused_in_all_its_cases_of_that_dtype(isolated):
    isolated.measure(task("exits@probes: ragged"))
    process = isolated._process
    again = isolated.measure(task("good", "exits@probes: ragged"))
    assert again["exits@probes: ragged"].status == CRASHED and again["good"].status == MEASURED
    assert process is None and isolated._process.is_alive()  # it was not run again
    with_other_dtype = isolated.measure(task("exits", dtype="float16"))
    assert with_other_dtype["exits"].status == CRASHED and isolated._process is None


def test_a_variant_that_keeps_hanging_is_given_up(isolated):
    statuses = [isolated.measure(task("hangs"))["hangs"].status for _ in range(3)]
    assert statuses == [HUNG, HUNG, NOT_REACHED]


def test_an_error_of_our_own_ends_neither_the_run_nor_the_worker(isolated, monkeypatch):
    with pytest.raises(RuntimeError, match="no such"):
        isolated.call("such")
    monkeypatch.setattr(isolated, "call", lambda *_: (_ for _ in ()).throw(RuntimeError("KeyError: 'x'")))
    outcome = isolated.measure(task("good"))["good"]
    assert (outcome.status, outcome.reason) == (FAILED, "Batchline itself failed: KeyError: 'x'")


def test_a_worker_that_ends_between_two_calls_is_replaced(isolated):
    isolated.measure(task("good"))
    isolated._process.kill()
    with pytest.raises(WorkerLost):
        isolated.call("room")
    assert isolated.measure(task("good"))["good"].status == MEASURED


def test_nothing_is_left_behind(isolated):
    isolated.measure(task("good"))
    pid = isolated._process.pid
    isolated.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    isolated.close()


def test_doing_is_cut_to_what_it_holds():
    import multiprocessing

    doing = worker.Doing(multiprocessing.get_context("spawn"))
    doing.begin("bmm/x/y/z/B1", "µ" * 600)
    whose, step, since_s = doing.read()
    assert whose == "bmm/x/y/z/B1" and len(step) < 600 and time.monotonic() - since_s < 5


def test_a_ctrl_c_while_a_worker_starts_counts_when_it_has_started(monkeypatch):
    start, started = isolation.multiprocessing.context.SpawnProcess.start, []

    def interrupted(process):
        os.kill(os.getpid(), signal.SIGINT)
        start(process)
        started.append(process)

    monkeypatch.setattr(isolation.multiprocessing.context.SpawnProcess, "start", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # where it runs in the background, it is ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            Isolation("cpu", 5)
        assert len(started) == 1 and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())
    started[0].kill()
    started[0].join()


def test_a_tree_without_kernels_is_not_measured_as_if_it_were_another_one(tmp_path):
    """What is imported then are the kernels beside this bench: a revision would be compared with itself."""
    isolation = Isolation("cpu", 60, tmp_path)
    try:
        with pytest.raises(RuntimeError, match=f"the kernels of {tmp_path} were asked for"):
            isolation.call("planned", "smoke")
    finally:
        isolation.close()
