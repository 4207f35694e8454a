"""A clock whose caches take too long to empty is left out, and says so; on the machine
at hand it is tried.
"""

from types import SimpleNamespace

import pytest

from batchline.bench.measure.timing.clocks import Cpu
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.measure.worker.preparing import Entry, Preparing


def clocks_of(evict_s, seconds, name="host_cold"):
    machine = Cpu()
    machine.cache_bytes, machine.evict_s = 2**20, evict_s
    entry = Entry(SimpleNamespace(function=lambda: None), lambda: None, 1e-6, {})
    preparing = Preparing("cpu", machine, lambda whose, step: None, fence=None)
    clocks = preparing.clocks(name, Effort(0.03, seconds), {"one": entry}, [()])
    assert not clocks.errors
    return clocks.made, clocks.why_unfit


@pytest.mark.parametrize(
    "evict_s, seconds, name, timed",
    [
        (0.1, 0.03, "host_cold", False),
        (0.1, 0.5, "host_cold", True),
        (0.006, 0.02, "host_cold", True),
        (0.1, 0.03, "host", True),
    ],
)
def test_emptying_the_caches_may_take_ten_times_the_effort(
    evict_s, seconds, name, timed
):
    clocks, why = clocks_of(evict_s, seconds, name)
    assert set(clocks) == ({"one"} if timed else set()) and set(why) == (
        set() if timed else {"one"}
    )
    if why:
        assert why["one"] == (
            "emptying a cache of 1.00 MiB for each sample takes longer than this profile has: "
            "PROFILE=full times it"
        )


def test_emptying_takes_the_time_that_it_takes():
    machine = Cpu()
    machine.cache_bytes = 2**22
    first = machine.evict_s
    assert 0 < first < 1 and machine.evict_s == first
