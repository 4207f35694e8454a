"""How well a median is known: its distribution-free interval, from the order
statistics.
"""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

LEAST_SAMPLES = 6  # the least of which the smallest and the largest hold the median with 95% confidence (1 - 2/2⁶)


def precision(samples: Sequence[float], confidence: float = 0.95) -> float:
    """Half the width of the median's interval, as a share of the median; infinite where
    the samples are too few, or 0.

    The interval's ends are the k-th smallest and the k-th largest sample, with k the
    largest for which the binomial probability that they miss the median is at most 1 -
    `confidence` (Hahn and Meeker, Statistical Intervals, §5.2). It takes the samples
    for independent: in a machine that drifts it is too narrow.
    """
    rank = _rank(len(samples), confidence)
    if not rank:
        return math.inf
    ordered = sorted(samples)
    half_width, median = (ordered[-rank] - ordered[rank - 1]) / 2, statistics.median(
        ordered
    )
    return half_width / median if median else math.inf


@functools.lru_cache(maxsize=4096)
def _rank(count: int, confidence: float) -> int:
    """The largest k with P(Binomial(count, 1/2) < k) ≤ (1 - confidence)/2; 0 if there
    is none. In whole numbers.
    """
    part, whole = ((1 - confidence) / 2).as_integer_ratio()
    most, ways, below, rank = (
        part << count,
        1,
        1,
        0,
    )  # of the 2^count outcomes, `below` have at most `rank` successes
    while below * whole <= most:
        rank += 1
        ways = ways * (count - rank + 1) // rank
        below += ways
    return rank
