"""The threads and child processes of this process: which are at work while no variant
has its turn.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import sysconfig
import threading
import time
from pathlib import Path
from time import (
    perf_counter as now_s,
)  # as it is now, whatever a variant makes of time.perf_counter later

_TASKS = Path("/proc/self/task")
_RESTS_S = (
    0.015,
    0.1,
    0.5,
)  # OpenMP's threads spin before they sleep: milliseconds, and more on a busy machine
_WINDOW_S = 0.01
_BUSY = 0.1
_NAP_S = 1e-4
_LONGEST_WAIT_S = 0.02  # twice as long as OpenMP's threads were seen to spin
_TORCH = importlib.util.find_spec("torch")  # which is not imported for it
_LIBRARIES = tuple(
    {
        sysconfig.get_path(name)
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    | ({str(Path(_TORCH.origin).parents[1])} if _TORCH else set())
)
_COMPILERS = b"torch/_inductor"  # torch.compile keeps a pool of processes


def ids() -> frozenset[int]:
    """The system's numbers of all threads; none where it does not tell."""
    try:
        return frozenset(map(int, os.listdir(_TASKS)))
    except OSError:
        return frozenset()


def busy(numbers: frozenset[int]) -> frozenset[int]:
    """Those of the threads that go on computing when nothing is asked of them.

    Takes 25 ms if there are any threads, and more where some are still at it.
    """
    for rest_s in _RESTS_S:
        if not numbers:
            break
        time.sleep(rest_s)
        before = {number: _computed_s(number) for number in numbers}
        time.sleep(_WINDOW_S)
        numbers = frozenset(
            number
            for number in numbers
            if _computed_s(number) - before[number] > _BUSY * _WINDOW_S
        )
    return numbers


def wait_until_asleep() -> None:
    """Wait until all threads but this one sleep, and for 20 ms at most: OpenMP's spin
    for some time after their work.

    Takes 50 µs if they do.
    """
    mine, since_s = threading.get_native_id(), now_s()
    awake = ids() - {mine}
    while awake := {number for number in awake if _is_awake(number)}:
        if now_s() - since_s > _LONGEST_WAIT_S:
            return
        time.sleep(_NAP_S)


def foreign() -> list[str]:
    """The names of Python threads, but this one, that run code from outside of the
    libraries.
    """
    here, frames = threading.get_ident(), sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        names.get(number, f"thread {number}")
        for number, frame in frames.items()
        if number != here and _is_foreign(frame)
    ]


def children() -> frozenset[int]:
    """The processes that this one has started, those of torch's compiler apart."""
    numbers = set()
    for task in ids():
        with contextlib.suppress(OSError):
            numbers |= set(
                map(int, (_TASKS / str(task) / "children").read_text().split())
            )
    return frozenset(number for number in numbers if not _compiles(number))


def _is_foreign(frame) -> bool:
    while frame:
        path = frame.f_code.co_filename
        if not path.startswith((*_LIBRARIES, "<frozen")):
            return True
        frame = frame.f_back
    return False


def _is_awake(number: int) -> bool:
    try:
        return (_TASKS / str(number) / "stat").read_bytes().rpartition(b") ")[2][
            :1
        ] == b"R"
    except OSError:  # it has ended
        return False


def _computed_s(number: int) -> float:
    try:
        return int((_TASKS / str(number) / "schedstat").read_text().split()[0]) * 1e-9
    except (OSError, ValueError, IndexError):  # it has ended
        return 0.0


def _compiles(process: int) -> bool:
    with contextlib.suppress(OSError):
        return _COMPILERS in Path(f"/proc/{process}/cmdline").read_bytes()
    return True  # it has ended
