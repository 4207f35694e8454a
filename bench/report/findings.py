"""What a stored run shows once it is judged: each verdict is computed at most once, when
the first section asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from batchline.bench.noise import advisor, claims, time_to_target
from batchline.bench.noise.advice import Advice
from batchline.bench.noise.advisor import Moment
from batchline.bench.noise.claims.verdict import Verdict
from batchline.bench.noise.rank_scaling import Scaling
from batchline.bench.noise.time_to_target import TimeToTarget
from batchline.bench.store.records import AuditRow
from batchline.bench.verdicts import judge


@dataclass(frozen=True, eq=False)
class Findings(judge.Findings):
    """The verdicts on one run, with those on what else it looked at. `scaling` is of
    what is stored beside it of ranks, None where nothing is.
    """

    scaling: Scaling | None = None

    @cached_property
    def audit(self) -> Mapping[str, list[AuditRow]]:
        """The rows of the numerics audit by op, in the order of the run."""
        by_op: dict[str, list[AuditRow]] = {}
        for row in self.run.audit:
            by_op.setdefault(row.op, []).append(row)
        return by_op

    @cached_property
    def training(self) -> TrainingFindings | None:
        """What the gradient noise of the run leads to; None where it has none."""
        noise = self.run.noise
        return TrainingFindings(noise, self.run.sweep) if noise else None


class TrainingFindings:
    """The verdicts on a survey of the gradient noise and on a training sweep."""

    def __init__(self, noise: Mapping, sweep: Mapping | None):
        self._noise = noise
        self.sweep = sweep
        self._advice: dict[tuple[str, int], Advice | ValueError] = {}

    @cached_property
    def workloads(self) -> Mapping[str, Mapping]:
        """The workloads of which the noise was measured, by name."""
        return {
            name: workload
            for name, workload in self._noise["workloads"].items()
            if "failed" not in workload
        }

    @cached_property
    def failed(self) -> Mapping[str, str]:
        """Why the noise of the other workloads was not measured, by name."""
        return {
            name: workload["failed"]
            for name, workload in self._noise["workloads"].items()
            if "failed" in workload
        }

    @cached_property
    def moments(self) -> Mapping[str, list[Moment]]:
        """The points of training of each workload, in order."""
        return {
            name: advisor.moments(workload) for name, workload in self.workloads.items()
        }

    def middle(self, name: str) -> Moment:
        """The point of training for which the one advice is given."""
        moments = self.moments[name]
        return moments[len(moments) // 2]

    def advice(self, name: str) -> list[tuple[Moment, Advice]]:
        """The advice at each point of training of a workload.

        Raises:
            ValueError: as bench.noise.advisor.advice.
        """
        return [
            (moment, self._advice_at(name, moment)) for moment in self.moments[name]
        ]

    def middle_advice(self, name: str) -> Advice:
        """The advice for the middle of training.

        Raises:
            ValueError: as bench.noise.advisor.advice.
        """
        return self._advice_at(name, self.middle(name))

    def _advice_at(self, name: str, moment: Moment) -> Advice:
        key = name, moment.updates
        if key not in self._advice:
            try:
                self._advice[key] = advisor.advice(self.workloads[name], moment)
            except ValueError as error:
                self._advice[key] = error
        advice = self._advice[key]
        if isinstance(advice, ValueError):
            raise advice
        return advice

    @cached_property
    def claims(self) -> list[Verdict]:
        """The article's four claims, each with its verdict."""
        return claims.judge(self.sweep, self._noise)

    @cached_property
    def time_to_target(self) -> TimeToTarget | str:
        """The sweep compared with what its own step times and the noise at each point
        of training predict, or why it can't be.
        """
        if self.sweep is None:
            return "There is no training sweep to compare with: `batchline claims` runs one."
        estimates = {
            f"after {moment.updates} updates": moment.estimate.to_json()
            for moment in self.moments.get(self.sweep["workload"], ())
        }
        try:
            return time_to_target.compare(
                self.sweep, time_to_target.steps_of(self.sweep), estimates
            )
        except ValueError as error:
            return f"No comparison: {error}."
