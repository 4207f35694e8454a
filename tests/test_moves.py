"""What a move is put down to: never the code where the machine or the method differs."""

from dataclasses import replace

import pytest

from batchline.bench.measure import method
from batchline.bench.measure.reading import sources
from batchline.bench.running import benchmark
from batchline.bench.store import history, run_json
from batchline.bench.store.regressions import (
    EQUIVALENT,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    NEW,
    REGRESSED,
    UNCONFIRMED,
)
from batchline.bench.verdicts import across_runs, moves
from batchline.bench.verdicts.moves import Cause, Conditions, Move, classify
from tests.test_compare import stored
from tests.test_history import run

HERE = Conditions(
    {"GPU": "H200"}, {"harness": "aa", "profile": "quick"}, {"torch": "2.13.0"}, 1980
)


@pytest.mark.parametrize(
    "after, cause",
    [
        (HERE, Cause("regression")),
        (replace(HERE, machine={"GPU": "H100"}), Cause("hardware", "GPU H200 → H100")),
        (
            replace(HERE, method={"harness": "bb", "profile": "quick"}),
            Cause("method", "harness aa → bb"),
        ),
        (
            replace(HERE, toolchain={"torch": "2.14.0"}),
            Cause("toolchain", "torch 2.13.0 → 2.14.0"),
        ),
        (
            replace(HERE, machine={"GPU": "H100"}, method={}, toolchain={}),
            Cause(
                "hardware",
                "GPU H200 → H100, harness aa → none, profile quick → none, torch 2.13.0 → none",
            ),
        ),
        (replace(HERE, sm_mhz=1800), Cause("hardware", "SM clock 1980 → 1800 MHz")),
        (replace(HERE, sm_mhz=1900), Cause("regression")),  # 4.2% of 9%
        (replace(HERE, sm_mhz=2100), Cause("regression")),
        (replace(HERE, sm_mhz=None), Cause("regression")),
    ],
)
def test_a_slower_case_is_put_down_to_what_differs(after, cause):
    assert classify(Move(REGRESSED, HERE, after, 0.09)) == cause


def test_a_faster_clock_may_account_for_a_faster_case():
    faster = replace(HERE, sm_mhz=2178)
    assert classify(Move(IMPROVED, HERE, faster, -0.09)).kind == moves.HARDWARE
    assert classify(Move(IMPROVED, HERE, faster, -0.2)).kind == moves.IMPROVEMENT
    assert classify(Move(IMPROVED, faster, HERE, -0.09)).kind == moves.IMPROVEMENT


def test_what_is_not_told_from_noise_or_was_not_compared_has_no_cause_in_the_code():
    other = replace(HERE, machine={"GPU": "H100"})
    assert classify(Move(EQUIVALENT, HERE, other)) == Cause("noise")
    for verdict in (INCONCLUSIVE, UNCONFIRMED, INVALID):
        assert classify(Move(verdict)) == Cause("undecided")
    assert classify(Move(NEW)) is None
    assert classify(Move(REGRESSED, disturbed="busy")) == Cause("hardware", "busy")


def compared(**changes):
    """The class of the one case of two runs, of which the second is 20% slower."""
    runs = run_json.parse(stored()), run_json.parse(stored(1.2, **changes))
    return across_runs.compare(*runs).pairs[0].cause


def test_two_runs_differ_by_their_machine_or_their_method_before_their_code():
    assert compared() == Cause("regression")
    assert compared(machine={"cpu": "Other"}).kind == "hardware"
    assert compared(machine={"harness": "0a1b"}) == Cause(
        "method", "harness unknown → 0a1b"
    )
    assert compared(machine={"python": "3.13.1"}).kind == "method"
    assert compared(facts={"alone": "hung beside others"}) == Cause(
        "method", "timed in turns → alone"
    )
    slow = {"state": {"after": {"sm_mhz_seen": [1500, 1500]}}}
    assert compared(facts=slow).kind == "regression"  # A's clock is not known


def entries_of(days=30, step_at=15, method_at=99, clock_at=None):
    """A history that gets 20% slower at one run; the harness changes at another."""
    for day in range(days):
        made = history.entry_of(run(day, 1.2 if day >= step_at else 1.0))
        if clock_at is not None:
            for facts in made.cases.values():
                facts["sm_mhz"] = 1500 if day >= clock_at else 1980
        yield replace(made, method={"harness": "bb" if day >= method_at else "aa"})


@pytest.mark.parametrize(
    "changes, kind",
    [
        ({}, "regression"),
        ({"method_at": 15}, "method"),
        ({"method_at": 14}, "method"),  # a step is placed to within a run
        ({"method_at": 16}, "method"),
        ({"method_at": 18}, "regression"),
        ({"clock_at": 15}, "hardware"),
        ({"clock_at": 0}, "regression"),
    ],
)
def test_a_step_of_a_history_is_put_down_to_what_differs_around_it(changes, kind):
    (group,) = across_runs.groups(entries_of(**changes))
    ((series, change),) = group.changed
    assert series.cause(change).kind == kind


def test_an_entry_keeps_the_method_and_the_clock_and_one_of_before_has_none(tmp_path):
    path = history.append(run(), tmp_path)
    (entry,), _ = history.read(path)
    assert set(entry.method) == {"harness", "Python"}
    path.write_text(path.read_text().replace('"method": {', '"of_before": {'))
    (entry,), damaged = history.read(path)
    assert entry.method == {} and not damaged
    assert history.sm_mhz({"state": {"after": {"sm_mhz_seen": [1400, 1600]}}}) == 1500
    assert history.sm_mhz({"state": {"mhz": 2000}}) is None


def test_a_run_stores_the_harness_that_took_its_times():
    _, machine = benchmark._resolved(benchmark.Request(profile="smoke", device="cpu"))
    assert history.method(machine)["harness"] == method.harness()


def test_the_harness_is_known_by_its_code_and_not_by_its_comments(
    monkeypatch, tmp_path
):
    now = method.harness()
    assert len(now) == 12
    for name in method._DECIDE_TIMES:
        text = (method._TIMING / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(f"{text}# a comment\n", encoding="utf-8")
    monkeypatch.setattr(method, "_TIMING", tmp_path)
    assert method.harness() == now
    (tmp_path / "clocks.py").write_text(f"{text}\nA_TURN = 2\n", encoding="utf-8")
    sources.read.cache_clear()
    assert method.harness() != now
