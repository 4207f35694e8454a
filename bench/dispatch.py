"""`bench dispatch`: a run's evidence as the tables by which an op's call finds its variant, and what the call costs.

Every problem of the profile is then called through its op, in turns with the op's baseline, in a process of its own; a
choice of fresh tables that is slower than the baseline there is taken out of them again.
"""
from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from bench import device_tables, records
from bench.cases import CLOCKS, Plan, broken_lines, plan
from bench.declared import Problem as Described
from bench.errors import UsageError
from bench.measure import catalogue, environment
from bench.measure.isolation import Isolation, WorkerLost
from bench.measure.sampling import Effort
from bench.measure.task import Task
from bench.records import BROKEN, MEASURED, Run, case_id
from bench.report import dispatch as report
from bench.report.fitting import wrapped
from bench.verdicts.dispatch import Called, measured
from kernels.device import device_name
from kernels.device_files import file_for, stored
from kernels.dispatch import DISPATCHED, is_candidate, why_stale

CLEAN, REFUTED, NOT_MEASURED = 0, 1, 3
_LOOKS = 3     # in as many processes; what is slower in each of them is slower
_REMOVALS = 3  # of a problem's choices, the best first, before it is left as it is
_HEADER = ("device", "versions", "revision", "clock", "measured", "profile")
Problem = tuple[str, str, str, int]  # as bench.cases.Case.problem


def dispatch(run_folder: Path | None, profile: str, device: str, selection: str) -> int:
    """Write the tables of a run of this machine, if one is given, and call every problem of the profile by them.

    Args:
        selection: call only problems that have this in their id.

    Returns:
        0, 1 where a call is slower than the baseline and the look-up, or fails, 3 where nothing could be measured.

    Raises:
        UsageError: for an unknown profile, a run that is no evidence for this machine, or a file that can't be written.
        ValueError: for an unknown device, no such run, or a damaged table.
    """
    device = environment.resolve_device(device)
    run = _evidence(run_folder, device) if run_folder else None
    the_plan = plan(profile, device)
    broken = broken_lines(the_plan)
    print(*broken, sep="\n", end="\n" if broken else "", file=sys.stderr)
    calls = _Calls(the_plan)
    try:
        with _put_back_unless_called(the_plan):
            if run:
                _write(run, the_plan)
            called = calls.time(problem for problem in calls.problems() if selection in _words(problem))
            slower = calls.confirm(called)
            for _ in range(_REMOVALS if run else 0):
                if removed := [one for one in slower if _take_out(one, the_plan)]:
                    print(f"{len(removed)} choices are slower than the baseline in each of {_LOOKS} processes: "
                          "taken out", file=sys.stderr)
                    called |= calls.time(one.problem for one in removed)
                    slower = calls.confirm(called)
    except (WorkerLost, RuntimeError) as error:
        print(f"batchline: the calls can't be measured: {error}; the tables are as they were", file=sys.stderr)
        return NOT_MEASURED
    print(report.terminal(list(called.values()), slower))
    for line in _stale(the_plan):
        print(wrapped(line))
    return NOT_MEASURED if not called else REFUTED if slower or calls.broken or broken else CLEAN


@contextlib.contextmanager
def _put_back_unless_called(the_plan: Plan) -> Iterator[None]:
    """Tables that were not called to the end are none: whatever ends the block, Ctrl-C too, the old ones are back."""
    paths = [file_for(op.folder, "dispatch", the_plan.device) for op in the_plan.ops.values()]
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, content in before.items():
            path.unlink(missing_ok=True) if content is None else path.write_bytes(content)
        stored.cache_clear()
        raise


class _Calls:
    """Times ops' calls in turns with their baselines, each look at some problems in a fresh process."""

    def __init__(self, the_plan: Plan):
        self._plan, self._profile, self._device = the_plan, the_plan.profile, the_plan.device
        self.broken = False  # whether a call was wrong, failed, crashed…

    def problems(self) -> list[Problem]:
        """The profile's, where the op's call can be timed."""
        return [case.problem for case in self._plan.cases if case.variant.is_baseline and not case.refusal]

    def time(self, problems: Iterable[Problem]) -> dict[Problem, Called]:
        """What each call takes; what could not be timed is said and left out."""
        with contextlib.closing(Isolation(self._device, self._profile.deadline_s)) as isolation:
            found = (self._called(isolation, problem) for problem in problems)
            return {one.problem: one for one in found if one}

    def confirm(self, called: dict[Problem, Called]) -> list[Called]:
        """Those that are slower than the baseline, and again in each fresh process; their last look is put in."""
        suspects = [one for one in called.values() if one.is_slower]
        for _ in range(_LOOKS - 1):
            if suspects:
                again = self.time(one.problem for one in suspects)
                called |= again
                suspects = [one for one in again.values() if one.is_slower]
        return suspects

    def _called(self, isolation: Isolation, problem: Problem) -> Called | None:
        op, profile = self._plan.ops[problem[0]], self._profile
        call, baseline = (case_id(problem[0], name, *problem[1:]) for name in (DISPATCHED, op.baseline))
        looked_up = f"{baseline} behind a look-up"
        effort = Effort(profile.precision, profile.sampling_s)
        outcomes = isolation.measure(Task(
            *problem, ((call, DISPATCHED), (baseline, op.baseline), (looked_up, DISPATCHED)), CLOCKS[self._device][:1],
            effort, effort, profile.warm_up_s, longest_call_s=profile.longest_call_s,
            configs={looked_up: {"variant": op.baseline}}))
        for label, outcome in outcomes.items():
            if outcome.status != MEASURED:
                print(f"{label}: {outcome.status}: {outcome.reason}", file=sys.stderr)
                self.broken = self.broken or outcome.status in BROKEN
                return None
        facts = outcomes[call].facts
        return Called(*problem, op.baseline, facts["config"]["variant"], facts["config_source"],
                      *(outcomes[label].samples_s for label in (call, baseline, looked_up)))


