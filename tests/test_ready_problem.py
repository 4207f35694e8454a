"""A problem held ready: timed a turn at a time, outputs checked, a planted slow-down
seen, a failure its own row.
"""

import math
import statistics
from dataclasses import replace

import pytest

from batchline import kernels
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.runner import Runner
from batchline.bench.measure.worker.task import Task
from batchline.bench.statuses import FAILED, INVALID, MEASURED, WRONG

EFFORT = Effort(0.05, 0.02, most=80)
BASELINE = "torch_mean"


@pytest.fixture
def runner(monkeypatch):
    monkeypatch.setattr(
        "batchline.bench.measure.worker.runner.give_each_thread_a_core", lambda: []
    )  # this process has other tests
    return Runner("cpu")


def task(entries, **settings):
    return Task(
        "grad_reduce",
        "digits",
        "float32",
        64,
        entries,
        ("host",),
        EFFORT,
        EFFORT,
        0.01,
        probes=False,
        **settings,
    )


def test_turns_give_samples_and_release_the_facts(runner):
    assert runner.hold(task((("one", BASELINE),))) == ("one",)
    samples_s, throttled = runner.turn("one", 0.01)
    assert (
        samples_s and all(sample > 1e-6 for sample in samples_s) and throttled is None
    )
    outcomes, state = runner.release()
    assert state["mhz"] is None or state["mhz"] > 0
    outcome = outcomes["one"]
    assert outcome.status == MEASURED
    assert (
        outcome.facts["peak_bytes"] > 0 and 0 < outcome.facts["error_of_tolerance"] < 1
    )


def test_what_is_planted_is_seen(runner, one_thread):
    runner.hold(
        task((("plain", BASELINE), ("slower", BASELINE)), planted={"slower": 0.5})
    )
    logs = []
    for _ in range(9):
        plain, slower = (
            statistics.median(runner.turn(label, 0.004)[0])
            for label in ("plain", "slower")
        )
        logs.append(math.log(slower / plain))
    runner.release()
    assert 0.3 < math.exp(statistics.median(logs)) - 1 < 0.8


def _other_part(clock):
    clock._usual = ()


def _other_class(clock):
    clock.__class__ = type("Host", (type(clock),), {})


def _other_attributes(clock):
    clock.__dict__ = dict(vars(clock))


def _register(monkeypatch, name, before):
    """One more variant: the baseline, and `before` that. An op keeps what it has once
    loaded: no name stands twice.
    """
    op = kernels.ops["grad_reduce"]
    baseline = op.variants[BASELINE]

    def variant(g):
        before()
        return baseline.function(g)

    variant.__name__ = name
    monkeypatch.setitem(op._registered, name, replace(baseline, function=variant))


def _register_one_that_tires(monkeypatch, name):
    """One that fails as soon as there is something in the list that is returned."""
    worn = []

    def before():
        if worn:
            raise RuntimeError("worn out")

    _register(monkeypatch, name, before)
    return worn


@pytest.mark.parametrize("meddle", [_other_part, _other_class, _other_attributes])
def test_one_that_changes_anothers_clock_is_wrong_and_nobody_has_a_time(
    runner, monkeypatch, meddle
):
    name, others = f"meddles_by{meddle.__name__}", []
    _register(monkeypatch, name, lambda: list(map(meddle, others)))
    assert runner.hold(task((("meddles", name), ("one", BASELINE)))) == (
        "meddles",
        "one",
    )
    assert runner.turn("meddles", 0.002)[0] and runner.turn("one", 0.002)[0]
    others += [
        clock
        for which, clock in runner._ready._watched.items()
        if which.startswith("one ")
    ]
    assert runner.turn("meddles", 0.002) == ([], None)
    outcomes, _ = runner.release()
    assert (
        outcomes["meddles"].status == WRONG
        and "it changed the clock of one on copy " in outcomes["meddles"].reason
    )
    assert outcomes["one"].status == INVALID


def test_one_that_fails_where_it_is_looked_at_voids_no_other(runner, monkeypatch):
    worn = _register_one_that_tires(monkeypatch, "tires")
    runner.hold(task((("tires", "tires"), ("one", BASELINE))))
    held = runner._ready
    clock = next(held._clocks["tires"])
    held._watch._expect()
    look = held._watch._look_at_all("tires", clock)
    worn.append(True)
    with pytest.raises(RuntimeError) as error:
        look.take(clock)
    held._fail("tires", error.value)
    assert runner.turn("one", 0.002)[0]
    outcomes, _ = runner.release()
    assert outcomes["tires"].status == FAILED and outcomes["one"].status == MEASURED


def test_one_that_fails_is_its_own_row_and_the_others_go_on(runner, monkeypatch):
    worn = _register_one_that_tires(monkeypatch, "breaks")
    assert runner.hold(task((("breaks", "breaks"), ("one", BASELINE)))) == (
        "breaks",
        "one",
    )
    assert runner.turn("breaks", 0.002)[0]
    worn.append(True)
    assert runner.turn("breaks", 0.005) == ([], None) and runner.turn("one", 0.002)[0]
    outcomes, _ = runner.release()
    assert (outcomes["breaks"].status, outcomes["breaks"].reason) == (
        FAILED,
        "RuntimeError: worn out",
    )
    assert outcomes["one"].status == MEASURED
