"""Two stored runs case by case. It shows and never judges: each side is one process,
and processes differ by more than their samples show (30-35% false alarms, simulated);
`make regress` judges.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.store.regressions import LATENCY
from batchline.bench.verdicts import medians
from batchline.bench.verdicts.floors import floor
from batchline.bench.verdicts.identity import machine_differences


@dataclass(frozen=True)
class Pair:
    """A case that both runs have timed by the same clock.

    `change` is B's median over A's, less 1; `low` and `high` its 95% interval, infinite
    where the samples are too few.
    """

    a: Record
    b: Record
    change: float
    low: float
    high: float

    @property
    def moved(self) -> bool:
        """Whether the interval is wholly beyond the floor: worth a look, and no
        verdict.
        """
        noise = floor(LATENCY, self.a.median_s).share
        return self.low > noise or self.high < -noise


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


def compare(a: Run, b: Run) -> Comparison:
    """All that two runs can say of each other. `other_machine` names the differences of
    machine and toolchain.

    Raises:
        ValueError: where a time is no positive number.
    """
    sides = [{record.id: record for record in run.records} for run in (a, b)]
    pairs, alone = [], []
    for case in dict.fromkeys([*sides[0], *sides[1]]):
        ours = [side.get(case) for side in sides]
        timed = [_is_timed(record) for record in ours]
        if all(timed):
            clocks = [record.facts.get("clock") for record in ours]
            if clocks[0] == clocks[1]:
                pairs.append(_pair(*ours))
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


def _pair(a: Record, b: Record) -> Pair:
    """The ratio of two medians and its interval, of their order-statistic intervals.

    Price and Bonett, Distribution-free confidence intervals for difference and ratio of
    medians (J. Stat. Comput. Simul. 72, 2002): the logarithms' half-widths add in
    squares.
    """
    ratio = b.median_s / a.median_s
    half_width = math.hypot(*(medians.precision(record.samples_s) for record in (a, b)))
    low = ratio * math.exp(-half_width)
    high = ratio * math.exp(half_width) if half_width < 700 else math.inf
    return Pair(a, b, ratio - 1, low - 1, high - 1)


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
