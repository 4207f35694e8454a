"""What the pairs of a session gave of a family of cases, the verdicts that follow, and what
the comparison of two revisions comes to as a whole.

The exit code, the first line and the JUnit report follow from the conclusion. Only
CLEAN is a pass. What has the same code on both sides, is new or is missing was not
compared: it can't make a session clean in which nothing that was compared has a
verdict.

Each kernel also has one verdict over its batch sizes: neighbours that changed too
little alone lend each other strength. The verdicts of single cases (bench.verdicts.gate)
stand. What they leave open is pooled over stretches of neighbouring batch sizes: in
each pair the mean of the stretch's ratios, tested against the mean of its floors at the
same looks, at the same levels, and confirmed by the next pairs alone. Bonferroni, over
all stretches of the kernel and all kernels, and not Benjamini-Hochberg: every stretch
that is called is then right at once, so the narrowest say where the change is
(P. Fryzlewicz, Narrowest significance pursuit, JASA 119, 2024). A stretch counts only
where each of its cases is by itself over its floor on the same side, and the single
verdict of none is out yet: no equal or opposite case is inside.

`describe_parts` puts such a verdict into a line: "slower for B ≤ 16 (+7.2%), equal
above".
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from batchline.bench.stats.pair_tests import moments
from batchline.bench.statuses import parse_case_id
from batchline.bench.store.regressions import (
    ACCURACY,
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    LATENCY,
    MEMORY,
    MISSING,
    NEW,
    QUANTITIES,
    REGRESSED,
    UNCONFIRMED,
    Judged,
    OverBatches,
    Regression,
)
from batchline.bench.verdicts import gate
from batchline.bench.verdicts.gate import (
    LEAST_PAIRS,
    LOOKS,
    Floor,
    Ratios,
    Replay,
    confirmed,
    floor,
)

_KERNEL = ("op", "variant", "scenario", "dtype")
_CHANGED = {
    LATENCY: ("slower", "faster"),
    MEMORY: ("more memory", "less memory"),
    ACCURACY: ("less accurate", "more accurate"),
}
_UNCHANGED = {EQUIVALENT: "equal", INCONCLUSIVE: "undecided", INVALID: "not judged"}
BASE = "base"
HEAD = "head"
BOTH = "both"
_NO_MEDIAN = 1e30  # where there is none yet: the floor is the least share
_MOST_FAILURES = 2  # of one case; more are not an accident
VOID = "void"  # a control changed, and no verdict counts
SLOWER = "slower"  # or larger, or less accurate: a case or a kernel REGRESSED
LEFT_OPEN = "left open"  # a case is UNCONFIRMED
NOTHING = "nothing"  # nothing that was compared has a verdict
INCOMPLETE = "incomplete"  # a case could not be judged
CLEAN = "clean"
WORST_FIRST = (
    REGRESSED,
    INVALID,
    UNCONFIRMED,
    MISSING,
    INCONCLUSIVE,
    IMPROVED,
    NEW,
    EQUIVALENT,
    IDENTICAL,
)
_NOT_COMPARED = {IDENTICAL, NEW, MISSING}
_WITHOUT_VERDICT = {INVALID, INCONCLUSIVE}


def over_batches(
    ratios: Ratios, floors: Mapping[str, Floor], quantity: str = LATENCY
) -> tuple[OverBatches, ...]:
    """A verdict for each op, variant, scenario and dtype with two batch sizes or more,
    from the whole history.

    `ratios` and `floors` are as in bench.verdicts.gate.decide, of one quantity: all its
    cases, which are the family. A part's "effect" is the mean change of its cases, as a
    share; None where none of them could be judged.

    Raises:
        ValueError: if a ratio or a floor is not finite, a case has no floor, or a name
        is no case id.
    """
    replay, stretches = _replayed(ratios, floors)
    means = replay.so_far().mean
    verdicts = _verdicts(replay, stretches)
    told = []
    for kernel, rows in stretches.kernels.items():
        own = [verdicts[row] for row in rows.values()]
        parts = _parts(list(rows), own, [means[row] for row in rows.values()])
        told.append(
            OverBatches(
                *kernel,
                quantity,
                _verdict(set(own)),
                describe_parts(parts, Counter(own), quantity),
                parts,
            )
        )
    return tuple(told)


def wants_more(ratios: Ratios, floors: Mapping[str, Floor]) -> frozenset[str]:
    """The cases whose next pairs have to confirm a stretch, decided or not by
    themselves.
    """
    _, stretches = _replayed(ratios, floors)
    names = list(ratios)
    return frozenset(
        names[row]
        for stretch, waits in zip(stretches.rows, stretches.direction != 0)
        if waits
        for row in stretch
    )


def _replayed(ratios: Ratios, floors: Mapping[str, Floor]) -> tuple[Replay, _Stretches]:
    replay = Replay(ratios, floors)
    stretches = _Stretches(_kernels(ratios), replay)
    for number in range(len(LOOKS)):
        replay.look(number)
        stretches.look(number)
    return replay, stretches


def _kernels(names: Ratios) -> dict[tuple[str, ...], dict[int, int]]:
    """Kernel → batch size → row, of the kernels with several batch sizes, which are in
    order.
    """
    kernels: dict[tuple[str, ...], dict[int, int]] = {}
    for row, name in enumerate(names):
        parts = parse_case_id(name)
        kernels.setdefault(tuple(parts[part] for part in _KERNEL), {})[
            parts["batch"]
        ] = row
    return {
        kernel: dict(sorted(rows.items()))
        for kernel, rows in kernels.items()
        if len(rows) > 1
    }


class _Stretches:
    """All stretches of two and more neighbouring batch sizes; the narrow ones of a
    kernel before the wide ones.
    """

    def __init__(
        self, kernels: Mapping[tuple[str, ...], Mapping[int, int]], replay: Replay
    ):
        self.kernels = kernels
        self.replay = replay
        self.order = np.array(
            [row for rows in kernels.values() for row in rows.values()], int
        )
        starts = []
        sizes = []
        tests = []
        offset = 0
        for batches in map(len, kernels.values()):
            own = [
                (offset + first, wide)
                for wide in range(2, batches + 1)
                for first in range(batches - wide + 1)
            ]
            starts += [start for start, _ in own]
            sizes += [wide for _, wide in own]
            tests += [len(own) * len(kernels)] * len(own)
            offset += batches
        self.starts, self.size, self.tests = (
            np.array(column, int) for column in (starts, sizes, tests)
        )
        self.rows = [
            self.order[start : start + size] for start, size in zip(starts, sizes)
        ]
        self.table, self.above, self.below = (
            np.array([values[rows].mean(axis=0) for rows in self.rows]).reshape(
                len(self.rows), *values.shape[1:]
            )
            for values in (replay.table, replay.above, replay.below)
        )
        self.direction = np.zeros(
            len(self.rows), int
        )  # +1, -1: flagged, and waiting for new pairs
        self.claimed = np.zeros(
            len(replay.table), int
        )  # +1, -1: a case in a stretch that was found to have changed

    def look(self, number: int) -> None:
        pairs, level = LOOKS[number]
        before = LOOKS[number - 1][0] if number else 0
        reached = self._all(self.replay.reached >= pairs)
        if not reached.any():
            return
        here = reached & self._all(~self.replay.settled)
        side = self._side(pairs)
        firm = (
            here
            & (side == self.direction)
            & confirmed(
                moments(self.table[:, before:pairs]),
                pairs - before,
                self.direction,
                self.above,
                self.below,
            )
        )
        for stretch in np.flatnonzero(firm):
            self.claimed[self.rows[stretch]] = self.direction[stretch]
        sums = moments(self.table[:, :pairs])
        chance = np.where(
            side > 0, sums.chance_above(self.above), sums.chance_below(self.below)
        )
        flagged = (
            here
            & self._all(self.claimed == 0)
            & (sums.count >= LEAST_PAIRS)
            & (chance * self.tests < level)
        )
        self.direction = np.where(
            reached, np.where(self._narrowest(flagged), side, 0), self.direction
        )

    def _side(self, pairs: int) -> np.ndarray:
        """+1 of the stretches all of whose cases are by themselves over their floors,
        -1 under them, else 0.
        """
        means = moments(self.replay.table[:, :pairs]).mean
        over = self._all(means > self.replay.above)
        under = self._all(means < self.replay.below)
        return over.astype(int) - under.astype(int)

    def _narrowest(self, flagged: np.ndarray) -> np.ndarray:
        """The flagged stretches that have no other flagged one inside."""
        kept = np.full(len(flagged), False)
        stops = self.starts + self.size
        for stretch in np.flatnonzero(flagged):
            kept[stretch] = not (
                kept & (self.starts >= self.starts[stretch]) & (stops <= stops[stretch])
            ).any()
        return kept

    def _all(self, cases: np.ndarray) -> np.ndarray:
        """The stretches all of whose cases are among these."""
        among = np.concatenate([[0], np.cumsum(cases[self.order])])
        return among[self.starts + self.size] - among[self.starts] == self.size


def _verdicts(replay: Replay, stretches: _Stretches) -> list[str]:
    """Of each case, as its kernel's verdict counts it."""
    changed = np.where(replay.settled, replay.changed, stretches.claimed)
    counts = replay.so_far().count
    return [
        _verdict_of_case(way, equal, pairs)
        for way, equal, pairs in zip(changed, replay.equivalent, counts)
    ]


