"""Where threads run, and for how long they keep their core, while something is timed on
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
from collections.abc import Iterator, Mapping
from pathlib import Path

from batchline.bench.measure import threads

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
        for thread in threads.ids():
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
    pools = sorted(threads.ids() - {mine})
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
