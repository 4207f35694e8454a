"""From two plans to verdicts, with pairs that are made up: what is measured, what ends
it, what its exit says.
"""

import pytest

from batchline.bench.commands.regress import Comparison, NotComparable, exit_code
from batchline.bench.errors import ExitCode
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.regress import pairs
from batchline.bench.regress.pairs import BASE_SIDE, HEAD_SIDE
from batchline.bench.statuses import FAILED, WRONG
from batchline.bench.store.regressions import (
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    LATENCY,
    MISSING,
    NEW,
    REGRESSED,
    UNCONFIRMED,
    load,
    save,
)
from tests.fake_pairs import FakePairs, wobbling

ABOUT = {
    "base": {"name": "main", "commit": "a" * 40, "dirty": False},
    "head": {"name": "", "commit": "b" * 40, "dirty": True},
    "profile": "smoke",
    "selection": "",
    "device": "cpu",
    "clock": "host",
    "started": "2026-01-02T03:04:05+00:00",
    "seconds": 1.0,
    "budget_s": None,
    "machine": {"device_name": "Some CPU"},
}
MINE, OTHER, CONTROL, FRESH, GONE = (
    f"bmm/{name}/tiny_16/float32/B1"
    for name in ("mine", "other", "torch_bmm", "fresh", "gone")
)


def plans(changed=(MINE,), same=(CONTROL,), new=(), missing=()):
    def side(cases, code):
        return {
            case: {"code": code if case in changed else "same", "refusal": None}
            for case in cases
        }

    return side((*changed, *same, *missing), "before"), side(
        (*changed, *same, *new), "after"
    )


def compared(ratios, the_plans, first=None, until_s=None):
    pairs = FakePairs({CONTROL: wobbling(0)} | ratios, the_plans, first)
    comparison = Comparison(pairs, "", "smoke", {})
    comparison.measure(until_s)
    return comparison.regression(ABOUT), pairs


def latencies(found):
    return {row.id: row.verdict for row in found.cases if row.quantity == LATENCY}


@pytest.mark.parametrize(
    "change, verdict, code",
    [
        (0, EQUIVALENT, ExitCode.CLEAN),
        (0.1, REGRESSED, ExitCode.FAULT),
        (-0.1, IMPROVED, ExitCode.CLEAN),
    ],
)
def test_a_change_is_judged_beside_a_control(change, verdict, code):
    found, pairs = compared({MINE: wobbling(change)}, plans())
    assert latencies(found) == {MINE: verdict, CONTROL: IDENTICAL}
    assert found.void is None and exit_code(found) == code
    assert pairs.asked[0] == [MINE, CONTROL] and found.about["pairs"] == len(
        pairs.asked
    )
    assert [side for side, _ in pairs.checked] == [BASE_SIDE, HEAD_SIDE]


def test_a_control_that_alarms_voids_the_session():
    found, _ = compared({MINE: wobbling(0.1), CONTROL: wobbling(0.2)}, plans())
    assert CONTROL in found.void and exit_code(found) == ExitCode.NOT_MEASURED


def test_the_same_code_everywhere_needs_no_measuring():
    found, pairs = compared({}, plans(changed=()))
    assert (
        latencies(found) == {CONTROL: IDENTICAL}
        and not pairs.asked
        and not pairs.checked
    )
    assert exit_code(found) == ExitCode.CLEAN


def test_new_cases_are_checked_at_head_alone_and_missing_ones_named():
    found, pairs = compared({MINE: wobbling(0)}, plans(new=(FRESH,), missing=(GONE,)))
    assert latencies(found) == {
        MINE: EQUIVALENT,
        CONTROL: IDENTICAL,
        FRESH: NEW,
        GONE: MISSING,
    }
    assert (
        FRESH not in pairs.checked[0][1]
        and FRESH in pairs.checked[1][1]
        and exit_code(found) == ExitCode.CLEAN
    )


