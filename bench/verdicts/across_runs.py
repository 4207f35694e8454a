"""What stored runs say of each other: how two differ case by case, and where a history
changed.

The comparison of two runs shows and never judges: each side is one process, and
processes differ by more than their samples show (30-35% false alarms, simulated);
`make regress` judges. A history is of one machine and profile; bench.store.history stores
it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.stats import intervals
from batchline.bench.stats.fits import LEAST_RUNS, ChangePoint, change_points
from batchline.bench.statuses import MEASURED
from batchline.bench.store.accepted import AcceptedStep
from batchline.bench.store.history import (
    Entry,
    differences,
    machine_differences,
)
from batchline.bench.store.records import Record, Run
from batchline.bench.store.regressions import (
    EQUIVALENT,
    IMPROVED,
    LATENCY,
    REGRESSED,
)
from batchline.bench.verdicts.gate import floor
from batchline.bench.verdicts.moves import (
    NOISE,
    Cause,
    Conditions,
    Move,
    classify,
    conditions_of_record,
)

_PLACED_WITHIN = 1  # runs


@dataclass(frozen=True)
class Pair:
    """A case that both runs have timed by the same clock.

    `change` is B's median over A's, less 1; `low` and `high` its 95% interval, infinite
    where the samples are too few. `cause` is what the change would be put down to, were
    it confirmed.
    """

    a: Record
    b: Record
    change: float
    low: float
    high: float
    cause: Cause

    @property
    def ratio(self) -> float:
        """B's median over A's."""
        return 1 + self.change

    @property
    def moved(self) -> bool:
        """Whether the interval is wholly beyond the floor: worth a look, and no
        verdict.
        """
        return self.cause.kind != NOISE


@dataclass(frozen=True)
class OpRatio:
    """B's times over A's on one op: the geometric mean over its `count` pairs, the least
    and the largest.
    """

    op: str
    count: int
    mean: float
    least: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """`pairs` are what can be compared; `alone` is each other case that one side has
    timed: (side, record, why).
    """

    a: Run
    b: Run
    pairs: tuple[Pair, ...]
    alone: tuple[tuple[str, Record, str], ...]
    other_machine: tuple[str, ...]

    @property
    def moved(self) -> list[Pair]:
        """The pairs that moved, the largest change first."""
        return sorted(
            (pair for pair in self.pairs if pair.moved),
            key=lambda pair: -abs(math.log1p(pair.change)),
        )

    @property
    def mean_ratio(self) -> float | None:
        """The geometric mean of B's times over A's; None where no case is in both."""
        ratios = [pair.ratio for pair in self.pairs]
        return statistics.geometric_mean(ratios) if ratios else None

    @property
    def ratios(self) -> list[OpRatio]:
        """One for each op that both have timed, in the order of A's plan."""
        by_op: dict[str, list[float]] = {}
        for pair in self.pairs:
            by_op.setdefault(pair.a.op, []).append(pair.ratio)
        return [
            OpRatio(
                op, len(ones), statistics.geometric_mean(ones), min(ones), max(ones)
            )
            for op, ones in by_op.items()
        ]


def compare(a: Run, b: Run) -> Comparison:
    """All that two runs can say of each other. `other_machine` names the differences of
    machine and toolchain.

    Raises:
        ValueError: where a time is no positive number.
    """
    sides = [{record.id: record for record in run.records} for run in (a, b)]
    pairs = []
    alone = []
    for case in dict.fromkeys([*sides[0], *sides[1]]):
        ours = [side.get(case) for side in sides]
        timed = [_is_timed(record) for record in ours]
        if all(timed):
            clocks = [record.facts.get("clock") for record in ours]
            if clocks[0] == clocks[1]:
                pairs.append(_pair(a, b, *ours))
            else:
                alone.append(
                    ("A", ours[0], f"by the clock {clocks[0]}, and in B by {clocks[1]}")
                )
        elif any(timed):
            here = timed.index(True)
            other = ours[1 - here]
            alone.append(
                (
                    "AB"[here],
                    ours[here],
                    (
                        ""
                        if other is None
                        else (
                            f"{other.status}: {other.reason}"
                            if other.reason
                            else other.status
                        )
                    ),
                )
            )
    return Comparison(
        a,
        b,
        tuple(pairs),
        tuple(alone),
        tuple(machine_differences(a.machine, b.machine)),
    )


def are_comparable(a: Run, b: Run) -> bool:
    """Whether two runs are of one machine, toolchain and profile."""
    same_profile = a.plan.profile == b.plan.profile
    return same_profile and not machine_differences(a.machine, b.machine)


def _pair(run_a: Run, run_b: Run, a: Record, b: Record) -> Pair:
    """The ratio of two medians and its interval, of their order-statistic intervals.

    Price and Bonett, Distribution-free confidence intervals for difference and ratio of
    medians (J. Stat. Comput. Simul. 72, 2002): the logarithms' half-widths add in
    squares.
    """
    ratio = b.median_s / a.median_s
    half_width = math.hypot(
        *(intervals.median_precision(record.samples_s) for record in (a, b))
    )
    low = ratio * math.exp(-half_width) - 1
    high = ratio * math.exp(half_width) - 1 if half_width < 700 else math.inf
    noise = floor(LATENCY, a.median_s).share
    sides = conditions_of_record(run_a, a), conditions_of_record(run_b, b)
    return Pair(a, b, ratio - 1, low, high, classify(_move(low, high, noise, *sides)))


