"""All that a survey of the noise and a training sweep say, judged once.

`judge_training(noise, sweep)` gives the findings that a report shows. A verdict is
computed when it is first asked for, and then kept with the findings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from batchline.bench.errors import Missing
from batchline.bench.noise import advisor, claims, time_to_target
from batchline.bench.noise.advice import Advice
from batchline.bench.noise.advisor import Moment
from batchline.bench.noise.claims.verdict import Verdict
from batchline.bench.noise.time_to_target import TimeToTarget


@dataclass(frozen=True, eq=False)
class WorkloadFindings:
    """Of one workload that was surveyed. `record` is what was stored of it."""

    name: str
    record: Mapping

    @cached_property
    def moments(self) -> list[Moment]:
        """The points of training, in order."""
        return advisor.moments(self.record)

    @cached_property
    def middle(self) -> Moment:
        """The point of training for which the one advice is given."""
        return self.moments[len(self.moments) // 2]

    @cached_property
    def advice(self) -> list[tuple[Moment, Advice | Missing]]:
        """The batch that each point of training leads to, or why it leads to none."""
        return [(moment, self._advice_at(moment)) for moment in self.moments]

    @cached_property
    def middle_advice(self) -> Advice | Missing:
        """The batch for the noise in the middle of training, or why there is none."""
        return self._advice_at(self.middle)

    def _advice_at(self, moment: Moment) -> Advice | Missing:
        try:
            return advisor.advice(self.record, moment)
        except ValueError as error:
            return Missing(str(error))


@dataclass(frozen=True, eq=False)
class TrainingFindings:
    """The verdicts on what a run, or a study, measured of training; either record may
    be None.
    """

    noise: Mapping | None
    sweep: Mapping | None

    @cached_property
    def workloads(self) -> dict[str, WorkloadFindings | Missing]:
        """Each workload by name, or why its noise was not measured."""
        stored = (self.noise or {}).get("workloads", {})
        return {
            name: (
                Missing(record["failed"])
                if "failed" in record
                else WorkloadFindings(name, record)
            )
            for name, record in stored.items()
        }

    @cached_property
    def claims(self) -> list[Verdict]:
        """The article's four claims."""
        return claims.judge(self.sweep, self.noise)

    @cached_property
    def time_to_target(self) -> TimeToTarget | Missing:
        """The time that training took to a loss beside the time that the noise scale
        predicts, by the sweep's own step times.
        """
        if self.sweep is None:
            return Missing(
                "there is no training sweep to compare with: `batchline claims` runs one"
            )
        workload = self.workloads.get(self.sweep["workload"])
        estimates = {
            f"after {moment.updates} updates": moment.estimate.to_json()
            for moment in (workload.moments if workload else ())
        }
        try:
            steps = time_to_target.steps_of(self.sweep)
            return time_to_target.compare(self.sweep, steps, estimates)
        except ValueError as error:
            return Missing(str(error))


def judge_training(noise: Mapping | None, sweep: Mapping | None) -> TrainingFindings:
    """The findings on a survey (a run's "noise") and a training sweep."""
    return TrainingFindings(noise, sweep)
