"""Pairs until each case has its verdict: who goes on, for how long, and what ends a
session early.
"""

import pytest

from batchline.bench.measure.worker.task import Outcome
from batchline.bench.regress import pairs as staged
from batchline.bench.regress.pairs import Entry, Family
from batchline.bench.statuses import CRASHED
from batchline.bench.store.regressions import (
    EQUIVALENT,
    INCONCLUSIVE,
    LATENCY,
    REGRESSED,
)
from batchline.bench.verdicts.paired import Evidence
from tests.fake_pairs import FakePairs, wobbling

SAME, SLOWER, NOISY, CONTROL = (
    f"bmm/{name}/tiny_16/float32/B1" for name in ("same", "slower", "noisy", "control")
)


def family(*cases, controls=False):
    return Family(
        Evidence(cases), {case: Entry(case, case) for case in cases}, controls
    )


def latencies(one):
    return {
        row.id: row.verdict for row in one.evidence.judged() if row.quantity == LATENCY
    }


def test_whoever_is_decided_is_not_measured_again_and_controls_always_are():
    pairs = FakePairs(
        {
            SAME: wobbling(0),
            SLOWER: wobbling(0.2),
            NOISY: wobbling(0.01, by=0.2),
            CONTROL: wobbling(0),
        }
    )
    subjects, controls = family(SAME, SLOWER, NOISY), family(CONTROL, controls=True)
    assert staged.measure_in_stages(pairs, [subjects, controls]) == (20, "")
    assert pairs.asked[:5] == [[SAME, SLOWER, NOISY, CONTROL]] * 5
    assert pairs.asked[5:10] == [[SLOWER, NOISY, CONTROL]] * 5
    assert pairs.asked[10:] == [[NOISY, CONTROL]] * 10
    assert latencies(subjects) == {
        SAME: EQUIVALENT,
        SLOWER: REGRESSED,
        NOISY: INCONCLUSIVE,
    }
    assert len(controls.evidence.ratios[LATENCY][CONTROL]) == 20


def test_controls_alone_are_not_worth_a_pair():
    pairs = FakePairs({})
    assert staged.measure_in_stages(
        pairs, [family(), family(CONTROL, controls=True)]
    ) == (0, "")
    assert not pairs.asked


def test_no_pair_is_begun_that_would_end_after_the_time():
    clock = iter(range(0, 1000, 10))
    pairs = FakePairs({NOISY: wobbling(0.01, by=0.2)})
    counted, why = staged.measure_in_stages(
        pairs, [family(NOISY)], until_s=75, now=lambda: next(clock)
    )
    assert 1 < counted < 7 and why == f"the time was up after {counted} pairs"


def test_ctrl_c_keeps_the_pairs_that_there_are():
    ends = {3: KeyboardInterrupt()}
    pairs = FakePairs({NOISY: lambda number: ends.get(number, 1.0)})
    one = family(NOISY)
    assert staged.measure_in_stages(pairs, [one]) == (3, staged.INTERRUPTED)
    assert len(one.evidence.ratios[LATENCY][NOISY]) == 3


def test_a_case_that_breaks_costs_the_others_nothing():
    pairs = FakePairs(
        {SLOWER: lambda number: Outcome(CRASHED, "SIGSEGV"), SAME: wobbling(0)}
    )
    one = family(SLOWER, SAME)
    assert staged.measure_in_stages(pairs, [one]) == (5, "")
    assert latencies(one) == {SLOWER: REGRESSED, SAME: EQUIVALENT}


def test_autotuned_configurations_are_pinned_while_it_lasts(monkeypatch):
    monkeypatch.delenv("TRITON_CACHE_AUTOTUNING", raising=False)
    with pytest.raises(KeyError), staged.compile_once():
        assert staged.os.environ["TRITON_CACHE_AUTOTUNING"] == "1"
        raise KeyError
    assert "TRITON_CACHE_AUTOTUNING" not in staged.os.environ
