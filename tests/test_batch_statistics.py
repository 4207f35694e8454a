"""The three tests of a batch against their definitions, sample by sample."""

import math

import numpy as np
import pytest

from batchline.bench.stats.noise_scale import (
    BatchStatistics,
    BatchTest,
    inner_product_test,
    norm_test,
    orthogonality_test,
)

TESTS = (norm_test, inner_product_test, orthogonality_test)


def _gradients(batch, parameters=7, seed=0):
    return np.random.default_rng(seed).normal(size=(batch, parameters)) + 0.7


def _statistics(g):
    mean = g.mean(0)
    return BatchStatistics(mean @ mean, np.square(g).sum(1), g @ mean)


@pytest.mark.parametrize("batch", [2, 3, 40])
def test_each_is_a_variance_of_the_mean_gradient_over_its_square(batch):
    g = _gradients(batch)
    mean = g.mean(0)
    square = mean @ mean
    along = g @ mean
    across = g - np.outer(along / square, mean)
    assert norm_test(_statistics(g)).value == pytest.approx(
        g.var(0, ddof=1).sum() / batch / square
    )
    assert inner_product_test(_statistics(g)).value == pytest.approx(
        along.var(ddof=1) / batch / square**2
    )
    assert orthogonality_test(_statistics(g)).value == pytest.approx(
        np.square(across).sum() / (batch - 1) / batch / square
    )


def test_the_norm_test_is_the_other_two_together():
    norm, inner, orthogonal = (
        test(_statistics(_gradients(20))).value for test in TESTS
    )
    assert norm == pytest.approx(inner + orthogonal)


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test.__name__)
def test_the_batch_that_it_asks_for_is_the_one_at_which_it_just_passes(test):
    """Samples repeated k times have the same M, n̄ and d̄², and so the value of k times
    the batch, but for Bessel's.
    """
    g, repeats = _gradients(50), 30
    found = test(_statistics(g))
    more = test(_statistics(np.tile(g, (repeats, 1))))
    assert more.value == pytest.approx(found.value / repeats * 49 / 50 * 1500 / 1499)
    theta = math.sqrt(found.value / 3)
    assert not found.passes(theta) and found.asks_for(theta) == pytest.approx(150)
    assert found.passes(math.sqrt(found.value)) and found.asks_for(
        math.sqrt(found.value)
    ) == pytest.approx(50)


def test_identical_samples_pass_whatever_is_asked():
    same = _statistics(np.ones((4, 3)))
    for test in TESTS:
        found = test(same)
        assert found.value == 0 and found.passes(1e-6) and found.asks_for(0.5) == 0


def test_without_a_mean_gradient_no_batch_is_large_enough():
    opposite = _statistics(np.array([[1.0, 2.0], [-1.0, -2.0]]))
    for test in TESTS:
        found = test(opposite)
        assert found.value == math.inf == found.asks_for(10) and not found.passes(10)


@pytest.mark.parametrize("theta", [0, -1, math.nan])
def test_a_threshold_is_above_0(theta):
    with pytest.raises(ValueError, match="above 0"):
        BatchTest("norm", 1.0, 8).passes(theta)
