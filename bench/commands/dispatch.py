"""`batchline dispatch`: a run's evidence as the tables by which an op's call finds its
variant, and what the call costs.

Every problem of the profile is called through its op by the new tables, in turns with
the op's baseline, in a process of its own; a choice that is slower than the baseline
there, or far from what it gained in the run, is taken out. Then each table takes the
place of the old one, if every call of its op was verified.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import require_writable
from batchline.bench.measure import stand_in
from batchline.bench.statuses import MEASURED, NOT_HERE, UNSUPPORTED
from batchline.bench.store import run_json
from batchline.bench.store.files import blamed_on
from batchline.bench.store.records import Run

if TYPE_CHECKING:
    from batchline.bench.cases import Plan
    from batchline.bench.commands._dispatch_tables import Calls, NewTables, Problem
    from batchline.bench.verdicts.choosing import Called

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
    _arguments.add_ops(parser)
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
    from batchline.bench.commands._dispatch_tables import Calls
    from batchline.bench.measure.machine import environment
    from batchline.bench.measure.worker.task import WorkerLost
    from batchline.bench.report import of_commands as report
    from batchline.bench.report.render.terminal import wrapped
    from batchline.bench.selection import selected

    device = environment.resolve_device(device)
    if out:
        require_writable(out, "--into")
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
            f"-k {selection!r} matches no problem of which the baseline can be timed here"
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
    from batchline.bench.commands._dispatch_tables import NewTables

    with blamed_on(run_json.path_in(folder)):
        tables = NewTables(
            run, set(problems), the_plan, folder / TABLES if stand_in.is_on() else None
        )
    if not tables.entries:
        raise UsageError(
            f"{folder} has timed no baseline of the problems that are called: name another run, or other cases with -k"
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

    from batchline.bench.commands._dispatch_tables import LOOKS

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
