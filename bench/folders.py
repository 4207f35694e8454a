"""Where runs, evidence and histories are kept, and the folder of a run: its own, and
known to be writable before anything is measured.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import os
import shutil
from pathlib import Path

from batchline import places
from batchline.bench.errors import UsageError

VARIABLE = "BATCHLINE_REPORTS"  # where another repository's runs and history are kept
RUNS = Path("reports", "runs")  # which git ignores
EVIDENCE = Path("reports", "evidence")  # which is committed
HISTORY = Path("reports", "history")
LEAST_FREE_BYTES = 64 * 2**20


def runs() -> Path:
    """Where dated folders are made: RUNS, or those of the repository whose ops are
    measured.
    """
    return _kept(RUNS)


def history() -> Path:
    """Where the machines' histories are kept: HISTORY, or those of that repository."""
    return _kept(HISTORY)


def baselines() -> Path:
    """Where what is known of the machines beforehand is kept."""
    return _kept(places.BASELINES)


def _kept(folder: Path) -> Path:
    named = os.environ.get(VARIABLE)
    return Path(os.path.relpath(named), folder.name) if named else folder


def new_folder(parent: Path, device_name: str) -> Path:
    """A folder of this run's own, made now, so that a folder that can't be written is
    known before the measuring.
    """
    from batchline.kernels.device_names import slug  # imports torch

    name = f"{datetime.datetime.now():%Y-%m-%d-%H%M%S}-{slug(device_name)}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < LEAST_FREE_BYTES:
            raise UsageError(
                f"{parent} has {free / 2 ** 20:.0f} MiB free and a run wants {LEAST_FREE_BYTES >> 20}: "
                "free some, or name another folder with --out (OUT= of make)"
            )
        for suffix in ("", *(f"-{number}" for number in range(2, 100))):
            with contextlib.suppress(FileExistsError):
                (parent / f"{name}{suffix}").mkdir()
                return parent / f"{name}{suffix}"
        raise UsageError(f"{parent}/{name} and 98 more like it exist already")
    except OSError as error:
        raise UsageError(
            f"can't write to {parent} ({error.strerror}): name another folder with --out (OUT= of make)"
        ) from error


def require_writable(folder: Path, setting: str = "--out (OUT= of make)") -> None:
    """Make the folder, where it is not there; `setting` names it, "" where none does.

    Raises:
        UsageError: if files can't be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        instead = f": name another folder with {setting}" if setting else ""
        raise UsageError(
            f"can't write to {folder} ({error.strerror}){instead}"
        ) from error


def remove_if_empty(folder: Path) -> None:
    """Remove a folder where nothing was stored in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()
