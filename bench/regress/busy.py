"""Whether anybody else kept the cores busy while a pair was measured: this process and its workers apart."""
from __future__ import annotations

import os
from collections.abc import Mapping

from bench.measure.state import CpuState, cpu_load

_MOST_SHARE = 0.1  # of the cores: on two quiet ones a pair sees 1 to 3%


def read() -> dict:
    """The machine's counters (CpuState.read); "own_cpu_s" is with all workers that have ended by now."""
    return CpuState().read() | {"own_cpu_s": sum(os.times()[:4])}


def why_too_busy(before: Mapping, after: Mapping) -> str | None:
    """What others, or the hypervisor, took between two readings where that is too much, else None."""
    load = cpu_load(before, after, os.cpu_count() or 1)
    for name, who in (("others_share", "other processes"), ("stolen_share", "the hypervisor")):
        if load.get(name, 0.0) > _MOST_SHARE:
            return f"{who} took {load[name]:.0%} of the cores"
    return None
