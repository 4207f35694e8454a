"""The one rule for a busy machine: who is an other, what is measured again, what is
refused, and for how long.
"""

import contextlib
import os
import subprocess
import sys
import time

import pytest
import torch

from batchline.bench.measure.machine import state
from batchline.bench.measure.machine.state import (
    LEAST_SPAN_S,
    PAUSES_S,
    CpuState,
    Guard,
    NoGuard,
    own_cpu_s,
)
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.runner import Runner
from batchline.bench.measure.worker.task import Outcome, Task
from batchline.bench.statuses import (
    INVALID,
    MEASURED,
    WRONG,
    is_broken,
    is_machines_fault,
)

SPIN = "import time\nwhile time.process_time() < {cpu_s}: pass"


@pytest.fixture(autouse=True)
def usual(monkeypatch):
    monkeypatch.delenv(state.VARIABLE, raising=False)


class Machine:
    """Four cores on virtual time: `others` of them are taken by others, `stolen` by the
    hypervisor, one is ours.
    """

    def __init__(self, others=0.0, stolen=0.0):
        self.others, self.stolen = others, stolen
        self.at = {
            "time_s": 100.0,
            "cores": 4,
            "busy_cpu_s": 0.0,
            "own_cpu_s": 0.0,
            "stolen_cpu_s": 0.0,
            "load_1min": 1.0,
            "mhz": None,
        }
        self.paused_s = []

    def read(self):
        return dict(self.at)

    def work(self, seconds):
        self.at["time_s"] += seconds
        self.at["own_cpu_s"] += seconds
        self.at["busy_cpu_s"] += seconds * (1 + self.others)
        self.at["stolen_cpu_s"] += seconds * self.stolen

    def pause(self, seconds):
        self.paused_s.append(seconds)
        self.work(seconds)

    def guard(self):
        return Guard(read=self.read, pause=self.pause)


def attempts(machine, guard, others, seconds=1.0):
    """What becomes of work where others take so many cores in each attempt, and how
    often it was done.
    """
    ran = []

    def work():
        machine.others = others[len(ran)]
        machine.work(seconds)
        ran.append(len(ran))
        return ran[-1]

    return (*guard.measured(work), len(ran))


def test_on_a_quiet_machine_work_is_done_once():
    machine = Machine()
    assert (
        attempts(machine, machine.guard(), [0.2]) == (0, None, 1)
        and not machine.paused_s
    )


def test_work_beside_others_is_done_again_and_counts_once_they_are_gone():
    machine = Machine()
    assert attempts(machine, machine.guard(), [2.0, 0.0]) == (1, None, 2)
    assert machine.paused_s == [PAUSES_S[0]]


def test_what_others_had_their_share_in_each_time_does_not_count():
    machine = Machine()
    last, why, ran = attempts(machine, machine.guard(), [3.0, 3.0, 1.72])
    assert (last, ran) == (2, 3) and machine.paused_s == list(PAUSES_S)
    assert (
        why
        == "the machine was busy: other processes took 43% of the cores, three times"
    )


@pytest.mark.parametrize(
    "others, stolen, why",
    [
        (0.39, 0.0, None),
        (0.41, 0.0, "other processes took 10% of the cores"),
        (0.0, 0.39, None),
        (0.0, 0.8, "the hypervisor took 20% of the cores"),
    ],
)
def test_a_tenth_of_the_cores_is_the_rule(others, stolen, why):
    machine = Machine(others, stolen)
    before = machine.read()
    machine.work(1.0)
    assert state.why_too_busy(before, machine.read()) == why


def test_a_machine_that_is_never_quiet_is_not_waited_for_for_ever():
    machine = Machine()
    guard = machine.guard()
    ran = [attempts(machine, guard, [4.0] * 3)[2] for _ in range(6)]
    assert ran == [3, 3, 3, 1, 1, 1]
    assert attempts(machine, guard, [0.0]) == (
        0,
        None,
        1,
    )  # it is quiet again, and patience too
    assert attempts(machine, guard, [4.0, 0.0])[2] == 2


def test_a_span_of_a_few_ticks_is_judged_with_the_time_before_it():
    machine = Machine(others=0.0)
    guard = machine.guard()
    machine.work(LEAST_SPAN_S)
    short = LEAST_SPAN_S / 10
    assert attempts(machine, guard, [1.0], short) == (
        0,
        None,
        1,
    )  # one tick among the time before
    machine = Machine(others=3.0)
    guard = machine.guard()
    machine.work(LEAST_SPAN_S)
    assert attempts(machine, guard, [3.0, 3.0, 3.0], short)[1]


def test_what_can_not_be_judged_at_all_is_not_called_busy():
    machine = Machine()
    assert attempts(machine, machine.guard(), [3.0], LEAST_SPAN_S / 10) == (
        0,
        None,
        1,
    )  # the first of a process


