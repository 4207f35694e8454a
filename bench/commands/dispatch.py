"""`batchline dispatch`: a run's evidence as the tables by which an op's call finds its
variant, and what the call costs.

Every problem of the profile is called through its op by the new tables, in turns with
the op's baseline, in a process of its own; a choice that is slower than the baseline
there, or far from what it gained in the run, is taken out. Then each table takes the
place of the old one, if every call of its op was verified.

What `batchline dispatch` is made of: the tables that a run gives, and the calls that
they are tried by.

The new tables are tried first, and take their places if the calls bear them out.
Nothing on disk changes before `write`, and a table appears there whole: whatever ends
the command leaves the old ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from batchline.bench import device_tables, units
from batchline.bench.case_ids import case_id
from batchline.bench.cases import CLOCKS, Plan
from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.measure import stand_in
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.isolation import Isolation
from batchline.bench.measure.worker.task import Task
from batchline.bench.statuses import MEASURED, NOT_HERE, UNSUPPORTED, is_broken
from batchline.bench.store import run_json
from batchline.bench.store.files import blamed_on
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


HELP = "a run's winners as the tables that an op's call looks up, and what a call costs"
SAMPLE = """
None of 197 calls is slower than the baseline by more than the look-up.

op           problems    not         speed-up    largest    look-up     in the    at most
                         baseline                           at least    middle
