"""The claims' intervals cover, and from intervals follow verdicts."""

import math

import numpy as np
import pytest
from scipy import stats

from batchline.bench.stats import intervals
from batchline.bench.stats.intervals import Estimate
from batchline.bench.noise.claims.verdict import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_DECIDED,
    ONLY_WHERE,
    Finding,
    conclude,
    decide,
)


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
