"""What choosing another variant than the baseline gains, whether the call that does so
pays, and what choosing only among batch-invariant variants costs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from batchline.bench.stats import intervals
from batchline.bench.store.records import Record
from batchline.bench.verdicts import crossovers, ranking

MOST_OFF = 2.0  # times what a gain promises: processes, and the moments of one run, differ by far less
MOST_GAIN = 100.0  # the most that was ever measured on a quiet machine is 35; stalls of a baseline gave thousands
_MOST_OF_FASTEST = 5.0  # times the gain of the fastest samples, which are not disturbed; page faults alone made it 3.6
LEAST_GAIN = 1.05  # less is not worth leaving the library for: processes alone differ by 2% (`batchline selftest`)


@dataclass(frozen=True)
class Measured:
    """One problem of a run: by how much each variant beats the baseline there (1.2 is
    1.2x), the best first.

    `not_believed` are gains that come from a slow moment of the baseline, and not from
    the variant.
    """

    op: str
    scenario: str
    dtype: str
    batch: int
    faster: Mapping[str, float]
    not_believed: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Called:
    """One problem on which an op's call was timed in turns with the op's baseline.
    Times in seconds, samples raw.

    `baseline` is the op's, `variant` what the call ran, `source` why
    (kernels.dispatch.Choice). `looked_up_samples_s` are of the baseline behind a
    look-up whose answer it does not take.
    """

    op: str
    scenario: str
    dtype: str
    batch: int
    baseline: str
    variant: str
    source: str
    call_samples_s: Sequence[float]
    baseline_samples_s: Sequence[float]
    looked_up_samples_s: Sequence[float]

    @property
    def problem(self) -> tuple[str, str, str, int]:
        return self.op, self.scenario, self.dtype, self.batch

    @property
    def call_s(self) -> float:
        return statistics.median(self.call_samples_s)

    @property
    def baseline_s(self) -> float:
        return statistics.median(self.baseline_samples_s)

    @property
    def speed_up(self) -> float:
        return self.baseline_s / self.call_s

    @property
    def overhead_s(self) -> float:
        """What the look-up takes beside this baseline: more where the data drives its
        few objects out of the caches.
        """
        return statistics.median(self.looked_up_samples_s) - self.baseline_s

    @property
    def is_slower(self) -> bool:
        """Whether it takes longer than the look-up and the baseline, by more than a tie
        in one process.
        """
        known = [
            (statistics.median(samples), intervals.median_precision(samples))
            for samples in (self.call_samples_s, self.looked_up_samples_s)
        ]
        (call_s, _), (allowed_s, _) = known
        open_s = math.hypot(*(median_s * precision for median_s, precision in known))
        return call_s - allowed_s > max(crossovers.TIE * allowed_s, open_s)

    def falls_short_of(self, gain: float) -> bool:
        """Whether the call takes far longer than a variant would that is `gain` times
        as fast as the baseline is here.

        Such a gain came from a slow moment of the baseline in the run.
        """
        promised_s = self.baseline_s / gain + max(0.0, self.overhead_s)
        return self.call_s > MOST_OFF * promised_s


def measured_gains(
    records: Sequence[Record],
    baselines: Mapping[str, str],
    candidates: Mapping[str, Container[str]],
) -> Iterator[Measured]:
    """Each problem on which the baseline was timed, and which of the op's candidates
    beat it by LEAST_GAIN.
    """
    for (op, scenario, dtype), by_variant in crossovers.by_problem(records).items():
        baseline = by_variant.get(baselines.get(op), {})
        for batch, record in sorted(baseline.items()):
            gains = {
                name: record.median_s / timed[batch].median_s
                for name, timed in by_variant.items()
                if batch in timed
                and name in candidates[op]
                and crossovers.leader(timed[batch], record) == name
            }
            faster = {
                name: round(gain, 3)
                for name, gain in sorted(gains.items(), key=lambda gain: -gain[1])
                if gain >= LEAST_GAIN
            }
            not_believed = {
                name: gain
                for name, gain in faster.items()
                if not _is_believed(gain, record, by_variant[name][batch])
            }
            yield Measured(
                op,
                scenario,
                dtype,
                batch,
                {
                    name: gain
                    for name, gain in faster.items()
                    if name not in not_believed
                },
                not_believed,
            )


def _is_believed(gain: float, baseline: Record, variant: Record) -> bool:
    """Whether the two fastest samples confirm the gain of the medians, and it is no
    larger than any that was ever measured.
    """
    of_fastest = min(baseline.samples_s) / min(variant.samples_s)
    return gain <= min(MOST_GAIN, _MOST_OF_FASTEST * of_fastest)


@dataclass(frozen=True)
class Invariance:
    """One variant in one dtype: on how many of its scenarios a sample's bits are the
    same in every batch.

    `varies` are the scenarios on which they are not, each with the batches at which
    they differ from those in the largest; `scenarios` is 0 where no output has a row
    for each sample. `repeats`: all outputs are the same in every call and process that
    was looked at, on every scenario (None: it failed on all); `failed` are what was
    raised.
    """

    op: str
    variant: str
    dtype: str
    scenarios: int
    varies: Mapping[str, Sequence[int]]
    repeats: bool | None
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Price:
    """Of choosing only among invariant variants: the fastest of them over the fastest
    of all, problem by problem.

    Their geometric mean and the largest, with where that is; `without` are the problems
    where no variant is invariant.
    """

    op: str
    dtype: str
    problems: int
    mean: float
    most: float
    where: str
    without: int


def invariance_by_variant(rows: Sequence[Mapping]) -> list[Invariance]:
    """A verdict for each variant and dtype of a run's rows (bench.measure.checking.steadiness)."""
    groups: dict[tuple[str, str, str], list[Mapping]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["variant"], row["dtype"]), []).append(row)
    return [
        Invariance(
            *key,
            sum(row["rows"] is not None for row in group),
            {
                row["scenario"]: row["differs_at"]
                for row in group
                if row["rows"] is False
            },
            (
                all(looked)
                if (looked := [row["repeats"] for row in group if not row["failed"]])
                else None
            ),
            tuple(
                f"{row['scenario']}: {row['failed']}" for row in group if row["failed"]
            ),
        )
        for key, group in groups.items()
    ]


