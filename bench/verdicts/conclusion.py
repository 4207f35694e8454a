"""What a comparison of two revisions comes to as a whole: its exit code, its first
words and its JUnit follow from it.

Only CLEAN is a pass. What has the same code on both sides, is new or is missing was not
compared: it can't make a session clean in which nothing that was compared has a
verdict.
"""

from __future__ import annotations

from batchline.bench.store.regressions import (
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    MISSING,
    NEW,
    REGRESSED,
    UNCONFIRMED,
    Regression,
)

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
