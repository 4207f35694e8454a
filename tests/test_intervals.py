"""Intervals and the estimates that have one: they cover as often as they say, and from
them follow the verdicts on claims.
"""

import json
import math
import statistics

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from scipy.stats import binom, quantile_test

from batchline.bench.noise.claims.verdict import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_DECIDED,
    ONLY_WHERE,
    Finding,
    conclude,
    decide,
)
from batchline.bench.stats import intervals
from batchline.bench.stats.intervals import (
    LEAST_SAMPLES,
    Estimate,
    Interval,
    Means,
    Quantiles,
    around,
    fieller,
    median_precision,
    skewed,
    student_t,
)

NUMBERS = st.floats(-100, 100)
SPREADS = st.floats(0.01, 50)
QUANTILES = st.builds(Quantiles, st.floats(-5, -0.5), st.floats(0.5, 5))


@given(NUMBERS, SPREADS, st.floats(0.5, 1000), st.floats(0.5, 0.999))
def test_of_a_mean_it_is_scipys(mean, spread, degrees, confidence):
    found = around(mean, spread**2, student_t(confidence, degrees))
    assert (found.low, found.high) == pytest.approx(
        stats.t.interval(confidence, degrees, mean, spread), rel=1e-6
    )


@given(
    st.floats(0.01, 20),
    st.floats(0.01, 20),
    SPREADS,
    SPREADS,
    st.floats(-1, 1),
    QUANTILES,
    st.floats(0, 1000),
)
def test_a_ratio_is_in_it_exactly_where_the_two_means_do_not_refute_it(
    top_over, bottom_over, top_sd, bottom_sd, correlation, quantiles, ratio
):
    """Of a top that is surely above 0, and a bottom that is not surely below it."""
    top = (top_over + max(-quantiles.low, quantiles.high)) * top_sd
    bottom = (bottom_over - quantiles.high) * bottom_sd
    means = Means(
        top, bottom, top_sd**2, correlation * top_sd * bottom_sd, bottom_sd**2
    )
    found = fieller(means, quantiles)
    assert 0 <= found.low <= found.high
    error = math.sqrt(
        max(top_sd**2 - 2 * ratio * means.covariance + ratio**2 * bottom_sd**2, 0)
    )
    inside = [
        top - ratio * bottom - quantiles.low * error,
        quantiles.high * error - top + ratio * bottom,
    ]
    assume(
        min(map(abs, inside)) > 1e-6 * (top + ratio * abs(bottom))
    )  # not on an edge itself
    assert (ratio in found) == (min(inside) > 0)


@given(st.floats(0.01, 100), st.floats(0.01, 100), QUANTILES)
def test_it_is_bounded_exactly_where_the_bottom_is_surely_above_0(
    bottom, sd, quantiles
):
    assume(abs(bottom + quantiles.low * sd) > 1e-9 * bottom)
    assert fieller(Means(5.0, bottom, 0.01, 0.0, sd**2), quantiles).bounded == (
        bottom > -quantiles.low * sd
    )


T20 = student_t(0.95, 20)


def test_without_noise_in_the_bottom_it_is_the_interval_of_the_top_over_it():
    quantiles = Quantiles(-1.0, 3.0)
    found, expected = fieller(Means(8.0, 2.0, 0.25, 0.0, 0.0), quantiles), around(
        4.0, 0.25 / 4, quantiles
    )
    assert (
        (found.low, found.high)
        == pytest.approx((expected.low, expected.high))
        == (3.25, 4.25)
    )


@pytest.mark.parametrize(
    "means, expected",
    [
        ((0.0, 4.0, 0.0, 0.0, 0.0), (0, 0)),  # every sample the same
        ((-1e-17, 4.0, 0.0, 0.0, 0.0), (0, 0)),  # and rounded
        ((0.0, 0.0, 0.0, 0.0, 0.0), (0, math.inf)),  # every gradient 0
        (
            (5.0, 0.0, 0.0, 0.0, 0.0),
            (0, math.inf),
        ),  # a bottom of exactly 0 has no variance: nothing is said
        ((0.1, 5.0, 1.0, 0.0, 0.01), (0, None)),  # cut at 0
        ((5.0, -5.0, 0.01, 0.0, 0.01), (0, math.inf)),  # surely negative
        (
            (5.0, -0.1, 0.01, 0.0, 1.0),
            (None, math.inf),
        ),  # negative, maybe by chance: still at least so much
        ((0.1, 0.1, 1.0, 0.0, 1.0), (0, math.inf)),
    ],
)
def test_at_the_corners(means, expected):
    found = fieller(Means(*means), T20)
    low, high = expected
    assert found.low == low if low is not None else found.low > 0
    assert found.high == high if high is not None else 0 < found.high < math.inf


