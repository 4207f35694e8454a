"""The processes below one: found through Linux's /proc, and killed with whatever they
start meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
_LOOK_AGAIN_S = 2e-3


def adopt_orphans() -> None:
    """Become the parent of every process below this one whose own parent ends. Linux
    only.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with_parent() -> None:
    """Be killed when the parent ends. Linux only."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def descendants(pid: int) -> set[int]:
    """The process ids of all processes below `pid`; none where /proc is not Linux's."""
    children: dict[int, list[int]] = {}
    for child, parent in _parents().items():
        children.setdefault(parent, []).append(child)
    below: set[int] = set()
    waiting = [pid]
    while waiting:
        new = [child for child in children.get(waiting.pop(), ()) if child not in below]
        below.update(new)
        waiting += new
    return below


def marked(mark: str) -> set[int]:
    """The process ids of all processes that were started with the environment variable
    `mark` (NAME=value).
    """
    carriers = set()
    wanted = mark.encode()
    for name in _process_names():
        with contextlib.suppress(OSError):
            if wanted in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                carriers.add(int(name))
    return carriers


def kill_all(
    which: Callable[[], set[int]], reap: Callable[[], None], seconds: float
) -> None:
    """Kill the processes that `which` returns until it returns none, or `seconds` have
    passed.

    `reap` is called after each round: a killed child stays in the list until its parent
    has waited for it.
    """
    until_s = time.monotonic() + seconds
    while left := which():
        for pid in left:
            kill(pid)
        reap()
        if time.monotonic() > until_s:
            return
        time.sleep(_LOOK_AGAIN_S)


def kill(pid: int) -> None:
    """Kill one process, if it is still there and ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _parents() -> dict[int, int]:
    parents = {}
    for name in _process_names():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = Path("/proc", name, "stat").read_text(errors="replace")
            state, parent = stat.rpartition(")")[2].split()[
                :2
            ]  # the name before it may hold spaces and brackets
            parents[int(name)] = int(parent)
    return parents


def _process_names() -> list[str]:
    try:
        return [name for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(option, value)
