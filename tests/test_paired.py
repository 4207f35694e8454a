"""What pairs gave of a case, and its rows: each quantity, failures on a side, floors
that do not move.
"""

import math

import pytest

from batchline.bench.store.regressions import (
    ACCURACY,
    EQUIVALENT,
    IMPROVED,
    INVALID,
    LATENCY,
    MEMORY,
    QUANTITIES,
    REGRESSED,
)
from batchline.bench.verdicts.paired import BASE, BOTH, HEAD, Evidence

CASE, OTHER = "bmm/a/tiny_16/float32/B1", "bmm/a/tiny_16/float32/B3"


def figures(slower=0.0, larger=1.0, worse=1.0, base_s=1e-3):
    return {
        LATENCY: (base_s, base_s * (1 + slower), math.log1p(slower)),
        MEMORY: (2.0**20, larger * 2.0**20, math.log(larger)),
        ACCURACY: (0.1, 0.1 * worse, math.log(worse)),
    }


def with_pairs(count, **changes):
    evidence = Evidence([CASE])
    for number in range(count):
        evidence.add(CASE, figures(**{"slower": 0.001 * (-1) ** number, **changes}))
    return evidence


def verdicts(evidence):
    return {(row.id, row.quantity): row.verdict for row in evidence.judged()}


def test_nothing_measured_is_open_and_invalid():
    evidence = Evidence([CASE])
    assert evidence.open() == (CASE,)
    (row,) = evidence.judged()
    assert (row.verdict, row.quantity, row.reason) == (
        INVALID,
        LATENCY,
        "0 pairs are too few: it takes 5",
    )


def test_what_does_not_change_is_equal_in_each_quantity_after_five_pairs():
    assert with_pairs(4).open() == (CASE,)
    evidence = with_pairs(5)
    assert evidence.open() == ()
    assert verdicts(evidence) == {
        (CASE, quantity): EQUIVALENT for quantity in QUANTITIES
    }


@pytest.mark.parametrize(
    "quantity, change",
    [(LATENCY, {"slower": 0.2}), (MEMORY, {"larger": 1.5}), (ACCURACY, {"worse": 1.5})],
)
def test_each_quantity_is_gated_alike(quantity, change):
    evidence = Evidence([CASE])
    for number in range(10):  # flagged by five, confirmed by five more
        assert evidence.open() == (CASE,)
        evidence.add(CASE, figures(**change))
    assert evidence.open() == ()
    assert verdicts(evidence) == {
        (CASE, name): REGRESSED if name == quantity else EQUIVALENT
        for name in QUANTITIES
    }


def test_a_row_has_both_sides_medians_and_where_its_floor_comes_from():
    evidence = Evidence([CASE], {CASE: 0.04})
    for number in range(5):
        evidence.add(CASE, figures(0.001 * number, base_s=2e-3))
    row = evidence.judged()[0]
    assert row.base == 2e-3 and row.head == pytest.approx(2e-3 * 1.002)
    assert (row.floor, row.floor_from, row.pairs) == (0.04, "A/A", 5)


def test_a_quantity_that_a_variant_does_not_have_is_no_row():
    evidence = Evidence([CASE])
    for _ in range(5):
        evidence.add(CASE, {LATENCY: figures()[LATENCY]})
    assert verdicts(evidence) == {(CASE, LATENCY): EQUIVALENT}


@pytest.mark.parametrize(
    "side, verdict, words",
    [
        (HEAD, REGRESSED, "the base works; head: wrong: 3 elements"),
        (BASE, IMPROVED, "works now; the base: wrong: 3 elements"),
        (BOTH, INVALID, "on both sides: wrong: 3 elements"),
    ],
)
def test_a_case_that_does_not_work_on_a_side_has_its_verdict(side, verdict, words):
    evidence = Evidence([CASE, OTHER])
    evidence.end(CASE, side, "wrong: 3 elements")
    assert evidence.open() == (OTHER,)
    row = evidence.judged()[0]
    assert (row.id, row.verdict, row.reason) == (CASE, verdict, words)


def test_two_failed_pairs_are_accidents_and_the_third_ends_the_case():
    evidence = with_pairs(3)
    evidence.add_failure(CASE, HEAD, "crashed: signal")
    evidence.add_failure(CASE, HEAD, "crashed: signal")
    assert evidence.open() == (CASE,)
    evidence.add_failure(CASE, HEAD, "crashed: signal")
    assert evidence.open() == () and verdicts(evidence) == {(CASE, LATENCY): REGRESSED}
    evidence = with_pairs(3)
    for side in (HEAD, BASE, HEAD):
        evidence.add_failure(CASE, side, "hung: 8 s")
    assert verdicts(evidence) == {(CASE, LATENCY): INVALID}


def test_a_failed_pair_keeps_the_quantities_in_step():
    evidence = with_pairs(2)
    evidence.add_failure(CASE, BOTH, "throttled")
    assert [len(evidence.ratios[quantity][CASE]) for quantity in QUANTITIES] == [
        3,
        3,
        3,
    ]
    assert evidence.ratios[LATENCY][CASE][-1] is None


def test_the_floor_is_of_the_first_pairs_whatever_comes_later():
    evidence = with_pairs(5, base_s=2e-6)  # a step of a microsecond: 50%
    floor = evidence.judged()[0].floor
    for _ in range(10):
        evidence.add(CASE, figures(base_s=1e-3))
    assert evidence.judged()[0].floor == floor == pytest.approx(0.5)


def test_a_kernel_has_a_verdict_over_its_batch_sizes_in_each_quantity():
    evidence = Evidence([CASE, OTHER])
    for number in range(10):
        evidence.add(CASE, figures(0.2))
        evidence.add(OTHER, figures(0.001 * (-1) ** number))
    by_quantity = {one.quantity: one for one in evidence.over_batches()}
    assert (
        by_quantity[LATENCY].verdict == REGRESSED
        and by_quantity[MEMORY].verdict == EQUIVALENT
    )
    assert "slower" in by_quantity[LATENCY].words