def test_a_low_end_beyond_a_negative_bottom_by_hand():
    """R²·(0.01 − 4t²) + R + 25 = 0 for top 5 ± 0 and bottom −0.1 ± 2."""
    root = np.roots([0.01 - 4 * T20.high**2, 1.0, 25.0]).max()
    assert fieller(Means(5.0, -0.1, 0.0, 0.0, 4.0), T20).low == pytest.approx(root)


@given(st.floats(-2, 2), st.floats(0.5, 0.99), st.floats(2, 200))
def test_skewness_is_taken_out_by_halls_transformation(k, confidence, degrees):
    plain = student_t(confidence, degrees)
    found = skewed(plain, k)
    for quantile, t in ((plain.low, found.low), (plain.high, found.high)):
        assert t + k * t**2 / 3 + k**2 * t**3 / 27 + k / 6 == pytest.approx(
            quantile, rel=1e-6, abs=1e-6
        )
    assert skewed(plain, 0.0) == plain


def test_of_skewed_values_it_brings_the_coverage_nearer_to_what_is_claimed():
    """The mean of 30 exponentials: of 4,000 nominal 95% intervals 1.2% more cover, give
    or take 0.4%.
    """
    values = np.random.default_rng(0).exponential(size=(4000, 30))
    plain, covered = student_t(0.95, 29), np.zeros(2)
    for mean, variance, skewness in zip(
        values.mean(1), values.var(1, ddof=1) / 30, stats.skew(values, 1) / 30**0.5
    ):
        covered += [
            1.0 in around(mean, variance, quantiles)
            for quantiles in (plain, skewed(plain, skewness))
        ]
    without, corrected = covered / 4000
    assert without + 0.005 < corrected < 0.95


@pytest.mark.parametrize("ends", [(1.5, 2.5), (0.0, math.inf), (-math.inf, math.inf)])
def test_it_survives_json(ends):
    interval = Interval(*ends)
    stored = json.loads(json.dumps(interval.to_json(), allow_nan=False))
    assert Interval.from_json(stored) == interval
    assert interval.bounded == all(map(math.isfinite, ends))


@pytest.mark.parametrize("confidence", [0, 1, 95, math.nan])
def test_a_confidence_is_a_probability(confidence):
    with pytest.raises(ValueError, match="between 0 and 1"):
        student_t(confidence, 5)


def test_the_interval_of_a_mean_covers():
    random = np.random.default_rng(1)
    found = [intervals.mean(random.normal(3, 2, 5).tolist()) for _ in range(2000)]
    assert sum(
        effect.low <= 3 <= effect.high for effect in found
    ) / 2000 == pytest.approx(
        0.95, abs=0.02
    )  # 4 σ


def test_one_value_has_no_interval():
    assert intervals.mean([3.0]) == Estimate.of(3.0, -math.inf, math.inf)
    assert intervals.mean([3.0]).text() == "3 (no interval)"


def test_what_a_seeds_points_share_does_not_widen_a_slope():
    curves_ = {x: {seed: 2 * x + 100 * seed for seed in range(5)} for x in range(4)}
    found = intervals.slope_by_seed(curves_)
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert intervals.slope_by_seed({1.0: {0: 1.0}, 2.0: {1: 1.0}}) is None


def test_a_paired_ratio_is_of_the_seeds_that_both_have():
    found = intervals.paired_ratio({0: 1.0, 1: 10.0, 2: 5.0}, {0: 3.0, 1: 30.0, 7: 1.0})
    assert (found.value, found.low, found.high) == pytest.approx((3, 3, 3))
    assert intervals.paired_ratio({0: 1.0}, {1: 1.0}) is None


