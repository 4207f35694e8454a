"""A pair with made-up processes: who has a turn when, what becomes of throttled ones,
and of a process that is lost.
"""

import contextlib
import math
import subprocess
import sys

import pytest

from batchline.bench.cases import PROFILES
from batchline.bench.measure.machine import state as machine_state
from batchline.bench.measure.worker.isolation import WorkerLost
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.regress import pairs
from batchline.bench.regress.pairs import (
    BASE_SIDE,
    HEAD_SIDE,
    Compared,
    Entry,
    Pairs,
    failure,
)
from batchline.bench.statuses import CRASHED, FAILED, INVALID, MEASURED
from batchline.bench.store.regressions import ACCURACY, LATENCY, MEMORY
from batchline.bench.verdicts.paired import BASE, BOTH, HEAD

ONE, OTHER = "bmm/a/tiny_16/float32/B1", "bmm/b/tiny_16/float32/B1"
FACTS = {"peak_bytes": 2**20, "error_of_tolerance": 0.5}


class Side:
    """A worker that takes `call_s` for each call of any case; `turns` are the labels
    whose turns it was asked for.
    """

    def __init__(
        self,
        log,
        name,
        call_s,
        throttled=lambda label, turn: None,
        ready=None,
        dies=None,
    ):
        self.log, self.name, self.call_s = log, name, call_s
        self.throttled, self.ready, self.dies = throttled, ready, dies
        self.turns, self.tasks, self.closed = [], [], 0

    def ask(self, method, *arguments):
        self.request = method, arguments

    def answer(self):
        method, arguments = self.request
        if method == self.dies:
            raise WorkerLost(CRASHED, "its process was ended by SIGSEGV", "", "")
        if method == "hold":
            self.tasks.append(arguments[0])
            return self.ready or arguments[0].labels
        if method == "turn":
            label, _ = arguments
            self.turns.append(label)
            self.log.append(self.name)
            return [self.call_s] * 3, self.throttled(label, len(self.turns))
        return {
            label: Outcome(MEASURED, facts=FACTS) for label in self.tasks[-1].labels
        }, {"mhz": 2000.0, "others_share": 0.5}

    def call(self, method, *arguments):
        self.ask(method, *arguments)
        return self.answer()

    def close(self):
        self.closed += 1


