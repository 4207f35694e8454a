"""A survey read back: seeds are put together, and the advice follows the noise."""

import math

import pytest

from batchline.bench.noise import advisor
from tests.noise_evidence import noise, point, workload

DIGITS = noise()["workloads"]["digits"]


def test_the_points_of_all_seeds_are_put_together_in_the_order_of_training():
    found = advisor.moments(DIGITS)
    assert [moment.updates for moment in found] == [0, 50, 400]
    for moment, simple in zip(found, (10, 40, 160)):
        assert moment.estimate.batches == 16 and set(moment.by_seed) == {0, 1}
        assert moment.estimate.scale.simple == pytest.approx(simple, rel=0.1)
        assert simple in moment.estimate.simple
        assert {batch: len(cosines) for batch, cosines in moment.cosines.items()} == {
            16: 4,
            64: 4,
            256: 4,
        }
    pairs = [pair for seed in (0, 1) for pair in found[0].by_seed[seed].pairs]
    assert found[0].estimate.scale.trace == pytest.approx(
        sum(trace for trace, _ in pairs) / 16
    )


def test_the_advice_is_the_closed_form_for_each_points_noise():
    for moment in advisor.moments(DIGITS):
        found = advisor.advice(DIGITS, moment)
        assert found.current_batch == 32
        best = math.sqrt(1e-3 * moment.estimate.scale.simple / 1e-5)
        assert found.best_batch == pytest.approx(best, abs=1)
    assert (
        advisor.advice(DIGITS, advisor.middle(DIGITS), current_batch=8).current_batch
        == 8
    )


def test_the_middle_point_is_the_one_that_is_advised_for():
    assert advisor.middle(DIGITS).updates == 50
    assert advisor.middle(workload([point(7, 0, 5.0)])).updates == 7


def test_a_cost_cap_is_handed_on():
    middle = advisor.middle(DIGITS)
    capped = advisor.advice(DIGITS, middle, cost_cap=1.5)
    assert (
        capped.best_batch <= 0.5 * middle.estimate.scale.simple
        and capped.decided_by == "cost"
    )