def test_where_nothing_is_counted_nothing_is_refused():
    assert Guard(read=lambda: {"time_s": time.monotonic(), "own_cpu_s": 0.0}).measured(
        lambda: 7
    ) == (7, None)


@pytest.mark.parametrize(
    "told, most", [("0.5", 0.5), ("1", 1.0), ("", state.USUAL_SHARE)]
)
def test_another_share_can_be_told(monkeypatch, told, most):
    monkeypatch.setenv(state.VARIABLE, told)
    assert state.most_share() == most


@pytest.mark.parametrize("told", ["0", "-1", "1.5", "nan", "much"])
def test_what_is_no_share_is_refused(monkeypatch, told):
    monkeypatch.setenv(state.VARIABLE, told)
    with pytest.raises(
        ValueError, match=f"BATCHLINE_MOST_BUSY={told} is no share of the cores"
    ):
        state.most_share()


# Who is an other, on this machine.


def test_threads_and_children_dead_or_alive_are_ours():
    before = own_cpu_s()
    a = torch.randn(600, 600)
    until_s = time.process_time() + 0.3
    while time.process_time() < until_s:
        a @ a
    ours_s = own_cpu_s() - before
    assert ours_s > 0.2
    subprocess.run([sys.executable, "-c", SPIN.format(cpu_s=0.3)], check=True)
    with_dead_s = own_cpu_s() - before
    assert with_dead_s > ours_s + 0.2
    with living() as child:
        child.stdout.readline()
        assert own_cpu_s() - before > with_dead_s + 0.2


@contextlib.contextmanager
def living():
    """A child that has used 0.3 s of CPU, and waits."""
    program = f"{SPIN.format(cpu_s=0.3)}\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        yield child
        child.stdin.close()


def test_what_this_process_does_itself_is_not_taken_for_others():
    """However busy the machine is: an upper bound on what others can have had is what
    it did not use.
    """
    cpu, began_s = CpuState(), time.monotonic()
    before = cpu.read()
    until_s = time.process_time() + 0.5
    while time.process_time() < until_s:
        pass
    after = cpu.read()
    cores, span_s = after["cores"], time.monotonic() - began_s
    own_s, busy_s = (after[name] - before[name] for name in ("own_cpu_s", "busy_cpu_s"))
    assert own_s <= busy_s + 0.03 and busy_s <= cores * span_s + 0.03


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="needs Linux")
def test_a_load_on_every_core_is_seen():
    hogs = [
        subprocess.Popen([sys.executable, "-c", SPIN.format(cpu_s=30)])
        for _ in range(os.cpu_count())
    ]
    nobodys = {"own_cpu_s": 0.0}  # as if they were not this process's children
    cpu = CpuState()
    try:
        before = cpu.read() | nobodys
        time.sleep(0.5)
        assert "other processes took" in state.why_too_busy(
            before, cpu.read() | nobodys
        )
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


# What the runner makes of it.


class Busy(Guard):
    """Every attempt met others."""

    def __init__(self):
        self.why = (
            "the machine was busy: other processes took 43% of the cores, three times"
        )

    def measured(self, work):
        return work(), self.why


def test_every_entry_that_was_measured_becomes_invalid_and_the_others_stay(monkeypatch):
    runner = Runner.__new__(Runner)
    runner._guard = Busy()
    attempt = {
        "a": Outcome(MEASURED, samples_s=(0.012,) * 6),
        "b": Outcome(WRONG, "on ragged: no"),
    }
    monkeypatch.setattr(runner, "_attempt", lambda task: attempt)
    task = Task(
        "bmm",
        "tiny_16",
        "float32",
        1,
        (),
        ("host",),
        Effort(0.1, 0.01),
        Effort(0.1, 0.01),
        0.0,
    )
    outcomes = runner.measure(task)
    assert (
        outcomes["a"] == Outcome(INVALID, runner._guard.why)
        and outcomes["b"] == attempt["b"]
    )
    runner._guard = NoGuard()
    assert runner.measure(task) == attempt


@pytest.mark.parametrize(
    "status, reason, broken",
    [
        (
            INVALID,
            "the machine was busy: other processes took 43% of the cores, three times",
            False,
        ),
        (
            INVALID,
            "the machine was throttled (power brake): 0 of at least 6 samples are left, 40 were dropped",
            False,
        ),
        (INVALID, "by host, 1.00 µs is faster than its work allows", True),
        (WRONG, "the machine was right", True),
        (MEASURED, "", False),
    ],
)
def test_a_busy_machine_is_nobodys_fault(status, reason, broken):
    assert is_broken(status, reason) is broken
    assert is_machines_fault(status, reason) is (status == INVALID and not broken)
