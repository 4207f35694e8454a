"""A median's interval: it holds the true median as often as it says, and is what
scipy's own test gives.
"""

import math
import statistics

import numpy as np
import pytest
from scipy.stats import binom, quantile_test

from batchline.bench.stats.intervals import LEAST_SAMPLES, median_precision


def _interval(samples):
    """The k-th smallest and k-th largest sample whose distance `precision` reports."""
    ordered, half_share = sorted(samples), median_precision(samples)
    reach = [
        (ordered[-k] - ordered[k - 1]) / 2 / statistics.median(ordered)
        for k in range(1, len(ordered) // 2 + 1)
    ]
    rank = min(range(len(reach)), key=lambda index: abs(reach[index] - half_share))
    assert reach[rank] == pytest.approx(half_share)
    return ordered[rank], ordered[-rank - 1]


@pytest.mark.parametrize("count", [6, 20, 101])
@pytest.mark.parametrize(
    "draw, true_median",
    [
        (lambda random, shape: random.lognormal(0.5, 1.0, shape), math.exp(0.5)),
        (lambda random, shape: random.exponential(1.0, shape) + 3, math.log(2) + 3),
    ],
    ids=["lognormal", "exponential"],
)
def test_the_interval_holds_the_true_median_as_often_as_it_says(
    count, draw, true_median
):
    sets = draw(np.random.default_rng(3), (3000, count)).tolist()
    held = sum(low <= true_median <= high for low, high in map(_interval, sets)) / len(
        sets
    )
    assert held == pytest.approx(
        0.955, abs=0.02
    )  # the least that ranks can give is at 0.95 or above


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("count", [6, 7, 20, 50, 101, 400])
def test_it_is_the_interval_of_scipys_quantile_test(count, confidence):
    samples = np.random.default_rng(count).lognormal(size=count)
    interval = quantile_test(
        samples, q=float(np.median(samples)), p=0.5
    ).confidence_interval(confidence)
    expected = (interval.high - interval.low) / 2 / np.median(samples)
    found = median_precision(samples.tolist(), confidence)
    assert (
        found == pytest.approx(expected)
        if math.isfinite(expected)
        else found == math.inf
    )


@pytest.mark.parametrize("count", range(6, 61))
def test_it_is_the_narrowest_that_misses_seldom_enough(count):
    samples = range(1, count + 1)
    width = 2 * median_precision(samples) * statistics.median(samples)
    rank = round(
        (count + 1 - width) / 2
    )  # from the rank-th to the (count + 1 - rank)-th
    assert 2 * binom.cdf(rank - 1, count, 0.5) <= 0.05 < 2 * binom.cdf(rank, count, 0.5)


@pytest.mark.parametrize("count", range(6))
def test_under_the_least_samples_nothing_is_known(count):
    assert LEAST_SAMPLES == 6 and median_precision([1.0] * count) == math.inf


def test_the_fewest_need_the_smallest_and_the_largest():
    assert median_precision([8.0, 9.0, 10.0, 10.0, 11.0, 14.0]) == pytest.approx(
        (14 - 8) / 2 / 10
    )


def test_more_confidence_asks_for_more_samples():
    assert (
        median_precision([1.0] * 7, confidence=0.99) == math.inf
        and median_precision([1.0] * 8, confidence=0.99) == 0
    )


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 7.0])
def test_it_is_a_share_whatever_the_unit_and_the_order(factor):
    samples = np.random.default_rng(1).lognormal(size=33).tolist()
    assert median_precision(
        [factor * sample for sample in reversed(samples)]
    ) == pytest.approx(median_precision(samples))


def test_a_spike_does_not_widen_it():
    samples = [1 + 0.001 * index for index in range(100)]
    assert median_precision([*samples[:-3], 50.0, 60.0, 70.0]) == median_precision(
        samples
    )
