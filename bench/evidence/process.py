"""A part's process: it has its own group, its own limit, and nothing of it is left when
that is over.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchline import places

STOPPED = "stopped by Ctrl-C; what it had by then is below"
_TO_STOP_S = 20  # of a part's limit, to write what it has


def run(command: Sequence[str], limit_s: float, log: Path | None = None) -> str | None:
    """Run it, with what it prints in `log` or on stderr; returns why it did not come to
    its end, or None.

    Shortly before its limit it is asked to end, and keeps what it has; at the limit it
    is killed.
    """
    to_stop_s = min(_TO_STOP_S, limit_s / 2)
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(log.open("ab")) if log else sys.stderr
        process = subprocess.Popen(
            command,
            cwd=places.CODE if places.IS_CHECKOUT else None,
            stdout=out,
            stderr=subprocess.STDOUT if log else None,
            start_new_session=True,
            env=_environment(),
        )
        try:
            code = process.wait(limit_s - to_stop_s)
        except subprocess.TimeoutExpired:
            _ask_to_end(process, to_stop_s)
            return f"stopped after {limit_s - to_stop_s:.0f} s, its limit; what it had by then is below"
        except KeyboardInterrupt:
            _ask_to_end(process, to_stop_s)
            return STOPPED
        finally:
            _kill(process)
    return None if code == 0 else f"exit code {code}"


def _environment() -> Mapping[str, str]:
    """What is printed is in the log at once, also where the process is killed."""
    return {**os.environ, "PYTHONUNBUFFERED": "1"}


def _ask_to_end(process: subprocess.Popen, patience_s: float) -> None:
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        process.terminate()  # not SIGINT, which a shell makes its background jobs ignore
        process.wait(patience_s)


def _kill(process: subprocess.Popen) -> None:
    """The process and whatever it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