@pytest.fixture
def pair_of(monkeypatch):
    monkeypatch.setattr(pairs.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(
        pairs.machine_state, "why_too_busy", lambda before, after: next(load, None)
    )
    load = iter(())

    def measure(base, head, entries, number=0, busy=()):
        nonlocal load
        load = iter(busy)
        measurer = measure.measurer = Pairs("cpu", PROFILES["smoke"], (None, None))
        monkeypatch.setattr(
            measurer, "_two_processes", lambda: contextlib.nullcontext([base, head])
        )
        return measurer.pair(entries, number)

    return measure


def sides(base_s=1e-3, head_s=1.1e-3, **how):
    log = []
    return Side(log, "A", base_s, **how), Side(log, "B", head_s), log


@pytest.mark.parametrize(
    "number, order",
    [(0, "ABBA" "BAAB" "ABBA" "BAAB" "ABBA"), (1, "BAAB" "ABBA" "BAAB" "ABBA" "BAAB")],
)
def test_turns_are_in_the_order_a_b_b_a_and_its_mirror(pair_of, number, order):
    base, head, log = sides()
    pair_of(base, head, [Entry(ONE, ONE)], number)
    assert "".join(log) == order


def test_the_ratio_is_head_over_base(pair_of):
    base, head, _ = sides()
    found = pair_of(base, head, [Entry(ONE, ONE)])[ONE]
    assert found.ratio == pytest.approx(math.log(1.1)) and (
        found.base_s,
        found.head_s,
    ) == (1e-3, 1.1e-3)
    assert found.failure is None
    assert found.figures == {
        LATENCY: (1e-3, 1.1e-3, found.ratio),
        MEMORY: (2**20, 2**20, 0.0),
        ACCURACY: (0.5, 0.5, 0.0),
    }


def test_cases_of_one_problem_are_held_together_and_planted_at_head_alone(pair_of):
    base, head, _ = sides()
    pair_of(
        base,
        head,
        [
            Entry("plain", ONE),
            Entry("slower", ONE, 0.05),
            Entry("else", OTHER.replace("B1", "B3")),
        ],
    )
    assert [task.labels for task in base.tasks] == [("plain", "slower"), ("else",)]
    assert (base.tasks[0].planted, head.tasks[0].planted) == ({}, {"slower": 0.05})
    assert (
        head.tasks[0].entries == (("plain", "a"), ("slower", "a"))
        and not head.tasks[0].probes
    )


def test_throttled_turns_are_taken_again(pair_of):
    base, head, _ = sides(throttled=lambda label, turn: "hot" if turn <= 6 else None)
    assert pair_of(base, head, [Entry(ONE, ONE)])[ONE].ratio == pytest.approx(
        math.log(1.1)
    )


def test_clocks_and_throttled_turns_are_logged(pair_of):
    base, head, _ = sides(throttled=lambda label, turn: "hot" if turn <= 2 else None)
    pair_of(base, head, [Entry(ONE, ONE), Entry("again", ONE)], 3)
    assert pair_of.measurer.states == [
        {
            "pair": 4,
            "problem": "bmm/tiny_16/float32/B1",
            "base": {"mhz": 2000.0},
            "head": {"mhz": 2000.0},
            "throttled": {"hot": 2},
        }
    ]


def test_a_case_that_stays_throttled_is_invalid(pair_of):
    base, head, _ = sides(throttled=lambda label, turn: "hot")
    found = pair_of(base, head, [Entry(ONE, ONE)])[ONE]
    assert found.ratio is None and found.base.status == INVALID
    assert found.failure == (
        BOTH,
        "invalid: the machine was throttled in too many turns (hot)",
    )


def test_a_pair_on_a_busy_machine_is_measured_again(pair_of, capsys):
    base, head, log = sides()
    found = pair_of(
        base, head, [Entry(ONE, ONE)], 2, busy=["others took 40% of the cores", None]
    )
    assert len(log) == 2 * 20 and found[ONE].ratio == pytest.approx(math.log(1.1))
    assert (
        capsys.readouterr().err
        == "pair 3 is measured again: others took 40% of the cores\n"
    )


def test_a_machine_that_stays_busy_gives_no_times(pair_of):
    base, head, _ = sides()
    found = pair_of(
        base, head, [Entry(ONE, ONE)], busy=["others took 40% of the cores"] * 4
    )[ONE]
    assert found.ratio is None and found.failure == (
        BOTH,
        "invalid: the machine was busy: others took 40% of the cores",
    )


@pytest.mark.parametrize(
    "busy_s, own_s, stolen_s, words",
    [
        (10.0, 9.5, 0.0, None),
        (10.0, 5.0, 0.0, "other processes took 25% of the cores"),
        (10.0, 10.0, 4.0, "the hypervisor took 20% of the cores"),
    ],
)
def test_others_are_whoever_is_not_of_this_run(
    monkeypatch, busy_s, own_s, stolen_s, words
):
    monkeypatch.delenv(machine_state.VARIABLE, raising=False)
    zero = {
        "time_s": 0.0,
        "cores": 2,
        "busy_cpu_s": 0.0,
        "own_cpu_s": 0.0,
        "stolen_cpu_s": 0.0,
        "load_1min": 1.0,
        "mhz": None,
    }
    after = zero | {
        "time_s": 10.0,
        "busy_cpu_s": busy_s,
        "own_cpu_s": own_s,
        "stolen_cpu_s": stolen_s,
    }
    assert machine_state.why_too_busy(zero, after) == words


def test_workers_that_have_ended_are_ours():
    before = machine_state.read()
    subprocess.run([sys.executable, "-c", "sum(range(10 ** 7))"], check=True)
    assert machine_state.read()["own_cpu_s"] - before["own_cpu_s"] > 0.05


def test_what_only_one_side_could_hold_has_no_turn(pair_of):
    base, head, _ = sides(ready=(ONE,))
    found = pair_of(base, head, [Entry(ONE, ONE), Entry(OTHER, OTHER)])
    assert (
        found[ONE].ratio is not None
        and found[OTHER].ratio is None
        and set(base.turns) == {ONE}
    )


@pytest.mark.parametrize("method", ["hold", "turn", "release"])
def test_a_lost_process_costs_its_problem_alone(pair_of, method):
    base, head, _ = sides(dies=method)
    found = pair_of(base, head, [Entry(ONE, ONE)], 4)[ONE]
    assert found.failure == (
        BOTH,
        "crashed: in pair 5: its process was ended by SIGSEGV",
    )
    assert base.closed == head.closed == 1  # both begin the next problem anew


def test_a_failure_names_its_side():
    good, bad = Outcome(MEASURED), Outcome(FAILED, "ValueError: no")
    assert failure(good, good) is None
    assert (
        failure(good, bad) == (HEAD, "failed: ValueError: no")
        and failure(bad, good)[0] == BASE
    )
    assert failure(bad, bad) == (BOTH, "failed: ValueError: no")


def test_an_error_or_a_size_that_is_next_to_nothing_does_not_move():
    base, head = (
        Outcome(MEASURED, facts={"peak_bytes": size, "error_of_tolerance": error})
        for size, error in ((0, 1e-9), (1, 1e-3))
    )
    figures = Compared(base, head, 1e-3, 1e-3, 0.0).figures
    assert figures[MEMORY] == (1, 1, 0.0) and figures[ACCURACY] == (0.01, 0.01, 0.0)
    unknown = Outcome(MEASURED, facts={"peak_bytes": None, "error_of_tolerance": 0.1})
    assert MEMORY not in Compared(unknown, unknown, 1e-3, 1e-3, 0.0).figures


def test_the_trees_are_the_bases_and_the_heads(monkeypatch):
    made = []
    monkeypatch.setattr(
        pairs, "Isolation", lambda *arguments: made.append(arguments) or Side([], "", 1)
    )
    measurer = Pairs("cpu", PROFILES["smoke"], ("base", None))
    with measurer._two_processes():
        pass
    assert [tree for *_, tree in made] == ["base", None] and (BASE_SIDE, HEAD_SIDE) == (
        0,
        1,
    )
