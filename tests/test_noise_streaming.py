"""A stream of micro-batches: the same as all at once where they are equal, and unbiased
and right where they aren't.
"""

import math

import numpy as np
import pytest

from batchline.bench.stats.batch_statistics import BatchStatistics
from batchline.bench.stats.noise_scale import (
    NoiseScale,
    Stream,
    noise_scale,
    over_batches,
)
from batchline.bench.stats.intervals import around, skewed, student_t

PARAMETERS = 30


def _micro_batch(random, batch, signal=0.5):
    g = signal + random.normal(size=(batch, PARAMETERS))
    mean = g.mean(0)
    return BatchStatistics(mean @ mean, np.square(g).sum(1), g @ mean)


def _stream(batches, seed, signal=0.5):
    random, stream = np.random.default_rng(seed), Stream()
    for batch in batches:
        stream.add(_micro_batch(random, batch, signal))
    return stream


def _ends(estimate):
    return [
        end
        for interval in (estimate.trace, estimate.square, estimate.simple)
        for end in (interval.low, interval.high)
    ]


def test_of_equal_micro_batches_it_is_what_all_at_once_gives():
    random, stream = np.random.default_rng(0), Stream()
    statistics = [_micro_batch(random, 8) for _ in range(12)]
    for each in statistics:
        stream.add(each)
    scales = [noise_scale(each.mean_square, each.squared_norms) for each in statistics]
    streamed, at_once = stream.estimate(), over_batches(scales, 8)
    assert _ends(streamed) == pytest.approx(_ends(at_once), rel=1e-9)
    assert (streamed.scale.trace, streamed.scale.square) == pytest.approx(
        (at_once.scale.trace, at_once.scale.square)
    )
    assert (streamed.answer, streamed.batch, streamed.batches, len(stream)) == (
        at_once.answer,
        8,
        12,
        12,
    )


def test_the_weights_of_unequal_ones_are_their_samples_and_the_moments_are_those_of_a_weighted_mean():
    pairs, batches = np.array([[3.0, 1.0], [5.0, 2.0], [9.0, 0.5]]), np.array([8, 8, 4])
    stream = Stream()
    for (trace, square), batch in zip(pairs, batches):
        stream.add_scale(NoiseScale(trace, square), int(batch))
    weights = batches / batches.sum()
    mean = weights @ pairs
    deviations = weights[:, None] * (pairs - mean)
    variance = np.square(deviations).sum(0) / (1 - np.square(weights).sum())
    skewness = (deviations**3).sum(0) / np.square(deviations).sum(0) ** 1.5
    found, plain = stream.estimate(), student_t(0.95, 1 / np.square(weights).sum() - 1)
    assert (found.scale.trace, found.scale.square) == pytest.approx(tuple(mean))
    for interval, *moments, k in zip(
        (found.trace, found.square), mean, variance, skewness
    ):
        expected = around(*moments, skewed(plain, k))
        assert (interval.low, interval.high) == pytest.approx(
            (expected.low, expected.high)
        )


def test_it_is_accurate_where_the_spread_is_a_billionth_of_the_mean():
    stream, trace = Stream(), 1e9 + np.array([0.0, 1.0, 2.0, 3.0])
    for value in trace:
        stream.add_scale(NoiseScale(value, 1.0), 16)
    found = stream.estimate().trace
    assert (found.high - found.low) / 2 == pytest.approx(
        3.182446 * math.sqrt(5 / 3 / 4), rel=1e-5
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_over_unequal_micro_batches_cover(seed):
    """Micro-batches of 16 with every fourth of 6. Of 400 intervals at 95%, 366 to 393
    cover: 99.9% binomial bounds.
    """
    truth = PARAMETERS / (PARAMETERS * 0.25)
    estimates = [
        _stream([16, 16, 16, 6] * 5, seed=1000 * seed + draw).estimate()
        for draw in range(400)
    ]
    assert all(estimate.simple.bounded for estimate in estimates)
    assert 366 <= sum(truth in estimate.simple for estimate in estimates) <= 393
    assert 366 <= sum(PARAMETERS in estimate.trace for estimate in estimates) <= 393


@pytest.mark.parametrize("batches", [[], [8], [100, 8], [1000, 2]])
def test_what_is_as_good_as_one_micro_batch_has_no_interval(batches):
    with pytest.raises(ValueError, match="two or more of about one size"):
        _stream(batches, 0).estimate()


@pytest.mark.parametrize(
    "scale, batch, words",
    [
        (NoiseScale(1.0, 1.0), 1, "two samples or more"),
        (NoiseScale(math.nan, 1.0), 8, "NaN or infinite"),
        (NoiseScale(1.0, math.inf), 8, "NaN or infinite"),
    ],
)
def test_a_micro_batch_that_says_nothing_is_refused_and_the_stream_is_as_it_was(
    scale, batch, words
):
    stream, untouched = _stream([8, 8, 8], 0), _stream([8, 8, 8], 0)
    with pytest.raises(ValueError, match=words):
        stream.add_scale(scale, batch)
    assert _ends(stream.estimate()) == _ends(untouched.estimate())