def _verdict_of_case(way: int, equal: bool, pairs: int) -> str:
    """`way` is +1 where it got worse, -1 where it got better, else 0."""
    if way:
        return REGRESSED if way > 0 else IMPROVED
    if equal:
        return EQUIVALENT
    return INCONCLUSIVE if pairs >= LEAST_PAIRS else INVALID


def _verdict(own: set[str]) -> str:
    """Of the verdicts of its cases."""
    for verdict in (REGRESSED, IMPROVED):
        if verdict in own:
            return verdict
    return next(iter(own)) if len(own) == 1 else INCONCLUSIVE


def _parts(
    batches: Sequence[int], verdicts: Sequence[str], means: Sequence[float]
) -> tuple[dict, ...]:
    """Runs of one verdict; `means` are of logarithms."""
    parts = []
    for verdict, run in itertools.groupby(
        range(len(batches)), key=verdicts.__getitem__
    ):
        places = list(run)
        effect = (
            None
            if verdict == INVALID
            else math.expm1(np.mean([means[place] for place in places]))
        )
        parts.append(
            {
                "first": batches[places[0]],
                "last": batches[places[-1]],
                "verdict": verdict,
                "effect": effect,
            }
        )
    return tuple(parts)


def describe_parts(
    parts: Sequence[Mapping], counts: Mapping[str, int], quantity: str = LATENCY
) -> str:
    """`parts` are as in OverBatches, all of a kernel; `counts` is how many batch sizes
    have each verdict.

    Each stretch that changed comes first; of the rest, where it is scattered, only the
    counts.
    """
    changed = [part for part in parts if part["verdict"] not in _UNCHANGED]
    rest = [part for part in parts if part["verdict"] in _UNCHANGED]
    if len(parts) == 2 and rest:
        last = rest[-1]
        side = "above" if last is parts[1] else "below"
        return f"{_describe_part((changed + rest)[0], parts, quantity)}, {_UNCHANGED[last['verdict']]} {side}"
    return ", ".join(
        [
            *(_describe_part(part, parts, quantity) for part in changed),
            *_describe_rest(rest, parts, counts, quantity),
        ]
    )


