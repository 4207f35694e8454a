"""What a run's evidence says of calling something else than the baseline, and whether
the call that does so pays.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from batchline.bench.records import Record
from batchline.bench.verdicts import crossovers, medians

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
        """Whether it takes longer than the look-up and the baseline, by more than is
        told apart in one process.
        """
        known = [
            (statistics.median(samples), medians.precision(samples))
            for samples in (self.call_samples_s, self.looked_up_samples_s)
        ]
        (call_s, _), (allowed_s, _) = known
        open_s = math.hypot(*(median_s * precision for median_s, precision in known))
        return call_s - allowed_s > max(crossovers.TIE * allowed_s, open_s)

    def falls_short_of(self, gain: float) -> bool:
        """Whether it takes far longer than by a variant that is `gain` times as fast as
        the baseline is here.

        Such a gain came from a slow moment of the baseline in the run.
        """
        promised_s = self.baseline_s / gain + max(0.0, self.overhead_s)
        return self.call_s > MOST_OFF * promised_s


def measured(
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
    """Whether the two fastest samples bear out what the medians say, and it is not
    beyond what was ever seen.
    """
    of_fastest = min(baseline.samples_s) / min(variant.samples_s)
    return gain <= min(MOST_GAIN, _MOST_OF_FASTEST * of_fastest)
