"""All that a run says, judged once: `judge(run)` gives the Findings that a report shows.

A verdict is computed when it is first asked for, and then kept with the findings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from batchline.bench import texts
from batchline.bench.errors import Missing
from batchline.bench.stats import roofline
from batchline.bench.stats.roofline import Bound, Waves
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import (
    across_runs,
    choosing,
    crossovers,
    laws,
    ranking,
    winners,
)
from batchline.bench.verdicts.across_runs import Comparison
from batchline.bench.verdicts.choosing import Invariance, Price
from batchline.bench.verdicts.crossovers import Best, Choice, Crossover, TokenCrossing
from batchline.bench.verdicts.laws import Key, LatencyLaw, LawKey, MemoryGrowth
from batchline.bench.verdicts.ranking import Problem, Rung
from batchline.bench.verdicts.winners import WinnerMap

Group = tuple[str, str, str]  # op, scenario, dtype


@dataclass(frozen=True, eq=False)
class Findings:
    """The verdicts on one run. `before` is the run that it is compared with, if any."""

    run: Run
    before: Run | None = None

    @cached_property
    def timed(self) -> dict[str, Record]:
        """What has a time, by case id, in the order of the plan."""
        return {
            record.id: record
            for record in self.run.records
            if record.status == MEASURED
        }

    @cached_property
    def unranked(self) -> dict[str, str]:
        """Why a time is not ranked, by case id; of those that are not."""
        reasons = {
            case: ranking.why_unranked(record) for case, record in self.timed.items()
        }
        return {case: why for case, why in reasons.items() if why}

    @cached_property
    def opponents(self) -> dict[Problem, Record]:
        """The strongest of PyTorch's own variants on each problem."""
        return ranking.opponents(self.run.records)

    @cached_property
    def ladders(self) -> dict[str, tuple[Rung, ...]]:
        """The variants of each op from the lowest rung up, and what each gained."""
        return ranking.ladders(self.run.records, self.run.variants)

    @cached_property
    def best(self) -> list[Best]:
        """The fastest variant of each problem that a call may go to."""
        return crossovers.best(self.run.records)

    @cached_property
    def choices(self) -> dict[Group, list[Choice]]:
        """Which variant to use from which batch on, for each op, scenario and dtype."""
        by_group: dict[Group, list[Choice]] = {}
        baselines = self.run.baselines
        for choice in crossovers.choices(self.run.records, baselines):
            by_group.setdefault(choice.problem, []).append(choice)
        return by_group

    @cached_property
    def winners(self) -> WinnerMap:
        """Who wins each problem at each batch."""
        return winners.map_winners(self.run, self.best, self.choices, self.crossovers)

    @cached_property
    def crossovers(self) -> list[Crossover]:
        """Every change of the leader between two variants."""
        return crossovers.crossovers(self.run.records)

    @cached_property
    def choice_changes(self) -> list[Crossover]:
        """The crossovers at which the choice changes, and not only the leader of a
        pair.
        """
        changed = {
            (group, before.variant, after.variant)
            for group, choices in self.choices.items()
            for before, after in itertools.pairwise(choices)
        }
        return [
            one
            for one in self.crossovers
            if ((one.op, one.scenario, one.dtype), one.first, one.then) in changed
        ]

    @cached_property
    def token_crossings(self) -> list[TokenCrossing]:
        """From how many tokens the fused statistics beat ghost norms, layer by layer."""
        op = self.run.ops.get(crossovers.TOKENS_OP)
        scenarios = op.scenarios if op else {}
        sizes = {name: one.sizes for name, one in scenarios.items() if one.sizes}
        return crossovers.token_crossings(self.run.records, sizes)

    @cached_property
    def launch_waves(self) -> dict[Key, Waves | Missing]:
        """How each variant fills the GPU, or why that is not known."""
        return laws.launch_waves(self.run)

    @cached_property
    def latency_laws(self) -> dict[LawKey, LatencyLaw | Missing]:
        """How time grows with the batch, or why there is no law."""
        return laws.latency_laws(self.run.records, self.launch_waves)

    @cached_property
    def memory_growths(self) -> dict[Key, MemoryGrowth]:
        """How memory grows with the batch, where three batches were measured."""
        return {
            (growth.op, growth.variant, growth.scenario, growth.dtype): growth
            for growth in laws.memory_growths(self.run.records)
        }

    @cached_property
    def bounds(self) -> dict[str, Bound]:
        """The ceiling that binds each time by its first clock, by case id; empty
        without ceilings.
        """
        bounds = {}
        for case, record in self.timed.items():
            bound = self.bound(record, record.facts["clock"], record.median_s)
            if bound:
                bounds[case] = bound
        return bounds

    def bound(self, record: Record, clock: str, median_s: float) -> Bound | Missing:
        """The ceiling that binds this median by this clock."""
        ceilings = self.ceilings
        if isinstance(ceilings, Missing):
            return ceilings
        return roofline.bound(record.facts, record.dtype, clock, median_s, ceilings)

    @cached_property
    def ceilings(self) -> Mapping | Missing:
        """What the machine can do, measured in this run."""
        why = self.run.why_no_ceilings
        return self.run.ceilings or Missing(why or "nothing ran")

    @cached_property
    def invariance(self) -> list[Invariance]:
        """Which variants give a sample the same bits in every batch."""
        return choosing.invariance_by_variant(self.run.invariance)

    @cached_property
    def invariance_prices(self) -> list[Price]:
        """What choosing only among batch-invariant variants costs."""
        rows = self.run.invariance
        return list(choosing.invariance_prices(rows, self.run.records))

    @cached_property
    def comparison(self) -> Comparison | Missing:
        """This run case by case beside the one before, or why they can't be compared:
        the one before may be damaged, and that must not stop this one's report.
        """
        if self.before is None:
            return Missing("there is no run before it")
        try:
            if not across_runs.are_comparable(self.before, self.run):
                return Missing(
                    "the run before it is of another machine, toolchain or profile"
                )
            return across_runs.compare(self.before, self.run)
        except Exception as error:
            return Missing(f"it can't be compared ({texts.error_line(error)})")


def judge(run: Run, before: Run | None = None) -> Findings:
    """The findings on a run; `before` is an earlier one to compare it with."""
    return Findings(run, before)
