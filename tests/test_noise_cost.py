"""What measuring costs: every way has a row, timed or with its reason, over the plain
step of the same rounds.
"""

import itertools

import pytest

from batchline.bench.errors import Missing
from batchline.bench.measure.machine.state import NoGuard
from batchline.bench.noise.experiments import cost
from batchline.bench.noise.experiments.cost import (
    BACKPACK,
    METERED,
    OPACUS,
    PLAIN,
    READ,
    WAYS,
    Way,
    costs,
    table,
)
from batchline.bench.noise.workloads import workloads

pytestmark = pytest.mark.usefixtures("one_thread")


class Clock:
    """Hardware whose time goes by as steps say, and not otherwise."""

    name = "cpu"

    def __init__(self):
        self.time_s = 0.0

    def now_s(self):
        return self.time_s

    def synchronize(self):
        pass


def _ways(clock, seconds_of):
    """Steps that take so long, and a millionth more each time: equal samples would be
    known well enough at once.
    """

    def make(name):
        steps = itertools.count()

        def step():
            clock.time_s += seconds_of[name] * (1 + 1e-6 * next(steps))

        return lambda workload, model, x, y: (
            step,
            ("left.out",) if name == METERED else (),
        )

    return tuple(Way(name, "", make(name)) for name in seconds_of)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(cost, "hardware_of", lambda device: clock)
    return clock


def test_the_overhead_is_over_the_plain_step(clock, monkeypatch):
    monkeypatch.setattr(
        cost, "WAYS", _ways(clock, {PLAIN: 0.010, METERED: 0.012, READ: 0.008})
    )
    plain, metered, read = costs(workloads["digits"], 4, seconds=1.0)
    assert plain.time.median_s == pytest.approx(0.010, rel=1e-3)
    assert plain.time.overhead.value == pytest.approx(0, abs=1e-3)
    over = metered.time.overhead
    assert (over.value, over.low, over.high) == pytest.approx((0.2,) * 3, rel=1e-3)
    assert read.time.overhead.value == pytest.approx(-0.2, rel=1e-3)
    assert metered.left_out == ("left.out",)
    spent_s = sum(
        row.time.samples * row.time.median_s for row in (plain, metered, read)
    )
    assert spent_s == pytest.approx(1.0, rel=0.4)


def test_a_way_that_fails_is_a_row_with_its_reason_and_the_others_are_timed(
    clock, monkeypatch
):
    def broken(workload, model, x, y):
        raise NotImplementedError("no rule for\nthis layer")

    ways = *_ways(clock, {PLAIN: 0.010, METERED: 0.011}), Way(OPACUS, "", broken)
    monkeypatch.setattr(cost, "WAYS", ways)
    plain, metered, opacus = costs(workloads["digits"], 4, seconds=0.1)
    assert opacus.time == Missing("NotImplementedError: no rule for")
    assert plain.time.samples == metered.time.samples >= 6
    text = table([plain, metered, opacus])
    assert "no rule for" in text and "+10.0%" in text and "11.0 ms" in text


def test_a_peer_that_is_absent_is_a_row(clock, monkeypatch):
    monkeypatch.setattr(
        cost.backends, "why_absent", lambda backend: f"{backend} is not here"
    )
    monkeypatch.setattr(
        cost,
        "WAYS",
        (*_ways(clock, {PLAIN: 0.01}), *(way for way in WAYS if way.needs)),
    )
    rows = {row.way: row for row in costs(workloads["digits"], 4, seconds=0.05)}
    assert rows[OPACUS].time == Missing("opacus is not here") and rows[
        BACKPACK
    ].time == Missing("backpack is not here")


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("name", workloads)
def test_every_way_runs_or_says_why_on_a_real_workload(name):
    rows = costs(workloads[name], 4, seconds=0.2)
    assert [row.way for row in rows] == [way.name for way in WAYS]
    for row in rows:
        time = row.time
        if isinstance(time, Missing):
            assert time.reason
        else:
            assert 0 < time.first_quartile_s <= time.median_s <= time.third_quartile_s
            assert time.overhead.low <= time.overhead.value <= time.overhead.high
    assert all(row.time for row in rows if row.way in (PLAIN, METERED, READ))
    assert next(row for row in rows if row.way == METERED).left_out == ()
    assert all(row.way in table(rows) for row in rows)


class Busy(NoGuard):
    """Every attempt met others."""

    def measured(self, work):
        return (
            work(),
            "the machine was busy: other processes took 43% of the cores, three times",
        )


def test_beside_others_no_way_has_a_time_and_the_command_ends_with_3(
    clock, monkeypatch, capsys
):
    monkeypatch.setattr(cost, "WAYS", _ways(clock, {PLAIN: 0.010, METERED: 0.012}))
    monkeypatch.setattr(cost, "guard_of", lambda device: Busy())
    assert cost.run("cpu", 0.1) == 3
    assert "other processes took 43%" in capsys.readouterr().out
    monkeypatch.setattr(cost, "guard_of", lambda device: NoGuard())
    assert cost.run("cpu", 0.1) == 0