def test_a_new_case_that_is_wrong_is_no_pass():
    found, _ = compared(
        {MINE: wobbling(0)},
        plans(new=(FRESH,)),
        {(HEAD_SIDE, FRESH): Outcome(WRONG, "3 elements")},
    )
    row = next(row for row in found.cases if row.id == FRESH)
    assert (row.verdict, row.reason) == (
        INVALID,
        "new, and wrong: 3 elements",
    ) and exit_code(found) == ExitCode.NOT_MEASURED


@pytest.mark.parametrize(
    "sides, verdict, code",
    [
        ((HEAD_SIDE,), REGRESSED, ExitCode.FAULT),
        ((BASE_SIDE,), IMPROVED, ExitCode.CLEAN),
        ((BASE_SIDE, HEAD_SIDE), INVALID, ExitCode.NOT_MEASURED),
    ],
)
def test_what_breaks_on_a_side_is_not_timed(sides, verdict, code):
    broken = {(side, MINE): Outcome(FAILED, "ValueError: no") for side in sides}
    found, pairs = compared({OTHER: wobbling(0)}, plans(changed=(MINE, OTHER)), broken)
    assert latencies(found) == {MINE: verdict, OTHER: EQUIVALENT, CONTROL: IDENTICAL}
    assert all(MINE not in asked for asked in pairs.asked) and exit_code(found) == code


def test_ctrl_c_keeps_the_verdicts_that_there_are_and_says_so(tmp_path):
    ends = {12: KeyboardInterrupt()}
    noisy = lambda number: ends.get(number, 1 + 0.2 * (-1) ** number)  # noqa: E731
    found, _ = compared({MINE: wobbling(0), OTHER: noisy}, plans(changed=(MINE, OTHER)))
    assert latencies(found)[MINE] == EQUIVALENT and exit_code(found) == ExitCode.STOPPED
    save(tmp_path, found)
    assert load(tmp_path).about["ended"] == "stopped by Ctrl-C"


def test_no_time_is_no_pass():
    found, pairs = compared({MINE: wobbling(0)}, plans(), until_s=0)
    assert (
        not pairs.asked
        and latencies(found)[MINE] == INVALID
        and exit_code(found) == ExitCode.NOT_MEASURED
    )


@pytest.mark.parametrize(
    "change, others, verdict, code",
    [
        (
            1.05,
            {OTHER: wobbling(0)},
            UNCONFIRMED,
            ExitCode.NOT_MEASURED,
        ),  # "+105%", and too few pairs to confirm it
        (1.05, {}, UNCONFIRMED, ExitCode.NOT_MEASURED),
        (
            0.01,
            {OTHER: wobbling(0)},
            INCONCLUSIVE,
            ExitCode.CLEAN,
        ),  # its interval has the floor inside
        (0.01, {}, INCONCLUSIVE, ExitCode.NOT_MEASURED),
    ],
)  # and nothing else was judged
def test_a_budget_that_ends_first_is_no_pass_for_what_looks_slower(
    monkeypatch, change, others, verdict, code
):
    monkeypatch.setattr(pairs, "LAST_PAIR", 6)
    found, _ = compared(
        {MINE: wobbling(change, by=0.01)} | others, plans(changed=(MINE, *others))
    )
    assert latencies(found)[MINE] == verdict and exit_code(found) == code


def test_a_base_that_this_bench_cannot_measure_is_a_line():
    with pytest.raises(
        NotComparable,
        match="a side's kernels can't be measured by this bench: ImportError: no op",
    ):
        Comparison(FakePairs({}, RuntimeError("ImportError: no op")), "", "smoke", {})


def test_every_pair_is_stored():
    found, pairs = compared({MINE: wobbling(0.1)}, plans())
    assert (
        len(found.ratios[LATENCY][MINE])
        == len(found.ratios[LATENCY][CONTROL])
        == len(pairs.asked)
    )
