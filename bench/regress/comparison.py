"""One comparison of two revisions, from their two plans to the verdicts."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace

from batchline.bench.measure.worker.isolation import WorkerLost
from batchline.bench.statuses import MEASURED
from batchline.bench.regress import staged
from batchline.bench.regress.matched import match, union
from batchline.bench.regress.pairs import BASE_SIDE, HEAD_SIDE, Entry, Pairs, failure
from batchline.bench.regress.staged import Family
from batchline.bench.store.regressions import (
    IDENTICAL,
    INVALID,
    LATENCY,
    QUANTITIES,
    Judged,
    Regression,
)
from batchline.bench.selection import selected
from batchline.bench.verdicts.paired import Evidence


class NotComparable(Exception):
    """Why the two revisions can't be compared at all, in a line."""


class Comparison:
    """One comparison from the two plans to the verdicts."""

    def __init__(
        self, pairs: Pairs, selection: str, profile: str, noise: Mapping[str, float]
    ):
        try:
            base, head = pairs.plans()
        except (RuntimeError, WorkerLost) as error:
            raise NotComparable(
                f"a side's kernels can't be measured by this bench: {error}"
            ) from error
        self._pairs = pairs
        chosen = selected(
            union(list(base), list(head)), selection, f"of profile {profile}"
        )
        self._matched = match(base, head, chosen)
        controls = self._matched.controls(pairs.baselines)
        self._subjects = Evidence(self._matched.changed, noise)
        self._controls = Evidence(controls, noise)
        self._new: list[Judged] = []
        self._counted, self._ended = 0, ""

    def measure(self, until_s: float | None) -> None:
        """Measure what has to be; Ctrl-C ends it early, and what there is is kept."""
        matched = self._matched
        print(
            f"{len(matched.changed)} cases changed, {len(matched.same)} have the same code, {len(matched.new)} are "
            f"new, {len(matched.missing)} missing; {len(self._controls.cases)} controls",
            file=sys.stderr,
        )
        try:
            self._look_first()
        except KeyboardInterrupt:
            self._ended = staged.INTERRUPTED
            return
        families = [
            Family(
                evidence, {case: Entry(case, case) for case in evidence.cases}, controls
            )
            for evidence, controls in ((self._subjects, False), (self._controls, True))
        ]
        self._counted, self._ended = staged.measure(self._pairs, families, until_s)

    def _look_first(self) -> None:
        """Check and compile on both sides; what does not work on one of them has its
        verdict.
        """
        both = [
            Entry(case, case) for case in (*self._subjects.cases, *self._controls.cases)
        ]
        new = [Entry(case, case) for case in self._matched.new]
        if both:
            print("checking and compiling the base", file=sys.stderr)
        base = self._pairs.first(BASE_SIDE, both) if both else {}
        if both or new:
            print("checking and compiling the working tree", file=sys.stderr)
        head = self._pairs.first(HEAD_SIDE, [*both, *new]) if both or new else {}
        for evidence in (self._subjects, self._controls):
            for case in evidence.cases:
                if broken := failure(base[case], head[case]):
                    evidence.end(case, *broken)
        for entry in new:
            outcome = head[entry.label]
            if outcome.status != MEASURED:
                why = f"new, and {outcome.status}: {outcome.reason}"
                self._new.append(Judged(entry.case_id, LATENCY, INVALID, why))

    def regression(self, about: Mapping) -> Regression:
        """All that was found, for storing and showing."""
        controls = [
            replace(
                row,
                verdict=IDENTICAL,
                reason="; ".join(filter(None, ("a control", row.reason))),
            )
            for row in self._controls.judged()
            if row.quantity == LATENCY
        ]
        measured = [*self._subjects.judged(), *controls, *self._new]
        seen = {row.id for row in measured}
        rows = (
            *measured,
            *(row for row in self._matched.unmeasured() if row.id not in seen),
        )
        return Regression(
            dict(about) | {"pairs": self._counted, "ended": self._ended},
            self._controls.why_void(),
            rows,
            self._subjects.over_batches(),
            {
                quantity: self._subjects.ratios[quantity]
                | self._controls.ratios[quantity]
                for quantity in QUANTITIES
            },
            tuple(self._pairs.states),
        )
