"""The rule of the gate: which cases changed from base to head by more than noise, and
which need more pairs first.

Each case has one natural logarithm of head over base from each pair of processes. After
5, 10 and 20 pairs it is tested against its floor (one-sided t), under
Benjamini-Hochberg over all cases (Controlling the false discovery rate, JRSS B 57,
1995). A case that this flags is confirmed, or not, by the next pairs alone. Whatever
was decided stays so: later ratios of a case do not change its verdict, so a stored
history replays to the same one.

UNCONFIRMED is a case that was left open with its 90% interval wholly above its floor:
the pairs ended before a verdict, or 20 pairs flagged it and the last ten did not
confirm it. It is no regression, and no session with one passes. A case that 20 pairs
did not flag was decided as one of its family, and is INCONCLUSIVE wherever its own
interval lies.

A case's floor is the change that counts as noise: what nothing can be blamed for,
however often it is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from batchline.bench.stats.pair_tests import (
    EXACT,
    Moments,
    moments,
    pairs_to_show,
    reach,
)
from batchline.bench.store.regressions import (
    ACCURACY,
    EQUIVALENT,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    LATENCY,
    MEMORY,
    QUANTITIES,
    REGRESSED,
    UNCONFIRMED,
)

STAGES = (5, 10, 20)  # pairs, from the first on
LEVELS = (
    0.01,
    0.015,
    0.025,
)  # the error of each stage: .05 in all, most of it where the t test is sharpest
LAST_PAIR = 30  # what is flagged at 20 is confirmed by 21 to 30
CONFIRMING_LEVEL = 0.05  # of the new pairs alone
_VOID_LEVEL = 0.01  # of the controls, once
LEAST_PAIRS = STAGES[0]
LOOKS = (*zip(STAGES, LEVELS), (LAST_PAIR, 0.0))
_OUTSIDE = 0.05  # on either side of the interval: two one-sided tests at this level make EQUIVALENT

Ratios = Mapping[str, Sequence[float | None]]


@dataclass(frozen=True)
class Judgement:
    """One case by the rule. `effect`, `low`, `high` (its 90% interval) and `floor` are
    shares: +0.05 is 5% more.

    They are of the `pairs` that it was decided by, or of all where it was not; None
    from fewer than five. `least_detectable` is the least change that so many pairs,
    with this spread, flag in four of five runs; `pairs_needed` how many pairs would
    flag this effect or find it EQUIVALENT in four of five, None where it has a verdict
    or a thousand would not do. `decided`: more pairs would change nothing. `flagged`:
    over the floor or under it by the family's test; confirmed if it is decided too,
    else waiting for new pairs.
    """

    verdict: str
    effect: float | None
    low: float | None
    high: float | None
    floor: float
    pairs: int
    least_detectable: float | None
    pairs_needed: int | None
    decided: bool
    flagged: bool


def decide(ratios: Ratios, floors: Mapping[str, Floor]) -> dict[str, Judgement]:
    """Each case's verdict from its whole history: natural logarithms of head over base,
    by pair, from the first.

    A pair that failed is None; a look uses what the case has of the pairs up to it. The
    family is all the cases given, the ones decided or without enough pairs too, so that
    it does not change from stage to stage. Every case that is not decided must have
    been in every pair so far, as in a session; one that is decided may end there.

    Raises:
        ValueError: if a ratio or a floor is not finite, or a case has no floor.
    """
    replay = Replay(ratios, floors)
    for number in range(len(LOOKS)):
        replay.look(number)
    return replay.judgements()


def tabulate(ratios: Ratios) -> tuple[np.ndarray, np.ndarray]:
    """Cases × pairs, NaN where a case lacks a pair, and how many pairs each case was in
    (failed ones too).
    """
    reached = np.array([len(row) for row in ratios.values()], int)
    table = np.full((len(ratios), max([LAST_PAIR, *reached])), np.nan)
    for (name, row), into in zip(ratios.items(), table):
        if any(value is not None and not math.isfinite(value) for value in row):
            raise ValueError(
                f"{name} has a ratio that is no number: its pairs can't be judged"
            )
        into[: len(row)] = row
    return table, reached


def bounds(
    floors: Mapping[str, Floor], names: Sequence[str] | Ratios
) -> tuple[np.ndarray, np.ndarray]:
    """The logarithms over which a case regressed and under which it improved: log(1 ±
    floor).
    """
    if missing := [name for name in names if name not in floors]:
        raise ValueError(
            f"no floor for {missing[0]}: give each case one (batchline.bench.verdicts.gate.floor)"
        )
    shares = np.array([floors[name].share for name in names])
    if not (np.isfinite(shares) & (shares >= 0)).all():
        raise ValueError(
            "a floor is negative or no number: batchline.bench.verdicts.gate.floor makes them"
        )
    with np.errstate(divide="ignore"):
        return np.log1p(shares), np.log1p(
            -np.minimum(shares, 1.0)
        )  # a fall of more than all of it there is none


def rejected(chances: np.ndarray, level: float) -> np.ndarray:
    """Which of a family's p-values Benjamini-Hochberg rejects at `level`; none at level
    0.
    """
    from scipy.stats import false_discovery_control

    if not (
        (chances <= level) & (level > 0)
    ).any():  # nor would it then, and most looks end here
        return np.full(len(chances), False)
    return false_discovery_control(chances) <= level


def confirmed(
    new: Moments,
    pairs: int,
    direction: np.ndarray,
    above: np.ndarray,
    below: np.ndarray,
) -> np.ndarray:
    """Which rows are confirmed by their new pairs alone, in the `direction` (+1 or -1)
    that flagged them; at least half of the pairs must be there.
    """
    chance = np.where(direction > 0, new.chance_above(above), new.chance_below(below))
    return (direction != 0) & (2 * new.count >= pairs) & (chance <= CONFIRMING_LEVEL)


def why_void(controls: Ratios, floors: Mapping[str, Floor]) -> str | None:
    """Why a session counts for nothing, or None: a case of identical code that is
    beyond its floor.

    `controls` are the ratios of such cases, a family of their own. They are looked at
    once, over all their pairs: what goes wrong late counts as much as what goes wrong
    at first.
    """
    if not controls:
        return None
    sums = moments(tabulate(controls)[0])
    above, below = bounds(floors, controls)
    chances = np.minimum(sums.chance_above(above), sums.chance_below(below))
    alarms = np.flatnonzero(
        rejected(np.where(sums.count >= LEAST_PAIRS, chances, 1.0), _VOID_LEVEL)
    )
    if not len(alarms):
        return None
    worst = max(alarms, key=lambda row: abs(sums.mean[row]))
    others = f" (and {len(alarms) - 1} more)" if len(alarms) > 1 else ""
    return (
        f"{list(controls)[worst]}{others} is the same code on both sides and was found "
        f"{math.expm1(sums.mean[worst]):+.1%} over {sums.count[worst]} pairs: this machine can't tell a change "
        "from noise now"
    )


class Replay:
    """The looks of a session one after another, over all its cases at once: an array
    has one entry per case, in order.
    """

    def __init__(self, ratios: Ratios, floors: Mapping[str, Floor]):
        self.table, self.reached = tabulate(ratios)
        self.above, self.below = bounds(floors, ratios)
        self.floors = {name: floors[name] for name in ratios}
        cases = len(self.table)
        self.open = np.full(cases, True)
        self.direction = np.zeros(
            cases, int
        )  # +1, -1: flagged as over or under its floor
        self.equivalent = np.full(cases, False)
        self.used = self.reached.copy()  # pairs: what closed it, or all
        self.over, self.under = np.ones(cases), np.ones(
            cases
        )  # each case's p at its last look

    def look(self, number: int) -> None:
        pairs, level = LOOKS[number]
        before = LOOKS[number - 1][0] if number else 0
        here = self.open & (self.reached >= pairs)
        if not here.any():
            return
        firm = here & confirmed(
            moments(self.table[:, before:pairs]),
            pairs - before,
            self.direction,
            self.above,
            self.below,
        )
        self._close(firm, pairs)
        looked = here & ~firm
        sums = moments(self.table[:, :pairs])
        looked &= sums.count >= LEAST_PAIRS
        self.direction[looked] = 0
        self.over = np.where(looked, sums.chance_above(self.above), self.over)
        self.under = np.where(looked, sums.chance_below(self.below), self.under)
        self.direction[looked & rejected(self.over, level)] = 1
        self.direction[looked & rejected(self.under, level)] = -1
        low, high = sums.interval(1 - 2 * _OUTSIDE)
        self.equivalent = self.equivalent | looked & (low >= self.below - EXACT) & (
            high <= self.above + EXACT
        )
        last = pairs >= STAGES[-1]
        self._close(
            looked & self.equivalent | here & last & (self.direction == 0), pairs
        )

    def _close(self, cases: np.ndarray, pairs: int) -> None:
        self.open = self.open & ~cases
        self.used = np.where(cases, pairs, self.used)

    @property
    def changed(self) -> np.ndarray:
        """+1 where a case is found to have regressed, -1 improved, else 0."""
        return np.where(self.open, 0, self.direction)

    @property
    def settled(self) -> np.ndarray:
        """Where a case has a verdict of its own."""
        return self.equivalent | (self.changed != 0)

    def so_far(self) -> Moments:
        """Of the pairs that each case was decided by, or of all where it was not."""
        return moments(
            np.where(
                np.arange(self.table.shape[1]) < self.used[:, None], self.table, np.nan
            )
        )

    def judgements(self) -> dict[str, Judgement]:
        sums = self.so_far()
        figures = zip(
            sums.count.tolist(),
            sums.mean.tolist(),
            sums.spread.tolist(),
            *(end.tolist() for end in sums.interval(1 - 2 * _OUTSIDE)),
        )
        return {
            name: self._judgement(row, self.floors[name], *of_one)
            for row, (name, of_one) in enumerate(zip(self.floors, figures))
        }

    def _judgement(
        self,
        row: int,
        floor: Floor,
        pairs: int,
        mean: float,
        spread: float,
        low: float,
        high: float,
    ) -> Judgement:
        decided = not self.open[row]
        if pairs < LEAST_PAIRS:
            return Judgement(
                verdict=INVALID,
                effect=None,
                low=None,
                high=None,
                floor=floor.share,
                pairs=pairs,
                least_detectable=None,
                pairs_needed=LEAST_PAIRS,
                decided=decided,
                flagged=False,
            )
        verdict = self._verdict(row, low)
        level = self._level_of_one(pairs)
        above = float(self.above[row])
        below = float(self.below[row])
        needed = None
        if verdict in (INCONCLUSIVE, UNCONFIRMED):
            needed = _pairs_needed(mean, spread, above, below, level)
        return Judgement(
            verdict=verdict,
            effect=math.expm1(mean),
            low=math.expm1(low),
            high=math.expm1(high),
            floor=floor.share,
            pairs=pairs,
            least_detectable=math.expm1(above + reach(pairs, level) * spread),
            pairs_needed=needed,
            decided=decided,
            flagged=bool(self.direction[row]),
        )

    def _verdict(self, row: int, low: float) -> str:
        """Of a case with enough pairs; `low` is the lower end of its interval, as a
        logarithm.
        """
        if self.equivalent[row]:
            return EQUIVALENT
        if self.changed[row]:
            return REGRESSED if self.changed[row] > 0 else IMPROVED
        left_open = self.open[row] or self.used[row] == LAST_PAIR
        return (
            UNCONFIRMED if left_open and low > self.above[row] + EXACT else INCONCLUSIVE
        )

    def _level_of_one(self, pairs: int) -> float:
        """What a case's p must be under if no other case changed, at the stage that so
        many pairs are at.
        """
        level = next(
            (level for stage, level in zip(STAGES, LEVELS) if pairs <= stage),
            LEVELS[-1],
        )
        return level / len(self.table)


def _pairs_needed(
    mean: float, spread: float, above: float, below: float, level: float
) -> int | None:
    """To be flagged where the mean is outside the floor, to be EQUIVALENT where it is
    inside: in four of five runs.
    """
    outside = max(mean - above, below - mean)
    if outside > 0:
        return pairs_to_show(outside, spread, level)
    return pairs_to_show(
        -outside, spread, _OUTSIDE, far=max(above - mean, mean - below)
    )


_LEAST_SHARE = {LATENCY: 0.01, MEMORY: 0.01, ACCURACY: 0.1}
_LEAST_STEP = {
    LATENCY: (1e-6, "1 µs"),
    MEMORY: (2**16, "64 KiB"),
    ACCURACY: (0.01, "1% of the tolerance"),
}


@dataclass(frozen=True)
class Floor:
    """`share` is the largest change, of the base's value, that counts as noise;
    `source` says where it comes from.
    """

    share: float
    source: str


def floor(quantity: str, median: float, noise_share: float | None = None) -> Floor:
    """The largest of three: the quantity's least share, this case's A/A, and an
    absolute step over its median.

    `median` is the base's in the quantity's unit: seconds, bytes, or the error against
    fp64 as a share of the tolerance. `noise_share` is the 99th percentile of this
    case's A/A changes on this machine, None if not known.

    Raises:
        ValueError: if the quantity is not known, the median is not positive, the noise
            is negative, or one is not finite.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"no floor for {quantity!r}: one of {', '.join(QUANTITIES)}")
    if not 0 < median < math.inf or not (
        noise_share is None or 0 <= noise_share < math.inf
    ):
        raise ValueError(
            f"the {quantity} floor needs a positive median and no negative noise: {median}, {noise_share}"
        )
    step, in_words = _LEAST_STEP[quantity]
    candidates = [
        Floor(_LEAST_SHARE[quantity], "least"),
        Floor(step / median, in_words),
    ]
    if noise_share is not None:
        candidates.append(Floor(noise_share, "A/A"))
    return max(candidates, key=lambda one: one.share)