def _move(
    low: float, high: float, noise: float, before: Conditions, after: Conditions
) -> Move:
    """A change with its interval: it is one where that is wholly beyond the floor."""
    if low > noise:
        return Move(REGRESSED, before, after, low)
    if high < -noise:
        return Move(IMPROVED, before, after, high)
    return Move(EQUIVALENT, before, after)


def _is_timed(record: Record | None) -> bool:
    if record is None or record.status != MEASURED:
        return False
    if not _are_times(record.samples_s):
        raise ValueError(f"{record.id} has a time that is no positive number")
    return True


def _are_times(samples: Sequence) -> bool:
    return bool(samples) and all(
        isinstance(one, (int, float)) and 0 < one < math.inf for one in samples
    )


@dataclass(frozen=True)
class Series:
    """One case by one clock on one machine and profile: its runs, the oldest first, and
    where it changed. Where a step was accepted the runs begin after it.
    """

    case: str
    clock: str
    entries: tuple[Entry, ...]
    medians_s: tuple[float, ...]
    changes: tuple[ChangePoint, ...]
    accepted: AcceptedStep | None = None

    @property
    def kernel(self) -> str:
        return self.case.rpartition("/")[0]

    @property
    def batch(self) -> str:
        return self.case.rpartition("/")[2]

    @property
    def is_long_enough(self) -> bool:
        return len(self.entries) >= LEAST_RUNS

    def cause(self, change: ChangePoint) -> Cause:
        """What a change of this series is put down to."""
        first, end = self._stretch(change)
        # A change is placed to within a run: both neighbours of its place count.
        last_before = self.entries[max(change.index - 1 - _PLACED_WITHIN, first)]
        first_after = self.entries[min(change.index + _PLACED_WITHIN, end - 1)]
        return classify(
            Move(
                REGRESSED if change.effect > 0 else IMPROVED,
                self._conditions(last_before, self.entries[first : change.index]),
                self._conditions(first_after, self.entries[change.index : end]),
                change.effect,
            )
        )

    def _stretch(self, change: ChangePoint) -> tuple[int, int]:
        """The first run of the level before a change, and the end of that after it."""
        places = [0, *(one.index for one in self.changes), len(self.entries)]
        at = places.index(change.index)
        return places[at - 1], places[at + 1]

    def _conditions(self, entry: Entry, level: Sequence[Entry]) -> Conditions:
        """Those of one run, with the median SM clock of its level."""
        clocks_mhz = [one.cases[self.case].get("sm_mhz") for one in level]
        known = all(clocks_mhz)
        return Conditions(
            entry.machine,
            entry.method,
            entry.toolchain,
            statistics.median(clocks_mhz) if known else None,
        )


@dataclass(frozen=True)
class Group:
    """The runs that may be compared: one machine, one profile."""

    machine: Mapping[str, str]
    profile: str
    entries: tuple[Entry, ...]
    series: tuple[Series, ...]

    @property
    def changed(self) -> list[tuple[Series, ChangePoint]]:
        """Every change, the newest first, and of one run the largest first."""
        changes = [
            (series, change) for series in self.series for change in series.changes
        ]
        return sorted(
            sorted(changes, key=lambda one: -abs(one[1].effect)),
            key=lambda one: one[0].entries[one[1].index].when,
            reverse=True,
        )


def groups(
    entries: Iterable[Entry],
    cases: Container[str] | None = None,
    accepted: Sequence[AcceptedStep] = (),
) -> list[Group]:
    """The entries by machine and profile, with a series for each case, or each of those
    ids; a series begins after the newest of its accepted steps.
    """
    by_machine: dict[tuple, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.when):
        by_machine.setdefault(
            (tuple(sorted(entry.machine.items())), entry.profile), []
        ).append(entry)
    return [
        Group(
            runs[0].machine,
            runs[0].profile,
            tuple(runs),
            tuple(_series(runs, cases, accepted)),
        )
        for runs in by_machine.values()
    ]


def _series(
    entries: Sequence[Entry],
    chosen: Container[str] | None,
    accepted: Sequence[AcceptedStep],
) -> Iterable[Series]:
    runs: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        for case, facts in entry.cases.items():
            if chosen is None or case in chosen:
                runs.setdefault((case, facts["clock"]), []).append(entry)
    for (case, clock), every in runs.items():
        step = _newest_step(accepted, case, clock, every[0])
        ours = [entry for entry in every if step is None or entry.when >= step.since]
        medians_s = tuple(entry.cases[case]["median_s"] for entry in ours)
        if ours:
            changes = tuple(change_points(medians_s))
            yield Series(case, clock, tuple(ours), medians_s, changes, step)


def _newest_step(
    accepted: Sequence[AcceptedStep], case: str, clock: str, entry: Entry
) -> AcceptedStep | None:
    """The newest accepted step of the series of a case that the entry is one of."""
    series = (case, clock, entry.profile, entry.machine)
    steps = [
        step
        for step in accepted
        if (step.case, step.clock, step.profile, step.machine) == series
    ]
    return max(steps, key=lambda step: step.since, default=None)


def toolchain_changes(entries: Sequence[Entry]) -> list[tuple[int, list[str]]]:
    """(index of the first run after it, what changed) of every change of the toolchain."""
    pairs = enumerate(zip(entries, entries[1:]), 1)
    return [
        (index, differ)
        for index, (before, after) in pairs
        if (differ := differences(before.toolchain, after.toolchain))
    ]
