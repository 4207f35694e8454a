"""How memory grows with the batch: m(B) = fixed + per sample · B, and the largest batch
that a device then holds.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record

LEAST_BATCHES = 3  # two points make any line
_GOOD_FIT = 0.05  # a law that misses by more than this share of the largest total predicts nothing


@dataclass(frozen=True)
class Law:
    """Bytes: m(B) = fixed + per_sample · B. `misfit` is the worst |measured − law| as a
    share of the largest m.
    """

    fixed: float
    per_sample: float
    misfit: float

    def bytes_at(self, batch: float) -> float:
        return self.fixed + self.per_sample * batch

    def largest_batch(self, room_bytes: float) -> int | None:
        """The largest B with m(B) ≤ `room_bytes`; None where memory does not grow with
        the batch.
        """
        if self.per_sample <= 0:
            return None
        return max(0, int((room_bytes - self.fixed) / self.per_sample))


def fit(batches: Sequence[int], sizes: Sequence[float]) -> Law | None:
    """Least squares over (batch, bytes); None from fewer than three batches.

    Unweighted: a page or two of rounding is nothing at a large batch, and it is the
    large ones that a limit concerns.
    """
    if len(set(batches)) < LEAST_BATCHES:
        return None
    slope, intercept = statistics.linear_regression(batches, sizes)
    worst = max(
        abs(intercept + slope * batch - size) for batch, size in zip(batches, sizes)
    )
    return Law(intercept, slope, worst / max(*sizes, 1))


@dataclass(frozen=True)
class Growth:
    """How one variant's memory and time grow on one scenario: `peak` above the inputs,
    `inputs`, and both together.

    `batch` is the largest that was measured, and `seconds_a_sample` its median over it.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    peak: Law
    inputs: Law
    total: Law
    batch: int
    seconds_a_sample: float

    def largest_batch(self, room_bytes: float) -> int | None:
        """The largest batch whose inputs, outputs and workspace fit into `room_bytes`;
        None where there is no law.
        """
        return self.total.largest_batch(room_bytes) if self.is_a_line else None

    @property
    def is_a_line(self) -> bool:
        return self.total.misfit <= _GOOD_FIT

    def seconds_at(self, batch: int) -> float:
        """About what a call takes there, at the cost a sample of the largest batch
        measured.
        """
        return self.seconds_a_sample * batch


def growths(records: Sequence[Record]) -> list[Growth]:
    """One for each variant and scenario with at least three measured batches."""
    groups: dict[tuple[str, str, str, str], list[Record]] = {}
    for record in records:
        if record.status == MEASURED and record.facts.get("peak_bytes") is not None:
            groups.setdefault(
                (record.op, record.variant, record.scenario, record.dtype), []
            ).append(record)
    found = []
    for key, group in groups.items():
        batches = [record.batch for record in group]
        peaks = [record.facts["peak_bytes"] for record in group]
        inputs = [record.facts["input_bytes"] for record in group]
        laws = [
            fit(batches, sizes)
            for sizes in (peaks, inputs, [sum(both) for both in zip(peaks, inputs)])
        ]
        if None not in laws:
            largest = max(group, key=lambda record: record.batch)
            found.append(
                Growth(*key, *laws, largest.batch, largest.median_s / largest.batch)
            )
    return found


def quickest(growths_: Sequence[Growth], room_bytes: float) -> list[Growth]:
    """For each op and variant the one whose call at its largest batch would be the
    quickest.
    """
    best: dict[tuple[str, str], tuple[float, Growth]] = {}
    for growth in growths_:
        batch = growth.largest_batch(room_bytes)
        if batch:
            item = growth.seconds_at(batch), growth
            key = growth.op, growth.variant
            best[key] = min(best.get(key, item), item, key=lambda pair: pair[0])
    return [growth for _, growth in best.values()]
