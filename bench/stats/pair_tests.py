"""One-sided t tests of many cases at once: each row of a table is a case, each column a
pair, NaN where there is none.

The t test and not a rank test: with five pairs a rank test can't give a p below 1/32,
which no family survives.
"""

from __future__ import annotations

import bisect
import functools
import math
from dataclasses import dataclass

import numpy as np
from scipy.special import nctdtr, ndtr, ndtri, stdtr, stdtrit

POWER = 0.8
EXACT = 1e-12  # of a logarithm: what rounding leaves of equal ratios
_MOST_PAIRS_NEEDED = 1000


@dataclass(frozen=True)
class Moments:
    """Of each row: how many ratios it has, their mean, and their standard deviation (n
    - 1; 0 from fewer than two).
    """

    count: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    @property
    def standard_error(self) -> np.ndarray:
        return self.spread / np.sqrt(np.maximum(self.count, 1))

    def chance_above(self, bound: np.ndarray | float) -> np.ndarray:
        """p of each row's mean being over `bound` by luck: 1 from fewer than two
        ratios.
        """
        return self._chance(self.mean - bound)

    def chance_below(self, bound: np.ndarray | float) -> np.ndarray:
        """p of each row's mean being under `bound` by luck."""
        return self._chance(bound - self.mean)

    def interval(self, confidence: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Both ends of each row's t interval; infinite from fewer than two ratios."""
        margin = np.full(len(self.mean), math.inf)
        known = self.count > 1
        margin[known] = (
            stdtrit(self.count[known] - 1, (1 + confidence) / 2)
            * self.standard_error[known]
        )
        return self.mean - margin, self.mean + margin

    def _chance(self, distance: np.ndarray) -> np.ndarray:
        """Ratios without any spread are known exactly: over the bound or not."""
        distance = np.where(np.abs(distance) < EXACT, 0.0, distance)
        with np.errstate(divide="ignore", invalid="ignore"):
            t = distance / self.standard_error
        t = np.where(np.isnan(t) | (self.count < 2), -math.inf, t)
        return stdtr(np.maximum(self.count - 1, 1), -t)


def moments(table: np.ndarray) -> Moments:
    there = ~np.isnan(table)
    count = there.sum(axis=1)
    filled = np.where(there, table, 0.0)
    mean = filled.sum(axis=1) / np.maximum(count, 1)
    squares = np.where(there, (filled - mean[:, None]) ** 2, 0.0).sum(axis=1)
    return Moments(count, mean, np.sqrt(squares / np.maximum(count - 1, 1)))


@functools.lru_cache(maxsize=None)
def reach(pairs: int, level: float) -> float:
    """How far over its bound a mean must be, in standard deviations of a pair, to be
    seen at `level` with POWER.
    """
    from scipy.optimize import brentq

    critical = float(stdtrit(pairs - 1, 1 - level))
    noncentrality = brentq(
        lambda shift: nctdtr(pairs - 1, shift, critical) - (1 - POWER),
        0,
        3 * critical + 10,
    )
    return noncentrality / math.sqrt(pairs)


def pairs_to_show(
    distance: float, spread: float, level: float, far: float = math.inf
) -> int | None:
    """How many pairs show a mean that is `distance` from its bound, and `far` from
    another, at `level` with POWER.

    Guenther's approximation (Sample size formulas for normal theory t tests, The
    American Statistician 35, 1981); with two bounds the runs that miss either are
    added. None where it is more than a thousand, or the distance is nothing.
    """
    if distance <= 0:
        return None
    critical = float(ndtri(1 - level))

    def suffices(pairs: int) -> bool:
        root = math.sqrt(max(pairs - critical**2 / 2, 0)) / max(spread, EXACT)
        return (
            ndtr(distance * root - critical) + ndtr(far * root - critical) - 1 >= POWER
        )

    pairs = 2 + bisect.bisect_left(range(2, _MOST_PAIRS_NEEDED + 1), True, key=suffices)
    return pairs if pairs <= _MOST_PAIRS_NEEDED else None