def invariance_prices(
    rows: Sequence[Mapping], records: Sequence[Record]
) -> Iterator[Price]:
    """What invariance costs, for each op and dtype that has variants of both kinds to
    choose from.

    Over the problems that were timed on scenarios that were looked at; of what keeps
    its op's own error bound.
    """
    invariant = {
        (row["op"], row["scenario"], row["dtype"], row["variant"]): row["rows"]
        for row in rows
        if row["rows"] is not None and not row["failed"]
    }
    ratios: dict[tuple[str, str], list[tuple[float, str]]] = {}
    without: dict[tuple[str, str], int] = {}
    for (op, scenario, dtype), timed in crossovers.by_problem(
        filter(ranking.may_be_chosen, records)
    ).items():
        looked_at = [name for name in timed if (op, scenario, dtype, name) in invariant]
        for batch in sorted({batch for name in looked_at for batch in timed[name]}):
            times = {
                name: timed[name][batch].median_s
                for name in looked_at
                if batch in timed[name]
            }
            kept = [
                time_s
                for name, time_s in times.items()
                if invariant[op, scenario, dtype, name]
            ]
            if kept:
                ratios.setdefault((op, dtype), []).append(
                    (min(kept) / min(times.values()), f"{scenario} B={batch}")
                )
            else:
                without[op, dtype] = without.get((op, dtype), 0) + 1
    for key in dict.fromkeys((*ratios, *without)):
        here = ratios.get(key, [])
        most, where = max(here, default=(float("nan"), ""))
        mean = (
            statistics.geometric_mean(ratio for ratio, _ in here)
            if here
            else float("nan")
        )
        yield Price(*key, len(here), mean, most, where, without.get(key, 0))