-----------  ----------  ----------  ----------  ---------  ----------  --------  ------------
grad_reduce  30          8           1.19x       2.04x      1.46 µs     2.70 µs   39% of a call
"""
EXITS = {
    ExitCode.CLEAN: "every call is as fast as the baseline and the look-up",
    ExitCode.FAULT: "a call is slower than the baseline by more than the look-up, or "
    "fails",
    ExitCode.USAGE: "no such case, or the run is no evidence for this machine",
    ExitCode.NOT_MEASURED: "nothing could be measured, or a table was left as it is "
    "because the new one could not be verified",
    ExitCode.STOPPED: "stopped by Ctrl-C; the tables are as they were",
}
TABLES = "dispatch"  # the folder in the one of a stand-in's run that has its tables
_REMOVALS = 3  # of a problem's choices, the best first


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_plan(parser)
    _arguments.add_selection(
        parser,
        "only problems of which a case matches, as in pytest -k; the tables of other "
        "ops are not touched",
    )
    _arguments.add_run(
        parser,
        "a stored run: call the problems of its profile by its tables, take out what "
        "is slower, and write them (default: call by the tables that there are)",
    )
    _arguments.add_into(
        parser, "where to write the tables (default: kernels/<op>/dispatch)"
    )


def run(options: argparse.Namespace) -> int:
    return dispatch(
        options.run, options.profile, options.device, options.k, options.into
    )


def dispatch(
    run_folder: Path | None,
    profile: str,
    device: str,
    selection: str,
    out: Path | None = None,
) -> int:
    """Call problems of the profile; by the tables of a run of this machine, if one is
    given, which are then written.

    Args:
        profile: whose problems are called where no run is given, which has its own.
        selection: only problems of which a case matches (pytest's -k); the tables of
        other ops are not touched. out: where the tables are written, each as its op is
        called; by default where calls look them up.

    Returns:
        The exit code, as EXITS has it.

    Raises:
        UsageError: for an unknown profile, no such problem, a run that is no evidence
            for this machine or for these problems, or a file that can't be written.
        ValueError: for an unknown device, no such run, or a damaged table.
    """
    from batchline.bench.cases import broken_lines, plan
    from batchline.bench.measure.machine import environment
    from batchline.bench.measure.worker.task import WorkerLost
    from batchline.bench.report import of_commands as report
    from batchline.bench.report.render.terminal import wrapped
    from batchline.bench.selection import selected

    device = environment.resolve_device(device)
    run = _evidence(run_folder, device) if run_folder else None
    the_plan = plan(run.plan.profile if run else profile, device)
    broken = broken_lines(the_plan)
    for line in broken:
        print(line, file=sys.stderr)
    calls = Calls(the_plan)
    chosen = set(
        selected(
            [case.id for case in the_plan.cases],
            selection,
            f"of profile {the_plan.profile.name}",
        )
    )
    named = {case.problem for case in the_plan.cases if case.id in chosen}
    problems = [problem for problem in calls.problems() if problem in named]
    if not problems:
        raise UsageError(
            f"K={selection!r} matches no problem of which the baseline can be timed here"
        )
    tables = _tables(run, run_folder, problems, the_plan) if run else None
    try:
        called, refuted = _verified(calls, problems, tables)
    except (WorkerLost, RuntimeError) as error:
        print(
            f"batchline: the calls can't be measured: {error}; the tables are as they were",
            file=sys.stderr,
        )
        return ExitCode.NOT_MEASURED
    print(
        report.calls_on_terminal(
            list(called.values()), [one for one in refuted if one.is_slower]
        )
    )
    all_written = _write(tables, problems, calls, refuted, out) if tables else True
    for line in _stale(the_plan):
        print(wrapped(line))
    if called and (refuted or calls.broken or broken):
        return ExitCode.FAULT
    return ExitCode.CLEAN if called and all_written else ExitCode.NOT_MEASURED


def _tables(
    run: Run, folder: Path, problems: Sequence[Problem], the_plan: Plan
) -> NewTables:

    with blamed_on(run_json.path_in(folder)):
        tables = NewTables(
            run, set(problems), the_plan, folder / TABLES if stand_in.is_on() else None
        )
    if not tables.entries:
        raise UsageError(
            f"{folder} has timed no baseline of the problems that are called: name another run, or K="
        )
    if tables.left_out:
        print(
            f"{tables.left_out} problems of the run are not among those that its profile and K name: they are not "
            "called, and no table gets them",
            file=sys.stderr,
        )
    return tables


def _verified(
    calls: Calls, problems: Sequence[Problem], tables: NewTables | None
) -> tuple[dict[Problem, Called], list[Called]]:
    """What was called, and what is refuted of it; choices that are refuted have been
    taken out of `tables`.
    """

    def is_refuted(one: Called) -> bool:
        gain = tables.gain(one) if tables else None
        return one.is_slower or (gain is not None and one.falls_short_of(gain))

    called = calls.time(problems, tables)
    refuted = calls.confirm(called, tables, is_refuted)
    for _ in range(_REMOVALS if tables else 0):
        if removed := [one for one in refuted if tables.take_out(one)]:
            print(
                f"{len(removed)} choices are slower than the baseline, or far from what the run says they gain, in "
                f"each of {LOOKS} processes: taken out",
                file=sys.stderr,
            )
            called |= calls.time([one.problem for one in removed], tables)
            refuted = calls.confirm(called, tables, is_refuted)
    return called, refuted


def _write(
    tables: NewTables,
    problems: Sequence[Problem],
    calls: Calls,
    refuted: Sequence[Called],
    out: Path | None,
) -> bool:
    """Write the tables that all calls of their ops bear out; whether those are all."""
    all_written = True
    for op in tables.entries:
        open_ids = [
            _id(problem)
            for problem in problems
            if problem[0] == op
            and problem in calls.untimed
            and (
                tables.chooses(problem)
                or calls.untimed[problem] not in (NOT_HERE, UNSUPPORTED)
            )
        ]
        open_ids += [
            _id(one.problem)
            for one in refuted
            if one.op == op and one.variant != one.baseline
        ]
        if not open_ids:
            tables.write(op, out)
            continue
        all_written = False
        more = f" and {len(open_ids) - 1} more" if len(open_ids) > 1 else ""
        print(
            f"batchline: the table of {op} is as it was, for the new one could not be verified: {open_ids[0]}{more}",
            file=sys.stderr,
        )
    return all_written


def _evidence(folder: Path, device: str) -> Run:
    """The run, if it is of this machine and these versions.

    Raises:
        UsageError: if it is not.
    """
    run = run_json.load(folder)
    with blamed_on(run_json.path_in(folder)):
        _require_of_here(run, folder, device)
    return run


def _require_of_here(run: Run, folder: Path, device: str) -> None:
    from batchline.bench.cases import CLOCKS, PROFILES
    from batchline.bench.store.history import why_unusable
    from batchline.kernels.device import device_name
    from batchline.kernels.dispatch import why_stale

    if run.plan.profile not in PROFILES:
        raise ValueError(f"it is of a profile {run.about['profile']!r}")
    if why := why_unusable(run, made_up_too=stand_in.is_on()):
        raise UsageError(f"{folder} is no evidence: {why}; run `make bench` again")
    clocks = {
        record.facts["clock"] for record in run.records if record.status == MEASURED
    }
    for what, theirs, ours in (
        ("device", {run.machine["device_name"]}, device_name(device)),
        ("clock", clocks, CLOCKS[device][0]),
    ):
        if theirs != {ours}:
            raise UsageError(
                f"{folder} has another {what} ({', '.join(sorted(theirs)) or 'none'}, and this is {ours}"
                "): tables are made where they are used, from a run of `make bench` there"
            )
    if why := why_stale(run.machine):
        raise UsageError(
            f"{folder} is no evidence for what is installed now: {why}; run `make bench` again"
        )


def _id(problem: Problem) -> str:
    op, scenario, dtype, batch = problem
    return f"{op}/{scenario}/{dtype}/B{batch}"


def _stale(the_plan: Plan) -> list[str]:
    from batchline.kernels.device_files import file_for, stored
    from batchline.kernels.dispatch import why_stale

    tables = {
        name: stored(file_for(op.folder, "dispatch", the_plan.device))
        for name, op in the_plan.ops.items()
    }
    return [
        f"the table of {name} is not used: {why_stale(table)}; `batchline dispatch "
        "--run RUN` replaces it by a new run's"
        for name, table in tables.items()
        if table and why_stale(table)
    ]