def test_the_slope_of_a_line_and_its_interval_cover():
    random, x = np.random.default_rng(2), list(range(8))
    found = [
        intervals.slope(x, [5 * place + random.normal() for place in x])
        for _ in range(1000)
    ]
    assert sum(
        effect.low <= 5 <= effect.high for effect in found
    ) / 1000 == pytest.approx(0.95, abs=0.028)
    assert intervals.slope([1, 2], [1, 3]) == Estimate.of(2, -math.inf, math.inf)
    with pytest.raises(ValueError, match="two different x"):
        intervals.slope([1, 1], [1, 3])


def test_the_ratio_of_medians_covers():
    random, hits = np.random.default_rng(3), 0
    for draw in range(200):
        first, second = (
            scale * np.exp(random.normal(0, 0.1, 15)) for scale in (1.0, 2.0)
        )
        effect = intervals.median_ratio(first.tolist(), second.tolist(), seed=draw)
        hits += effect.low <= 2 <= effect.high
    assert 180 <= hits <= 199  # 190 ± 3.2 σ


@pytest.mark.parametrize(
    "count, low, high", [(0, 0, 0.5218), (5, 0.4782, 1), (1, 0.0051, 0.7164)]
)
def test_a_share_has_the_exact_interval(count, low, high):
    found = intervals.share(count, 5)
    assert (found.value, found.low, found.high) == pytest.approx(
        (count / 5, low, high), abs=1e-4
    )


@pytest.mark.parametrize(
    "counts",
    [(5, 5, 0, 5), (0, 10, 3, 10), (2, 10, 8, 10), (0, 5, 0, 5), (3, 7, 9, 11)],
)
def test_fishers_test_is_scipys(counts):
    count, of, other, other_of = counts
    table = [[count, of - count], [other, other_of - other]]
    assert intervals.fisher_exact(*counts) == pytest.approx(
        float(stats.fisher_exact(table).pvalue)
    )


@pytest.mark.parametrize(
    "low, high, expected, verdict",
    [
        (0.2, 0.9, 1, HOLDS),
        (0.2, 0.9, -1, DOES_NOT_HOLD),
        (-0.9, -0.2, 1, DOES_NOT_HOLD),
        (-0.9, -0.2, -1, HOLDS),
        (-0.05, 0.08, 1, DOES_NOT_HOLD),
        (0.01, 0.08, 1, DOES_NOT_HOLD),
        (-0.05, 0.2, 1, NOT_DECIDED),
        (0.05, 0.2, 1, HOLDS),
        (-math.inf, math.inf, 1, NOT_DECIDED),
    ],
)
def test_an_interval_decides(low, high, expected, verdict):
    assert (
        decide(
            Estimate.of((low + high) / 2 if math.isfinite(low) else 0, low, high),
            expected,
            0.1,
        )
        == verdict
    )


@pytest.mark.parametrize(
    "parts, words",
    [
        ([HOLDS, HOLDS], "HOLDS"),
        ([DOES_NOT_HOLD, DOES_NOT_HOLD], "DOES NOT HOLD"),
        ([HOLDS, DOES_NOT_HOLD], "HOLDS ONLY WHERE part 0"),
        ([ONLY_WHERE, ONLY_WHERE], "HOLDS ONLY WHERE part 0: B < 0; part 1: B < 1"),
        ([HOLDS, NOT_DECIDED], "NOT DECIDED: B < 1"),
        ([DOES_NOT_HOLD, NOT_DECIDED], "NOT DECIDED: B < 1"),
        ([HOLDS, DOES_NOT_HOLD, NOT_DECIDED], "HOLDS ONLY WHERE part 0"),
        ([], "NOT DECIDED: nothing was measured"),
    ],
)
def test_a_claim_follows_from_its_parts(parts, words):
    findings = [
        Finding(
            f"part {place}",
            verdict,
            f"effect {place}",
            f"B < {place}" if verdict in (ONLY_WHERE, NOT_DECIDED) else "",
        )
        for place, verdict in enumerate(parts)
    ]
    assert conclude("c", "h", findings, [], ["s"]).text == words


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
