"""`bench run`: plan, measure through pytest-benchmark, store, report, and say by the exit code how it went."""
from __future__ import annotations

import datetime
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import besides, history, pytest_run, records, report
from bench.cases import CLOCKS, plan
from bench.errors import UsageError
from bench.folders import new_folder, remove_if_empty
from bench.measure.isolation import Isolation
from bench.pytest_run import BROKEN_CASES, CLEAN, INTERRUPTED
from bench.records import BROKEN, MEASURED, NOT_REACHED, OURS
from bench.report import ci, junit, run_in_ci

NOTHING_MEASURED = 3
DEFAULT_FOLDER, DEFAULT_HISTORY = Path("reports", "runs"), history.DEFAULT_FOLDER


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
        the_plan = plan(profile, device, deadline_s)
    except ValueError as error:
        raise UsageError(str(error)) from error
    for one in the_plan.broken:
        print(one, file=sys.stderr)
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
        about |= besides.NOTHING
        if ended == CLEAN:
            try:
                for found in besides.looks(isolation, the_plan, document, machine):
                    about |= found
            except KeyboardInterrupt:
                ended = INTERRUPTED
        about |= {"started": started.isoformat(timespec="seconds"), "partial": ended != CLEAN,
                  "seconds": (datetime.datetime.now(datetime.timezone.utc) - started).total_seconds()}
        _store(document, run_folder, history_folder)
    finally:
        isolation.close()
        remove_if_empty(run_folder)
    return _exit_code(about, ended)


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
    print(report.terminal(the_run, report.before(the_run, folder)))
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


def _exit_code(about: dict, ended: int) -> int:
    statuses = {case["status"] for case in about["cases"]}
    if MEASURED not in statuses:
        return NOTHING_MEASURED
    if ended != CLEAN:
        return ended
    broken = about["broken_files"] or statuses.intersection((*BROKEN, NOT_REACHED))
    impossible = any(row["whose"] == "ours" and row["impossible"] for row in about["audit"])
    return BROKEN_CASES if broken or impossible else CLEAN