def _describe_rest(
    rest: Sequence[Mapping],
    parts: Sequence[Mapping],
    counts: Mapping[str, int],
    quantity: str,
) -> Iterator[str]:
    verdicts = [
        verdict
        for verdict in _UNCHANGED
        if any(part["verdict"] == verdict for part in rest)
    ]
    elsewhere = len(rest) < len(parts)
    if elsewhere and len(verdicts) == 1:
        yield f"{_UNCHANGED[verdicts[0]]} elsewhere"
    elif len(rest) == len(verdicts):
        yield from (_describe_part(part, parts, quantity) for part in rest)
    else:
        said = [f"{_UNCHANGED[verdict]} at {counts[verdict]}" for verdict in verdicts]
        yield f"{'elsewhere ' * elsewhere}{', '.join(said)} of {sum(counts.values())} batch sizes"


def _describe_part(part: Mapping, parts: Sequence[Mapping], quantity: str) -> str:
    if part["verdict"] in _UNCHANGED:
        return f"{_UNCHANGED[part['verdict']]} {_where(part, parts)}"
    what = dict(zip((REGRESSED, IMPROVED), _CHANGED[quantity]))[part["verdict"]]
    return f"{what} {_where(part, parts)} ({part['effect']:+.1%})"


def _where(part: Mapping, parts: Sequence[Mapping]) -> str:
    if len(parts) == 1:
        return "at every B"
    if part["first"] == part["last"]:
        return f"at B = {part['first']}"
    if part is parts[0]:
        return f"for B ≤ {part['last']}"
    return (
        f"for B ≥ {part['first']}"
        if part is parts[-1]
        else f"for {part['first']} ≤ B ≤ {part['last']}"
    )


