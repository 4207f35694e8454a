"""`batchline dispatch`: a run's evidence as the tables by which an op's call finds its
variant, and what the call costs.

Every problem of the profile is called through its op by the new tables, in turns with
the op's baseline, in a process of its own; a choice that is slower than the baseline
there, or far from what it gained in the run, is taken out. Then each table takes the
place of the old one, if every call of its op was verified.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from batchline.bench import records
from batchline.bench.cases import CLOCKS, PROFILES, Plan, broken_lines, plan
from batchline.bench.dispatch_tables import HeldBack, Problem
from batchline.bench.errors import UsageError
from batchline.bench.measure import environment, stand_in
from batchline.bench.measure.isolation import Isolation, WorkerLost
from batchline.bench.measure.sampling import Effort
from batchline.bench.measure.task import Task
from batchline.bench.records import (
    MEASURED,
    NOT_HERE,
    UNSUPPORTED,
    Run,
    case_id,
    is_broken,
)
from batchline.bench.report import dispatch as report
from batchline.bench.report.fitting import wrapped
from batchline.bench.selection import selected
from batchline.bench.stored_files import blamed_on
from batchline.bench.verdicts.dispatch import Called
from batchline.bench.verdicts.usable import why_unusable
from batchline.kernels.device import device_name
from batchline.kernels.device_files import file_for, stored
from batchline.kernels.dispatch import DISPATCHED, why_stale

CLEAN, REFUTED, NOT_MEASURED = 0, 1, 3
TABLES = "dispatch"  # the folder in the one of a stand-in's run that has its tables
_LOOKS = 3  # in as many processes; what is refuted in each of them is
_REMOVALS = 3  # of a problem's choices, the best first


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
        0; 1 where a call is slower than the baseline and the look-up, or fails; 3 where
        nothing could be measured, or a table is not written because some of its calls
        could not be verified.

    Raises:
        UsageError: for an unknown profile, no such problem, a run that is no evidence
            for this machine or for these problems, or a file that can't be written.
        ValueError: for an unknown device, no such run, or a damaged table.
    """
    device = environment.resolve_device(device)
    run = _evidence(run_folder, device) if run_folder else None
    the_plan = plan(run.about["profile"] if run else profile, device)
    broken = broken_lines(the_plan)
    for line in broken:
        print(line, file=sys.stderr)
    calls = _Calls(the_plan)
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
        return NOT_MEASURED
    print(
        report.terminal(
            list(called.values()), [one for one in refuted if one.is_slower]
        )
    )
    all_written = _write(tables, problems, calls, refuted, out) if tables else True
    for line in _stale(the_plan):
        print(wrapped(line))
    if called and (refuted or calls.broken or broken):
        return REFUTED
    return CLEAN if called and all_written else NOT_MEASURED


def _tables(
    run: Run, folder: Path, problems: Sequence[Problem], the_plan: Plan
) -> HeldBack:
    with blamed_on(records.path_in(folder)):
        tables = HeldBack(
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
    calls: _Calls, problems: Sequence[Problem], tables: HeldBack | None
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
                f"each of {_LOOKS} processes: taken out",
                file=sys.stderr,
            )
            called |= calls.time([one.problem for one in removed], tables)
            refuted = calls.confirm(called, tables, is_refuted)
    return called, refuted


def _write(
    tables: HeldBack,
    problems: Sequence[Problem],
    calls: _Calls,
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


class _Calls:
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
        self, problems: Iterable[Problem], tables: HeldBack | None
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
        tables: HeldBack | None,
        is_refuted: Callable[[Called], bool],
    ) -> list[Called]:
        """Those that are refuted, and again in each fresh process; their last look is
        put in.
        """
        suspects = [one for one in called.values() if is_refuted(one)]
        for _ in range(_LOOKS - 1):
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


def _evidence(folder: Path, device: str) -> Run:
    """The run, if it is of this machine and these versions.

    Raises:
        UsageError: if it is not.
    """
    run = records.load(folder)
    with blamed_on(records.path_in(folder)):
        _require_of_here(run, folder, device)
    return run


def _require_of_here(run: Run, folder: Path, device: str) -> None:
    if run.about["profile"] not in PROFILES:
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
    tables = {
        name: stored(file_for(op.folder, "dispatch", the_plan.device))
        for name, op in the_plan.ops.items()
    }
    return [
        f"the table of {name} is not used: {why_stale(table)}; `make dispatch RUN=` replaces it by a new run's"
        for name, table in tables.items()
        if table and why_stale(table)
    ]