def _evidence(folder: Path, device: str) -> Run:
    """The run, if it is of this machine and these versions.

    Raises:
        UsageError: if it is not.
    """
    run = records.load(folder)
    clocks = {record.facts["clock"] for record in run.records if record.status == MEASURED}
    for what, theirs, ours in (("device", {run.machine["device_name"]}, device_name(device)),
                               ("clock", clocks, CLOCKS[device][0])):
        if theirs != {ours}:
            raise UsageError(f"{folder} has another {what} ({', '.join(sorted(theirs)) or 'none'}, and this is {ours}"
                             "): tables are made where they are used, from a run of `make bench` there")
    if why := why_stale(run.machine):
        raise UsageError(f"{folder} is no evidence for what is installed now: {why}; run `make bench` again")
    return run


def _write(run: Run, the_plan: Plan) -> None:
    """Write the table of each op that the run has timed; what an older one has of other problems stays, if it is of
    the same libraries."""
    header = {"device": run.machine["device_name"], "versions": run.machine["versions"],
              "revision": run.machine["revision"], "clock": CLOCKS[the_plan.device][0],
              "measured": run.about["started"][:10], "profile": run.about["profile"]}
    rows: dict[str, list[dict]] = {}
    candidates = {name: [variant.name for variant in op.variants.values() if is_candidate(variant)]
                  for name, op in the_plan.ops.items()}
    problems = _described(run)
    for one in measured(run.records, run.about["baselines"], candidates):
        problem = problems.get((one.op, one.scenario, one.dtype, one.batch))
        if problem:
            rows.setdefault(one.op, []).append(_entry(problem) | {"faster": one.faster})
    for name, entries in rows.items():
        path = file_for(the_plan.ops[name].folder, "dispatch", the_plan.device)
        before = stored(path)
        fresh = {_key(entry) for entry in entries}
        kept = [entry for entry in before.get("winners", ()) if _key(entry) not in fresh and not why_stale(before)]
        _store(path, header, [*kept, *entries])
        better = sum(bool(entry["faster"]) for entry in entries)
        print(f"{name}: {better} of {len(entries)} problems have a variant that beats the baseline: {path}",
              file=sys.stderr)


def _described(run: Run) -> dict[Problem, Described]:
    """The run's problems that there are still, as their ops describe them."""
    asked = {(record.op, record.scenario, record.dtype, record.batch): None for record in run.records}
    ops = catalogue.read({"problems": list(asked)}).ops
    return {problem.key: problem for op in ops.values() for problem in op.problems}


def _entry(problem: Described) -> dict:
    """A problem as a table has it, with nothing that is faster."""
    return {"problem": f"{problem.scenario}/{problem.dtype}/B{problem.batch}", "traits": problem.traits,
            "sizes": list(problem.sizes), "faster": {}}


def _key(entry: Mapping) -> tuple:
    return entry["traits"], *entry["sizes"]


def _words(problem: Problem) -> str:
    op, scenario, dtype, batch = problem
    return f"{op}/{scenario}/{dtype}/B{batch}"


def _take_out(one: Called, the_plan: Plan) -> bool:
    """Take a call's choice out of its table, for its own sizes; whether there was one."""
    op = the_plan.ops[one.op]
    if one.variant == op.baseline:
        return False
    path = file_for(op.folder, "dispatch", the_plan.device)
    document = stored(path)
    problem = _entry(next(problem for problem in op.problems if problem.key == one.problem))
    entries = [dict(entry) for entry in document["winners"]]
    own = [entry for entry in entries if _key(entry) == _key(problem)]
    if not own:  # it was chosen for what is near
        own = [problem]
        entries += own
    for entry in own:
        entry["faster"] = {name: gain for name, gain in entry["faster"].items() if name != one.variant}
    _store(path, document, entries)
    return True


def _store(path: Path, header: Mapping, entries: Sequence[Mapping]) -> None:
    rows = ",\n".join(f"  {json.dumps(entry)}" for entry in entries)
    device_tables.write(path, {name: header[name] for name in _HEADER}, f"[\n{rows}\n ]")


def _stale(the_plan: Plan) -> list[str]:
    tables = {name: stored(file_for(op.folder, "dispatch", the_plan.device)) for name, op in the_plan.ops.items()}
    return [f"the table of {name} is not used: {why_stale(table)}; `make dispatch RUN=` replaces it by a new run's"
            for name, table in tables.items() if table and why_stale(table)]
