"""What `batchline dispatch` is made of: the tables that a run gives, and the calls that
they are tried by.

The new tables are tried first, and take their places if the calls bear them out.
Nothing on disk changes before `write`, and a table appears there whole: whatever ends
the command leaves the old ones.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from batchline.bench import device_tables, units
from batchline.bench.cases import CLOCKS, Plan
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import Task
from batchline.bench.statuses import MEASURED, case_id, is_broken
from batchline.bench.store.records import Run
from batchline.bench.verdicts.choosing import Called, measured_gains
from batchline.kernels.device_files import stored
from batchline.kernels.dispatch import DISPATCHED, is_candidate, why_stale

LOOKS = 3  # in as many processes; what is refuted in each of them is
Problem = tuple[str, str, str, int]  # as bench.cases.Case.problem


class NewTables:
    """The table of each op that a run has timed on some of `problems`, by the op's
    name, and none of any other op.

    It has those problems' entries, and what the op's present table has of others, if
    that is of the same libraries. `folder` is where the tables are; by default beside
    the kernels.
    """

    def __init__(
        self,
        run: Run,
        problems: Collection[Problem],
        the_plan: Plan,
        folder: Path | None = None,
    ):
        self._plan, self._folder = the_plan, folder
        self._described = {
            problem.key: problem
            for op in the_plan.ops.values()
            for problem in op.problems
        }
        self._header = {
            **device_tables.provenance(run.machine),
            "clock": CLOCKS[the_plan.device][0],
            "measured": run.started[:10],
            "profile": run.plan.profile,
        }
        self.entries: dict[str, list[dict]] = {}
        self.left_out = 0  # problems that the run has timed and that are not called
        candidates = {
            name: [
                variant.name
                for variant in op.variants.values()
                if is_candidate(variant) and not variant.broken
            ]
            for name, op in the_plan.ops.items()
        }
        for one in measured_gains(run.records, run.baselines, candidates):
            problem = one.op, one.scenario, one.dtype, one.batch
            for name, gain in one.not_believed.items():
                print(
                    f"{one.scenario}/{one.dtype}/B{one.batch} of {one.op}: {units.ratio(gain)} by {name} is not "
                    "believed, and not taken: run `make bench` again",
                    file=sys.stderr,
                )
            if problem in problems:
                self.entries.setdefault(one.op, []).append(
                    self._entry(problem) | {"faster": dict(one.faster)}
                )
            else:
                self.left_out += 1
        for op, fresh in self.entries.items():
            self.entries[op] = [*self._present(op, fresh), *fresh]

    def config(self, op: str) -> dict:
        """What a call of the op is told to go by (kernels.op.OwnCall)."""
        return {"table": {"winners": self.entries[op]}} if op in self.entries else {}

    def gain(self, one: Called) -> float | None:
        """How much the table says that a call's own variant gains there; None where it
        is not the table's choice.
        """
        own = self._own(one.problem)
        return own[0]["faster"].get(one.variant) if own else None

    def chooses(self, problem: Problem) -> bool:
        """Whether the table has something faster than the baseline for this very
        problem.
        """
        return any(entry["faster"] for entry in self._own(problem))

    def take_out(self, one: Called) -> bool:
        """Take a call's choice out of its table, for its own sizes; whether there was
        one.
        """
        if one.op not in self.entries or one.variant == one.baseline:
            return False
        own = self._own(one.problem)
        if not own:  # it was chosen for what is near
            own = [self._entry(one.problem)]
            self.entries[one.op] += own
        for entry in own:
            entry["faster"].pop(one.variant, None)
        return True

    def write(self, op: str, out: Path | None = None) -> None:
        """Put the op's table in the place of the present one, or into the folder `out`
        under the op's name.

        Raises:
            UsageError: if it can't be written.
        """
        path, entries = out / f"{op}.json" if out else self._path(op), self.entries[op]
        rows = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
        device_tables.write(path, self._header, f"[\n{rows}\n ]")
        better = sum(bool(entry["faster"]) for entry in entries)
        print(
            f"{op}: {better} of {len(entries)} problems have a variant that beats the baseline: {path}",
            file=sys.stderr,
        )

    def _present(self, op: str, fresh: Collection[Mapping]) -> list[dict]:
        before = stored(self._path(op))
        keys = {_key(entry) for entry in fresh}
        return [
            dict(entry) | {"faster": dict(entry["faster"])}
            for entry in before.get("winners", ())
            if _key(entry) not in keys and not why_stale(before)
        ]

    def _own(self, problem: Problem) -> list[dict]:
        key = _key(self._entry(problem))
        return [
            entry for entry in self.entries.get(problem[0], ()) if _key(entry) == key
        ]

    def _path(self, op: str) -> Path:
        return device_tables.path_of(
            self._plan.ops[op], "dispatch", self._plan.device, self._folder
        )

    def _entry(self, problem: Problem) -> dict:
        """A problem as a table has it, with nothing that is faster."""
        one = self._described[problem]
        return {
            "problem": f"{one.scenario}/{one.dtype}/B{one.batch}",
            "traits": one.traits,
            "sizes": list(one.sizes),
            "faster": {},
        }


def _key(entry: Mapping) -> tuple:
    return entry["traits"], *entry["sizes"]


class Calls:
    """Times ops' calls in turns with their baselines, each look at some problems in a
    fresh process.
    """

    def __init__(self, the_plan: Plan):
        self._plan, self._profile, self._device = (
            the_plan,
            the_plan.profile,
            the_plan.device,
        )
        self.broken = False  # whether a call was wrong, failed, crashed…
        self.untimed: dict[Problem, str] = (
            {}
        )  # the status of what could not be timed when it was last tried

    def problems(self) -> list[Problem]:
        """The profile's, where the op's call can be timed."""
        return [
            case.problem
            for case in self._plan.cases
            if case.variant.is_baseline and not case.refusal
        ]

    def time(
        self, problems: Iterable[Problem], tables: NewTables | None
    ) -> dict[Problem, Called]:
        """What each call takes, by the tables on disk or by those; what could not be
        timed is said and left out.
        """
        with contextlib.closing(
            Isolation(self._device, self._profile.deadline_s)
        ) as isolation:
            timed = (
                self._called(
                    isolation, problem, tables.config(problem[0]) if tables else {}
                )
                for problem in problems
            )
            return {one.problem: one for one in timed if one}

    def confirm(
        self,
        called: dict[Problem, Called],
        tables: NewTables | None,
        is_refuted: Callable[[Called], bool],
    ) -> list[Called]:
        """Those that are refuted, and again in each fresh process; their last look is
        put in.
        """
        suspects = [one for one in called.values() if is_refuted(one)]
        for _ in range(LOOKS - 1):
            if suspects:
                again = self.time([one.problem for one in suspects], tables)
                called |= again
                suspects = [one for one in again.values() if is_refuted(one)]
        return suspects

    def _called(
        self, isolation: Isolation, problem: Problem, config: dict
    ) -> Called | None:
        op, profile = self._plan.ops[problem[0]], self._profile
        call, baseline = (
            case_id(problem[0], name, *problem[1:])
            for name in (DISPATCHED, op.baseline)
        )
        looked_up = f"{baseline} behind a look-up"
        effort = Effort(profile.precision, profile.sampling_s)
        outcomes = isolation.measure(
            Task(
                *problem,
                ((call, DISPATCHED), (baseline, op.baseline), (looked_up, DISPATCHED)),
                CLOCKS[self._device][:1],
                effort,
                effort,
                profile.warm_up_s,
                longest_call_s=profile.longest_call_s,
                configs={
                    looked_up: {"variant": op.baseline, **config},
                    **({call: config} if config else {}),
                },
            )
        )
        self.untimed.pop(problem, None)
        for label, outcome in outcomes.items():
            if outcome.status != MEASURED:
                print(f"{label}: {outcome.status}: {outcome.reason}", file=sys.stderr)
                self.broken = self.broken or is_broken(outcome.status, outcome.reason)
                self.untimed[problem] = outcome.status
                return None
        facts = outcomes[call].facts
        return Called(
            *problem,
            op.baseline,
            facts["config"]["variant"],
            facts["config_source"],
            *(outcomes[label].samples_s for label in (call, baseline, looked_up)),
        )
