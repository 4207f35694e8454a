"""Busy is not measured: the one rule for whether others had the cores meanwhile, and
what is done about it.

What counts is the CPU time of others, as a share of the cores that this process may
use. How long its own threads waited for a core does not: libraries' threads wait for
each other on a machine that is otherwise idle. Nor does a load average, which is of a
minute.

Where threads run, and for how long they keep their core, while something is timed on
the CPU.

Left to the system, the threads of a pool may share a core for as long as their process
lives: on 2 cores a product in two threads then takes twice as long in one process as in
the next. And torch's OpenMP and Numba's are two pools: while the threads of one spin
for more work, they take cores from the other's.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from batchline.bench.measure.machine import process_state
from batchline.bench.measure.machine.state import CpuState, cpu_load
from batchline.bench.statuses import THE_MACHINE_WAS

_CPUS = Path("/sys/devices/system/cpu")
_SPINS = {
    "GOMP_SPINCOUNT": "20000",
    "KMP_BLOCKTIME": "1",
}  # GNU's, in turns of a loop; LLVM's and Intel's, in ms


def short_spins(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables by which OpenMP's threads sleep half a millisecond or so after their
    work, and not after 7 ms or 200.

    Longer than there is between calls in a row, which so find them awake. None of them
    where the user has set one.
    """
    return {} if environment.keys() & {"OMP_WAIT_POLICY", *_SPINS} else dict(_SPINS)


def cores() -> frozenset[int] | None:
    """Those that this thread may use; None where the system doesn't say."""
    return (
        frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    )


def cores_by_thread() -> dict[int, set[int]]:
    """Those that each thread of this process may use, by its number; none where the
    system doesn't say.
    """
    found = {}
    if hasattr(os, "sched_getaffinity"):
        for thread in process_state.ids():
            with contextlib.suppress(OSError):  # it has ended
                found[thread] = os.sched_getaffinity(thread)
    return found


def give_each_thread_a_core() -> list[int]:
    """This thread the first, to itself, and the libraries' threads the others in turn;
    returns those threads' numbers.

    A thread that is started later has this one's core: start what there is to start
    before.
    """
    first, *others = sorted(cores() or [0], key=core_rank)
    if not others:
        return []
    mine = threading.get_native_id()
    pools = sorted(process_state.ids() - {mine})
    for number, thread in enumerate(pools):
        _allow(thread, {others[number % len(others)]})
    os.sched_setaffinity(mine, [first])
    return pools


@contextlib.contextmanager
def each_thread_on_a_core() -> Iterator[None]:
    """`give_each_thread_a_core` for the block; afterwards each may use what this thread
    could before.
    """
    before = cores()
    pools = give_each_thread_a_core()
    try:
        yield
    finally:
        if before:
            os.sched_setaffinity(threading.get_native_id(), before)
        for thread in pools:
            _allow(thread, before)


def _allow(thread: int, allowed: frozenset[int] | set[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended
        os.sched_setaffinity(thread, allowed)


def core_rank(core: int, cpus: Path = _CPUS) -> tuple[int, int]:
    """Sorts the second threads of all physical cores behind the first ones; `cpus` is
    the folder in which the system says which share a core.
    """
    try:
        siblings = _numbers(
            (cpus / f"cpu{core}" / "topology" / "thread_siblings_list").read_text()
        )
        return siblings.index(core), core
    except (OSError, ValueError):
        return 0, core


def _numbers(text: str) -> list[int]:
    """[0, 1, 2, 8] of "0-2,8"."""
    ends = [part.partition("-") for part in text.strip().split(",")]
    return [
        number
        for first, _, last in ends
        for number in range(int(first), int(last or first) + 1)
    ]


USUAL_SHARE = 0.1  # of the cores, that others may take: on two quiet ones it is 1 to 3%
VARIABLE = "BATCHLINE_MOST_BUSY"  # names another share
LEAST_SPAN_S = 0.25  # the system counts in ticks of 10 ms: over a shorter time a tick would be too much of a tenth
PAUSES_S = (1.0, 5.0)  # before each further attempt
_MOST_IN_VAIN = 3  # attempts at several things in a row: after that one attempt each, until one is quiet again
_KEPT = 64  # readings
_TIMES = {1: "", 2: ", twice", 3: ", three times"}
Result = TypeVar("Result")


def read() -> dict:
    """The machine's counters (CpuState.read)."""
    return CpuState().read()


def most_share() -> float:
    """The share of the cores that others may take: USUAL_SHARE, or what
    BATCHLINE_MOST_BUSY says.

    Raises:
        ValueError: if that is no share.
    """
    told = os.environ.get(VARIABLE) or USUAL_SHARE
    with contextlib.suppress(ValueError):
        if 0 < float(told) <= 1:
            return float(told)
    raise ValueError(
        f"{VARIABLE}={told} is no share of the cores: use a number above 0 and up to 1, as {USUAL_SHARE}"
    )


def why_too_busy(before: Mapping, after: Mapping) -> str | None:
    """What others, or the hypervisor, took between two readings where that is too much,
    else None.
    """
    load, most = cpu_load(before, after), most_share()
    for name, who in (
        ("others_share", "other processes"),
        ("stolen_share", "the hypervisor"),
    ):
        if load.get(name, 0.0) > most:
            return f"{who} took {load[name]:.0%} of the cores"
    return None


class Guard:
    """Measures anew what was measured while others had the cores.

    Args:
        tell: told of each pause, and why.
    """

    def __init__(
        self,
        tell: Callable[[str], None] = lambda why: None,
        read: Callable[[], dict] | None = None,
        pause: Callable[[float], None] = time.sleep,
    ):
        self._tell, self._read, self._pause = tell, read or CpuState().read, pause
        self._readings = deque([self._read()], maxlen=_KEPT)
        self._in_vain = 0

    def measured(self, work: Callable[[], Result]) -> tuple[Result, str | None]:
        """What `work` returns, and None; or why that does not count, where each attempt
        met a busy machine.
        """
        pauses_s = PAUSES_S if self._in_vain < _MOST_IN_VAIN else ()
        for attempt, pause_s in enumerate((*pauses_s, None), 1):
            self._readings.append(self._read())
            result = work()
            why = self._why_busy()
            if not why:
                self._in_vain = 0
                return result, None
            if pause_s is not None:
                self._tell(f"measured again: {why}")
                self._pause(pause_s)
        self._in_vain += 1
        return result, f"{THE_MACHINE_WAS}busy: {why}{_TIMES[attempt]}"

    def _why_busy(self) -> str | None:
        """Whether it was since the last reading; a shorter time than LEAST_SPAN_S is
        judged with the time before it.
        """
        now = self._read()
        enough = [
            reading
            for reading in self._readings
            if now["time_s"] - reading["time_s"] >= LEAST_SPAN_S
        ]
        return why_too_busy(enough[-1], now) if enough else None


class NoGuard:
    """For a device whose times don't depend on who has the cores."""

    def measured(self, work: Callable[[], Result]) -> tuple[Result, str | None]:
        """What `work` returns, and None."""
        return work(), None


def guard_of(
    device: str, tell: Callable[[str], None] = lambda why: None
) -> Guard | NoGuard:
    """A guard over what is measured on "cpu"; a GPU's state is told by its own counters
    (bench.measure.machine.state).
    """
    return Guard(tell) if device == "cpu" else NoGuard()
