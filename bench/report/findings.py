"""What a stored run shows once it is judged: each verdict is computed at most once, when
the first section asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from batchline.bench.noise import claims, surveyed, time_to_target
from batchline.bench.noise.advice import Advice
from batchline.bench.noise.claims.verdict import Verdict
from batchline.bench.noise.surveyed import Moment
from batchline.bench.noise.time_to_target import TimeToTarget
from batchline.bench.records import Record, Run
from batchline.bench.verdicts import (
    crossover,
    crossovers,
    invariance,
    ladder,
    latency_law,
    memory_law,
)
from batchline.bench.verdicts.crossover import Crossing
from batchline.bench.verdicts.crossovers import Choice, Crossover
from batchline.bench.verdicts.invariance import Invariance, Price
from batchline.bench.verdicts.ladder import Gain
from batchline.bench.verdicts.latency_law import Key, LatencyLaw, Waves
from batchline.bench.verdicts.memory_law import Growth


@dataclass(frozen=True)
class Rung:
    """A variant ("op/name") on its op's ladder: how many rungs it stands on, and its
    gains; None where there is no pair of times.
    """

    variant: str
    height: int
    over_below: Gain | None
    over_opponent: Gain | None


class Findings:
    """The verdicts on one run, named as the modules of bench.verdicts are."""

    def __init__(self, run: Run):
        self._run = run

    @cached_property
    def choices(self) -> list[Choice]:
        """Which variant to use from which batch on, problem by problem."""
        return crossovers.choices(self._run.records, self._run.about["baselines"])

    @cached_property
    def crossovers(self) -> list[Crossover]:
        """Every batch at which one of two variants overtakes the other."""
        return crossovers.crossovers(self._run.records)

    @cached_property
    def crossings(self) -> list[Crossing]:
        """From how many tokens on not materialising beats ghost norms."""
        sizes = self._run.about.get("sizes", {}).get(crossover.OP, {})
        return crossover.crossings(self._run.records, sizes)

    @cached_property
    def opponents(self) -> Mapping[ladder.Problem, Record]:
        """The fastest right one of PyTorch's variants on each problem."""
        return ladder.opponents(self._run.records)

    @cached_property
    def ladder(self) -> Mapping[str, Sequence[Rung]]:
        """The rungs of every op, from the lowest up."""
        return {
            op: [
                self._rung(op, variant, height)
                for variant, height in ladder.climb(self._variants(op))
            ]
            for op in dict.fromkeys(
                name.partition("/")[0] for name in self._run.about["variants"]
            )
        }

    def _rung(self, op: str, variant: str, height: int) -> Rung:
        records = [record for record in self._run.records if record.op == op]
        below = self._run.about["variants"][variant]["builds_on"]
        return Rung(
            variant,
            height,
            ladder.over_rung_below(records, variant, below) if below else None,
            ladder.over(
                records,
                variant,
                lambda record: self.opponents.get(ladder.problem_of(record)),
            ),
        )

    def _variants(self, op: str) -> dict[str, Mapping]:
        return {
            name: facts
            for name, facts in self._run.about["variants"].items()
            if name.startswith(f"{op}/")
        }

    @cached_property
    def waves(self) -> Mapping[Key, Waves]:
        """How the run's variants fill its GPU, where that is known."""
        return waves_of(self._run)

    @cached_property
    def latency_laws(self) -> list[LatencyLaw]:
        """How time grows with the batch, for each variant and scenario."""
        return latency_law.laws(self._run.records, self.waves)

    @cached_property
    def memory_laws(self) -> list[Growth]:
        """How memory grows with the batch, for each variant and scenario."""
        return memory_law.growths(self._run.records)

    @cached_property
    def invariance(self) -> list[Invariance]:
        """Which variants give a sample the same bits in every batch."""
        return invariance.by_variant(self._run.about.get("invariance", ()))

    @cached_property
    def prices(self) -> list[Price]:
        """What choosing only among invariant variants costs."""
        rows = self._run.about.get("invariance", ())
        return list(invariance.prices(rows, self._run.records)) if rows else []

    @cached_property
    def audit(self) -> Mapping[str, list[Mapping]]:
        """The rows of the numerics audit by op, in the order of the run."""
        rows = self._run.about.get("audit", ())
        ops = dict.fromkeys(row["op"] for row in rows)
        return {op: [row for row in rows if row["op"] == op] for op in ops}

    @cached_property
    def training(self) -> TrainingFindings | None:
        """What the gradient noise of the run leads to; None where it has none."""
        noise = self._run.about.get("noise")
        return TrainingFindings(noise, self._run.about.get("sweep")) if noise else None


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
            name: surveyed.moments(workload)
            for name, workload in self.workloads.items()
        }

    def middle(self, name: str) -> Moment:
        """The point of training for which the one advice is given."""
        moments = self.moments[name]
        return moments[len(moments) // 2]

    def advice(self, name: str) -> list[tuple[Moment, Advice]]:
        """The advice at each point of training of a workload.

        Raises:
            ValueError: as bench.noise.surveyed.advice.
        """
        return [
            (moment, self._advice_at(name, moment)) for moment in self.moments[name]
        ]

    def middle_advice(self, name: str) -> Advice:
        """The advice for the middle of training.

        Raises:
            ValueError: as bench.noise.surveyed.advice.
        """
        return self._advice_at(name, self.middle(name))

    def _advice_at(self, name: str, moment: Moment) -> Advice:
        key = name, moment.updates
        if key not in self._advice:
            try:
                self._advice[key] = surveyed.advice(self.workloads[name], moment)
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
            return "There is no training sweep to compare with: `make claims` runs one."
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


def waves_of(run: Run) -> dict[Key, Waves]:
    """How a run's variants fill its GPU, where that is known, by op, variant, scenario
    and dtype.
    """
    return {
        (row["op"], row["variant"], row["scenario"], row["dtype"]): Waves(
            row["ctas_per_sample"],
            row["multiprocessors"],
            row["ctas_per_multiprocessor"],
        )
        for row in run.about.get("waves", ())
        if "why_not" not in row
    }  # older runs have none
