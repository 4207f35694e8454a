"""`bench run`: plan, measure through pytest-benchmark, store, report, and say by the exit code how it went."""
from __future__ import annotations

import contextlib
import datetime
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench import history, pytest_run, records, report, study, units
from bench.cases import CLOCKS, Plan, plan
from bench.errors import UsageError
from bench.folders import new_folder, remove_if_empty
from bench.measure.isolation import Isolation, WorkerLost
from bench.pytest_run import BROKEN_CASES, CLEAN, INTERRUPTED
from bench.records import BROKEN, MEASURED, NOT_REACHED, OURS
from bench.report import ci, junit, run_in_ci
from bench.verdicts import memory_law

NOTHING_MEASURED = 3
DEFAULT_FOLDER, DEFAULT_HISTORY = Path("reports", "runs"), history.DEFAULT_FOLDER
_NOT_COMPILED = ([], "the run was stopped")


def run(profile: str, device: str, selection: str, folder: Path = DEFAULT_FOLDER, clocks: Sequence[str] = (),
        deadline_s: float | None = None, history_folder: Path = DEFAULT_HISTORY) -> int:
    """Measure the profile's cases that match `selection` (pytest's -k), write the report under `folder`.

    Args:
        clocks: names of the clocks to time by, the one that ranks first; by default all of the device's.
        deadline_s: the longest that one step of a case may take; by default the profile's.
        history_folder: where the history is that the run is appended to.

    Raises:
        UsageError: before anything is measured, if the call, the environment or the folder is not usable.
    """
    environment = _require_environment()
    try:
        device = environment.resolve_device(device)
        the_plan = plan(profile, device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen = tuple(clocks or CLOCKS[device])
    if unknown := [name for name in chosen if name not in CLOCKS[device]]:
        raise UsageError(f"{unknown[0]!r} is no clock of {device}: use {', '.join(CLOCKS[device])}")
    machine = environment.machine(device)
    run_folder = new_folder(folder, machine["device_name"])
    isolation = Isolation(device, deadline_s or the_plan.profile.deadline_s)
    try:
        started = datetime.datetime.now(datetime.timezone.utc)
        document, ended = pytest_run.measure(the_plan, isolation, machine, selection, chosen)
        about = document[OURS]
        compiled, capacity, audited, noise = _NOT_COMPILED, (None, []), [], None
        if ended == CLEAN:
            try:
                audited = _audit(isolation, the_plan, document)  # by the worker that has compiled the variants
                if not selection:
                    noise = study.noise_of(isolation, profile)
                capacity = _confirm_memory(isolation, the_plan, document)
                isolation.close()
                compiled = _static_facts(the_plan, about["cases"])
            except KeyboardInterrupt:
                ended = INTERRUPTED
        about |= {
            "started": started.isoformat(timespec="seconds"),
            "seconds": (datetime.datetime.now(datetime.timezone.utc) - started).total_seconds(),
            "partial": ended != CLEAN, "compiled": compiled[0], "not_compiled": compiled[1],
            "room_bytes": capacity[0], "capacity": capacity[1], "audit": audited,
            "noise": noise, "sweep": study.stored_sweep() if noise else None,
        }
        _store(document, run_folder, history_folder)
    finally:
        isolation.close()
        remove_if_empty(run_folder)
    return _exit_code(about["cases"], ended, audited)


def _require_environment():
    """bench.measure.environment, if what it and the measuring need is installed."""
    try:
        from bench.measure import environment
    except ImportError as error:
        raise UsageError(f"{error}: install what requirements.txt lists (`make install`)") from error
    missing = environment.missing_packages()
    if missing:
        raise UsageError(f"not installed: {', '.join(missing)}; install what requirements.txt lists (`make install`)")
    return environment


def _audit(isolation: Isolation, the_plan: Plan, document: dict) -> list[dict]:
    """The numerics audit of the run's variants that can run here, and of the negative controls of their ops."""
    from bench.measure import audit

    chosen = {case["id"] for case in document[OURS]["cases"]}
    variants = {case.variant.id: case.variant for case in the_plan.cases if case.id in chosen and not case.refusal}
    jobs = audit.jobs(list(variants.values()))
    if jobs:
        print("the numerics of the statistics", file=sys.stderr)
    rows = []
    for variant, dtype in jobs:
        try:
            rows += isolation.call("audit", variant.op.name, variant.name, dtype)
        except WorkerLost as lost:
            rows.append(audit.row(variant, dtype, failed=f"{lost} ({lost.step})"))
        except RuntimeError as error:
            rows.append(audit.row(variant, dtype, failed=f"Batchline itself failed: {error}"))
    return rows


def _confirm_memory(isolation: Isolation, the_plan: Plan, document: dict) -> tuple[int | None, list[dict]]:
    """What the device has room for, and for each variant whether the largest batch that its memory law predicts is it.

    Of the scenarios of a variant that one is tried whose call at that batch takes the least time, if that is within the
    profile's bound.
    """
    longest_s = the_plan.profile.confirm_s
    try:
        if not longest_s:
            return isolation.call("room"), []
        isolation.close()
        # A worker of its own: the heap of the last one is full of what it has kept, and these deadlines are shorter.
        with contextlib.closing(Isolation(the_plan.device, 4 * longest_s)) as fresh:
            room = fresh.call("room")
            if room is None:
                return room, []
            print("confirming the memory laws", file=sys.stderr)
            tried_in = min(room, the_plan.profile.confirm_bytes or room) if the_plan.device == "cpu" else room
            return room, list(_trials(fresh, records.parse(document), tried_in, longest_s))
    except (WorkerLost, RuntimeError):
        return None, []


def _trials(isolation: Isolation, the_run: records.Run, room: int, longest_s: float) -> Iterator[dict]:
    for growth in memory_law.quickest(memory_law.growths(the_run.records), room):
        row = {"op": growth.op, "variant": growth.variant, "scenario": growth.scenario, "dtype": growth.dtype}
        expected_s = growth.seconds_at(growth.largest_batch(room))
        if expected_s > longest_s:
            yield row | {"why_not": f"a call of that size would take about {units.duration(expected_s)}"}
            continue
        try:
            yield row | isolation.call("capacity", *row.values(), growth.total, room)
        except (WorkerLost, RuntimeError) as error:
            yield row | {"why_not": str(error)}


def _static_facts(the_plan: Plan, cases: list[dict]) -> tuple[list[dict], str | None]:
    """The static facts of the run's GPU variants, and why they are not complete, if so."""
    from bench.measure import static_facts

    print("the compiled facts of the GPU variants, then the report", file=sys.stderr)
    chosen = {case["id"] for case in cases}
    variants = {case.variant.id for case in the_plan.cases if case.id in chosen}
    facts = static_facts.facts(static_facts.jobs(variants, the_plan.profile.dtypes["cuda"]))
    return facts.rows, facts.incomplete


def _store(document: dict, folder: Path, history_folder: Path) -> None:
    """Write run.json, then the reports; if the folder fails by now, keep the measurements elsewhere and say where."""
    try:
        records.save(folder, document)
        the_run = records.load(folder)
        notes = report.write(the_run, folder)
        (folder / junit.FILE_NAME).write_text(junit.junit_of_run(the_run), encoding="utf-8")
    except OSError as error:
        rescue = Path(tempfile.mkdtemp(prefix="batchline-"))
        records.save(rescue, document)
        raise UsageError(f"can't write to {folder} any more ({error.strerror}): the measurements are in {rescue}, and "
                         f"`python -m bench report {rescue}` makes the report there") from error
    print(report.terminal(the_run))
    for note in notes:
        print(note)
    print(f"report: {folder / report.FILE_NAME}")
    try:
        history.append(the_run, history_folder)
    except UsageError as error:
        print(f"batchline: {error}", file=sys.stderr)
    markdown, problems = run_in_ci.of_run(the_run)
    ci.step_summary(markdown)
    ci.announce("error", problems)


def _exit_code(cases: list[dict], ended: int, audited: list[dict]) -> int:
    statuses = {case["status"] for case in cases}
    if MEASURED not in statuses:
        return NOTHING_MEASURED
    if ended != CLEAN:
        return ended
    broken = statuses.intersection((*BROKEN, NOT_REACHED))
    return BROKEN_CASES if broken or any(row["whose"] == "ours" and row["impossible"] for row in audited) else CLEAN
