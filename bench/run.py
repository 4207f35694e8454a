"""`batchline run`: plan, measure through pytest-benchmark, publish, and say by the exit
code how it went.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from batchline.bench import besides, history, publishing, pytest_run, records, texts
from batchline.bench.budget import Schedule
from batchline.bench.cases import CLOCKS, plan, profile_named
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.folders import new_folder, remove_if_empty, require_writable
from batchline.bench.journal import Journal
from batchline.bench.measure.ahead import Ahead
from batchline.bench.measure.ahead.folder import VARIABLE as KERNELS
from batchline.bench.measure.ahead.folder import kernels_folder
from batchline.bench.measure.isolation import Isolation
from batchline.bench.pytest_run import BROKEN_CASES, CLEAN, INTERRUPTED, Measurer
from batchline.bench.records import MEASURED, NOT_REACHED, Run, is_broken
from batchline.bench.report import run_in_ci
from batchline.bench.stopping import put_off

NOTHING_MEASURED = 3
DEFAULT_FOLDER, DEFAULT_HISTORY = Path("reports", "runs"), history.DEFAULT_FOLDER


def run(
    profile: str,
    device: str,
    selection: str,
    folder: Path = DEFAULT_FOLDER,
    clocks: Sequence[str] = (),
    deadline_s: float | None = None,
    history_folder: Path = DEFAULT_HISTORY,
) -> int:
    """Measure the profile's cases that match `selection` (pytest's -k), write the
    report under `folder`.

    Args:
        clocks: names of the clocks to time by, the one that ranks first; by default all
        of the device's. deadline_s: the longest that one step of a case may take; by
        default the profile's.
        history_folder: where the history is that the run is appended to.

    Raises:
        UsageError: before anything is measured, if the call, the environment or a
        folder is not usable.
    """
    began_s = time.monotonic()
    environment = _require_environment()
    try:
        device = environment.resolve_device(device)
        profile_named(profile)
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen = tuple(clocks or CLOCKS[device])
    if unknown := [name for name in chosen if name not in CLOCKS[device]]:
        raise UsageError(
            f"{unknown[0]!r} is no clock of {device}: use {', '.join(CLOCKS[device])}"
        )
    machine = environment.machine(device)
    run_folder = new_folder(folder, machine["device_name"])
    started = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    with contextlib.ExitStack() as stack:
        stack.callback(remove_if_empty, run_folder)
        require_writable(history_folder, "HISTORY")
        stack.callback(remove_if_empty, history_folder)
        if device == "cuda":
            _require_named_folder()
            stack.enter_context(kernels_folder())
        # It starts its worker while the ops are read.
        isolation = stack.enter_context(
            contextlib.closing(
                Isolation(device, deadline_s or profile_named(profile).deadline_s)
            )
        )
        the_plan = plan(profile, device, deadline_s)
        for one in the_plan.broken:
            complain(one)
        journal = stack.enter_context(
            contextlib.closing(
                Journal(run_folder, {**besides.NOTHING, "started": started})
            )
        )
        ahead = (
            stack.enter_context(contextlib.closing(_ahead()))
            if device == "cuda"
            else None
        )
        schedule = Schedule(the_plan, lambda: time.monotonic() - began_s)
        measurer = Measurer(the_plan, isolation, chosen, ahead)
        ended = _measure(schedule, measurer, machine, selection, journal)
        with put_off():  # after a Ctrl-C another one must find the run stored
            journal.add(about={"seconds": round(time.monotonic() - began_s, 1)})
            isolation.close()  # what a variant may have left running must not be there when the run is stored
            document = journal.document()
            run_in = publishing.store_run(document, run_folder)
        the_run = records.parse(document)
        return _exit_code(
            the_run, ended, publishing.publish(the_run, run_in, history_folder)
        )


def _require_named_folder() -> None:
    """Raise UsageError if compiled kernels are to be kept in a folder that can't be
    written.
    """
    if named := os.environ.get(KERNELS):
        require_writable(Path(named), KERNELS)


def _ahead() -> Ahead:
    """What compiles the run's kernels, for this machine's GPU, in the block of
    `kernels_folder`.
    """
    from batchline.bench.measure.ahead.gpu import this_gpu

    return Ahead(this_gpu(), secrets.randbits(62))


def _measure(
    schedule: Schedule,
    measurer: Measurer,
    machine: dict,
    selection: str,
    journal: Journal,
) -> int:
    """Measure all of it into the journal; how it ended: CLEAN, INTERRUPTED, or
    BROKEN_CASES by a fault of our own.

    Raises:
        UsageError: if `selection` chooses nothing; then there is no journal.
        KeyboardInterrupt: before the journal has begun, so with nothing to keep.
    """
    try:
        ended = pytest_run.measure(schedule, measurer, machine, selection, journal)
        if ended == CLEAN:
            for found in besides.looks(
                measurer.isolation, schedule.of, journal.document(), machine
            ):
                journal.add(about=found)
            journal.add(about={"partial": False})
    except UsageError:
        journal.discard()
        raise
    except KeyboardInterrupt:
        ended = INTERRUPTED
    except Exception as error:
        if not journal.has_begun():
            raise
        complain(
            f"Batchline itself failed: {texts.error_line(error)}; what was measured before is kept"
        )
        ended = BROKEN_CASES
    if not journal.has_begun():
        raise KeyboardInterrupt
    return ended


def _require_environment():
    """bench.measure.environment, if what it and the measuring need is installed."""
    try:
        from batchline.bench.measure import environment
    except ImportError as error:
        raise UsageError(
            f"{error}: install what requirements.txt lists (`make install`)"
        ) from error
    missing = environment.missing_packages()
    if missing:
        raise UsageError(
            f"not installed: {', '.join(missing)}; install what requirements.txt lists (`make install`)"
        )
    return environment


def _exit_code(run: Run, ended: int, published: bool) -> int:
    """What only the machine is to blame for is no fault of a case; where it left no
    time at all, nothing is known.
    """
    statuses = {record.status for record in run.records}
    if MEASURED not in statuses:
        return NOTHING_MEASURED
    if ended != CLEAN:
        return ended
    broken = NOT_REACHED in statuses or any(
        is_broken(record.status, record.reason) for record in run.records
    )
    broken = broken or bool(run.about.get("broken_files"))
    return (
        BROKEN_CASES
        if broken or any(run_in_ci.impossible(run)) or not published
        else CLEAN
    )
