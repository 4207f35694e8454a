"""What the pairs of a session gave of a family of cases, the verdicts that follow, and
what the comparison of two revisions comes to as a whole.

The exit code, the first line and the JUnit report follow from the conclusion. Only
CLEAN is a pass. What has the same code on both sides, is new or is missing was not
compared: it can't make a session clean in which nothing that was compared has a
verdict.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping

from batchline.bench.store.regressions import (
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    LATENCY,
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
from batchline.bench.verdicts.gate import Floor, floor
from batchline.bench.verdicts.over_batches import over_batches, wants_more

BASE = "base"
HEAD = "head"
BOTH = "both"
_NO_MEDIAN = 1e30  # where there is none yet: the floor is the least share
_MOST_FAILURES = 2  # of one case; more are not an accident


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
