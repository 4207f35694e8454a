"""Each thread on a core of its own while something is timed, and no other at work when
a turn begins.
"""

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from batchline.bench.measure.machine import state

pytestmark = [
    pytest.mark.commands,
    pytest.mark.skipif(
        not hasattr(os, "sched_getaffinity"), reason="this system places no threads"
    ),
]
two_cores = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="there is one core",
)


@contextlib.contextmanager
def _sleeping(count):
    """Threads that sleep; yields their numbers."""
    done, started = threading.Event(), threading.Barrier(count + 1)

    def sleep():
        started.wait()
        done.wait()

    sleepers = [threading.Thread(target=sleep) for _ in range(count)]
    for sleeper in sleepers:
        sleeper.start()
    started.wait()
    try:
        yield [sleeper.native_id for sleeper in sleepers]
    finally:
        done.set()
        for sleeper in sleepers:
            sleeper.join()


@two_cores
def test_this_thread_has_a_core_to_itself_and_all_may_go_anywhere_afterwards():
    before = state.cores()
    with _sleeping(3) as sleepers:
        with state.each_thread_on_a_core():
            mine, *others = (
                os.sched_getaffinity(thread)
                for thread in (threading.get_native_id(), *sleepers)
            )
            assert len(mine) == 1 and state.cores() == mine
            assert all(
                len(theirs) == 1 and theirs.isdisjoint(mine) for theirs in others
            )
        assert all(os.sched_getaffinity(thread) == before for thread in (0, *sleepers))


@two_cores
def test_where_the_block_raises_all_may_go_anywhere_too():
    before = state.cores()
    with pytest.raises(KeyError), state.each_thread_on_a_core():
        raise KeyError
    assert state.cores() == before


@two_cores
def test_on_one_core_nothing_is_placed():
    before = state.cores()
    os.sched_setaffinity(0, [min(before)])
    try:
        with _sleeping(1) as (sleeper,), state.each_thread_on_a_core():
            assert state.cores() == os.sched_getaffinity(sleeper) == {min(before)}
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    "siblings, order",
    [
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, [0, 1, 2, 3]),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, [0, 2, 1, 3]),
        ({0: "0", 1: "damaged", 3: "3"}, [0, 1, 2, 3]),
    ],
)
def test_each_physical_core_comes_before_any_ones_second_thread(
    siblings, order, tmp_path
):
    for core, text in siblings.items():
        folder = tmp_path / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text + "\n")
    assert sorted(range(4), key=lambda core: state.core_rank(core, tmp_path)) == order


def test_threads_spin_for_a_short_time_unless_the_user_said_how_long():
    assert state.short_spins({"PATH": "/bin"}).keys() == {
        "GOMP_SPINCOUNT",
        "KMP_BLOCKTIME",
    }
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"):
        assert state.short_spins({name: "active"}) == {}


_SPINNING = """
import hashlib, threading, time
from batchline.bench.measure.machine import process_state

data, started = bytes(2 ** 16), threading.Event()

def spin():
    until_s = time.perf_counter() + {spins_s}
    started.set()
    while time.perf_counter() < until_s:
        hashlib.sha256(data)

threading.Thread(target=spin, daemon=True).start()
started.wait()
since_s = time.perf_counter()
process_state.wait_until_asleep()
print(time.perf_counter() - since_s)
"""


@pytest.mark.parametrize(
    "spins_s, waits_s", [(0, (0, 0.015)), (0.008, (0.004, 0.2)), (1, (0.015, 0.2))]
)
def test_a_turn_begins_when_other_threads_sleep_or_20_ms_later(spins_s, waits_s):
    program = _SPINNING.format(
        spins_s=spins_s
    )  # in a process that has no other threads
    waited_s = float(
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
    )
    assert waits_s[0] <= waited_s <= waits_s[1]