class Evidence:
    """Cases that are judged together, one family of tests per quantity, and what each
    pair gave of each.

    `noise` has the A/A change of a case's latency on this machine, as a share, where it
    is known.
    """

    def __init__(self, cases: Iterable[str], noise: Mapping[str, float] | None = None):
        self.cases = tuple(cases)
        self._noise = noise or {}
        self.ratios: dict[str, dict[str, list[float | None]]] = {
            quantity: {} for quantity in QUANTITIES
        }
        self._values: dict[str, dict[str, list[tuple[float, float]]]] = {
            quantity: {} for quantity in QUANTITIES
        }
        self._failures: dict[str, list[tuple[str, str]]] = {
            case: [] for case in self.cases
        }
        self._ended: dict[str, tuple[str, str]] = {}
        self.ratios[LATENCY] = {case: [] for case in self.cases}

    def add(self, case: str, figures: Mapping[str, tuple[float, float, float]]) -> None:
        """One pair's figures of a case, by quantity: base's, head's, and the natural
        logarithm of head over base.
        """
        for quantity, (base, head, ratio) in figures.items():
            self.ratios[quantity].setdefault(case, []).append(ratio)
            self._values[quantity].setdefault(case, []).append((base, head))

    def add_failure(self, case: str, side: str, reason: str) -> None:
        """A pair without figures of a case: the side that has none (BASE, HEAD or
        BOTH), and why.
        """
        for ratios in self.ratios.values():
            if case in ratios:
                ratios[case].append(None)
        self._failures[case].append((side, reason))
        if len(self._failures[case]) > _MOST_FAILURES:
            sides = {side for side, _ in self._failures[case]}
            self.end(case, sides.pop() if len(sides) == 1 else BOTH, reason)

    def end(self, case: str, side: str, reason: str) -> None:
        """Take a case out of the comparison, because one side of it or both don't work."""
        self._ended[case] = side, reason

    def open(self) -> tuple[str, ...]:
        """The cases of which more pairs may tell more."""
        undecided: set[str] = set()
        for quantity in QUANTITIES:
            ratios = self.ratios[quantity]
            floors = self._floors(quantity)
            undecided.update(
                case
                for case, one in gate.decide(ratios, floors).items()
                if not one.decided
            )
            undecided.update(wants_more(ratios, floors))
        return tuple(
            case for case in self.cases if case in undecided and case not in self._ended
        )

    def judged(self) -> tuple[Judged, ...]:
        """A row for each case in each quantity that it has, in the order of the cases."""
        by_quantity = {
            quantity: gate.decide(self.ratios[quantity], self._floors(quantity))
            for quantity in QUANTITIES
        }
        rows = []
        for case in self.cases:
            if case in self._ended:
                rows.append(self._broken(case))
            else:
                rows += [
                    self._row(case, quantity, judgements[case])
                    for quantity, judgements in by_quantity.items()
                    if case in judgements
                ]
        return tuple(rows)

    def over_batches(self) -> tuple[OverBatches, ...]:
        """A verdict for each variant on a scenario over its batch sizes, by quantity."""
        return tuple(
            verdict
            for quantity in QUANTITIES
            for verdict in over_batches(
                self.ratios[quantity], self._floors(quantity), quantity
            )
        )

    def why_void(self) -> str | None:
        """Of controls: why their session counts for nothing, or None."""
        return gate.why_void(self.ratios[LATENCY], self._floors(LATENCY))

    def _row(self, case: str, quantity: str, one: gate.Judgement) -> Judged:
        values = self._values[quantity].get(case, [])
        base, head = (
            (statistics.median(side) for side in zip(*values))
            if values
            else (None, None)
        )
        reason = ""
        if one.verdict == INVALID:
            failed = [reason for _, reason in self._failures[case]]
            reason = (
                failed[-1]
                if failed
                else f"{one.pairs} pairs are too few: it takes {gate.LEAST_PAIRS}"
            )
        return Judged(
            case,
            quantity,
            one.verdict,
            reason,
            base,
            head,
            one.effect,
            one.low,
            one.high,
            one.floor,
            self._floors(quantity)[case].source,
            one.pairs,
            one.least_detectable,
            one.pairs_needed,
        )

    def _broken(self, case: str) -> Judged:
        side, reason = self._ended[case]
        verdict = {BASE: IMPROVED, HEAD: REGRESSED, BOTH: INVALID}[side]
        said = {
            BASE: "works now; the base",
            HEAD: "the base works; head",
            BOTH: "on both sides",
        }[side]
        return Judged(case, LATENCY, verdict, f"{said}: {reason}")

    def _floors(self, quantity: str) -> dict[str, Floor]:
        """By the median of the first pairs alone, so that no later one changes what was
        decided.
        """
        noise = self._noise if quantity == LATENCY else {}
        return {
            case: floor(quantity, self._first_median(quantity, case), noise.get(case))
            for case in self.ratios[quantity]
        }

    def _first_median(self, quantity: str, case: str) -> float:
        values = self._values[quantity].get(case, [])[: gate.LEAST_PAIRS]
        return statistics.median(base for base, _ in values) if values else _NO_MEDIAN


def conclude(regression: Regression) -> str:
    """The worst that is true of the comparison, in the order of the constants above."""
    if regression.void is not None:
        return VOID
    verdicts = {row.verdict for row in (*regression.cases, *regression.kernels)}
    if REGRESSED in verdicts:
        return SLOWER
    if UNCONFIRMED in verdicts:
        return LEFT_OPEN
    if _judged_nothing(set(worst_of_case(regression).values())):
        return NOTHING
    return INCOMPLETE if INVALID in verdicts else CLEAN


def worst_of_case(regression: Regression) -> dict[str, str]:
    """Case id → the worst verdict of its quantities, in the order of the cases."""
    worst: dict[str, str] = {}
    for case in regression.cases:
        worst[case.id] = min(
            worst.get(case.id, case.verdict), case.verdict, key=WORST_FIRST.index
        )
    return worst


def _judged_nothing(verdicts: set[str]) -> bool:
    compared = verdicts - _NOT_COMPARED
    return compared <= _WITHOUT_VERDICT if compared else not verdicts & {IDENTICAL, NEW}
