"""A machine's runs over time: which belong together, and where which case changed.
Pure; bench.history stores them.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.verdicts.change_points import (
    LEAST_RUNS,
    ChangePoint,
    change_points,
)
from batchline.bench.verdicts.identity import differences


@dataclass(frozen=True)
class Entry:
    """One run in a history.

    `when` is ISO 8601; `dirty` whether the sources differed from `commit` (None: not
    known). `machine` and `toolchain` are as bench.verdicts.identity has them. `cases`
    is case id → {"clock", "median_s", "first_quartile_s", "third_quartile_s",
    "peak_bytes", "error", "error_of_tolerance"}; what was not counted is None.
    """

    when: str
    commit: str
    dirty: bool | None
    profile: str
    machine: Mapping[str, str]
    toolchain: Mapping[str, str]
    cases: Mapping[str, Mapping]


@dataclass(frozen=True)
class Series:
    """One case by one clock on one machine and profile: its runs, the oldest first, and
    where it changed.
    """

    case: str
    clock: str
    entries: tuple[Entry, ...]
    medians_s: tuple[float, ...]
    changes: tuple[ChangePoint, ...]

    @property
    def kernel(self) -> str:
        return self.case.rpartition("/")[0]

    @property
    def batch(self) -> str:
        return self.case.rpartition("/")[2]

    @property
    def is_long_enough(self) -> bool:
        return len(self.entries) >= LEAST_RUNS


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
        found = [
            (series, change) for series in self.series for change in series.changes
        ]
        return sorted(
            sorted(found, key=lambda one: -abs(one[1].effect)),
            key=lambda one: one[0].entries[one[1].index].when,
            reverse=True,
        )


def groups(
    entries: Iterable[Entry], cases: Container[str] | None = None
) -> list[Group]:
    """The entries by machine and profile, with a series for each case, or each of those
    ids.
    """
    found: dict[tuple, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.when):
        found.setdefault(
            (tuple(sorted(entry.machine.items())), entry.profile), []
        ).append(entry)
    return [
        Group(
            runs[0].machine, runs[0].profile, tuple(runs), tuple(_series(runs, cases))
        )
        for runs in found.values()
    ]


def _series(
    entries: Sequence[Entry], chosen: Container[str] | None
) -> Iterable[Series]:
    runs: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        for case, facts in entry.cases.items():
            if chosen is None or case in chosen:
                runs.setdefault((case, facts["clock"]), []).append(entry)
    for (case, clock), ours in runs.items():
        medians_s = tuple(entry.cases[case]["median_s"] for entry in ours)
        yield Series(
            case, clock, tuple(ours), medians_s, tuple(change_points(medians_s))
        )


def toolchain_changes(entries: Sequence[Entry]) -> list[tuple[int, list[str]]]:
    """(index of the first run after it, what changed) of every change of the toolchain."""
    pairs = enumerate(zip(entries, entries[1:]), 1)
    return [
        (index, differ)
        for index, (before, after) in pairs
        if (differ := differences(before.toolchain, after.toolchain))
    ]
