"""The score test of one batch, against its formulas in plain lines and on known noise."""

import math

import numpy as np
import pytest

from batchline.bench.stats.score_interval import Moments, ScoreTest, cautious


def _moments(g):
    mean = g.mean(0)
    return Moments.of(float(mean @ mean), np.square(g).sum(1), g @ mean)


def _gradients(batch=40, signal=0.5, parameters=20, seed=0):
    return signal + np.random.default_rng(seed).normal(size=(batch, parameters))


def test_the_moments_are_those_of_the_mean_of_the_others():
    g = _gradients(12)
    unit = np.square(g).sum(1).mean()
    others = [np.delete(g, sample, 0).mean(0) for sample in range(12)]
    h = np.array([one @ other for one, other in zip(g, others)]) / unit
    found = _moments(g)
    assert found.square == pytest.approx(h.mean())
    assert found.of_h == pytest.approx(h.var(ddof=1) * (11 / 10) ** 2)
    lengths = np.mean([other @ other for other in others]) / unit
    assert found.along == pytest.approx(found.of_h / lengths)


@pytest.mark.parametrize("signal", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("batch", [16, 200])
def test_the_interval_is_what_a_fine_grid_of_shares_does_not_refute(signal, batch):
    test = ScoreTest.at(0.95, _moments(_gradients(batch, signal)))
    found = test.interval()
    held = [
        share
        for share in np.linspace(0, 1, 2001)
        if max(test.excess(share, test.too_low), test.excess(share, test.too_high)) <= 0
    ]
    assert found.low == pytest.approx(held[0], abs=1e-3)
    assert found.high == pytest.approx(held[-1], abs=1e-3)


def test_a_signal_of_zero_is_refuted_as_seldom_as_is_claimed():
    """At 2%: of 500 draws, 21 are past 1 in 1,000. Nearly none is more than barely refuted."""
    random = np.random.default_rng(0)
    tests = [
        ScoreTest.at(0.95, _moments(random.normal(size=(32, 40)))) for _ in range(500)
    ]
    refuted = [test for test in tests if test.excess(0.0, test.too_high) > 0]
    assert len(refuted) <= 21
    assert sum(not test.barely() for test in refuted) <= 5


def test_it_is_of_what_the_unit_of_the_gradients_is_not():
    g = _gradients()
    small, large = (
        ScoreTest.at(0.95, _moments(g * unit)).interval() for unit in (1e-20, 1e20)
    )
    assert tuple(small) == pytest.approx(tuple(large), rel=1e-6)


def test_where_nothing_varies_only_what_is_there_is_held():
    test = ScoreTest.at(0.95, _moments(np.ones((20, 3))))
    assert tuple(test.interval()) == pytest.approx((1.0, 1.0), abs=1e-6)
    assert math.isinf(test.statistic(0.5, test.too_high)[0])


def test_the_high_end_spends_less_than_its_half():
    assert cautious(0.95) == pytest.approx(0.96) and cautious(0.9) == pytest.approx(
        0.92
    )
