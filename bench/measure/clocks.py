"""The clocks. pytest-benchmark owns the rounds and keeps the samples; a clock says what one sample is.

`host` on the CPU: what the caller waits for, caches as the previous call left them. `device_cold` on CUDA: event to
event around one launch, after a write over twice the L2 cache.
"""
from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_FINEST_SAMPLE_S = 20e-6  # so that reading the clock stays under 1% of a sample


@dataclass(frozen=True)
class Effort:
    """How long to measure a case: seconds of warm-up and of samples, and bounds on the number of samples."""

    warm_up_s: float
    sampling_s: float
    least_rounds: int = 5
    most_rounds: int = 200


class HostClock:
    """Wall time of the call, in seconds."""

    name = "host"

    @staticmethod
    def timer() -> float:
        return time.perf_counter()

    def run(self, benchmark, launch: Callable, effort: Effort):
        """Warm up, then let `benchmark` (the fixture) take its rounds; returns the last call's result."""
        call_s = _warm_up(launch, effort.warm_up_s)
        # A sample is as many calls in a row as it takes for the samples to span the whole time given: 200 single calls
        # of 20 µs would be a look of 4 ms at a machine that changes its mind over tens.
        sample_s = max(_FINEST_SAMPLE_S, effort.sampling_s / effort.most_rounds)
        iterations = max(1, int(sample_s / call_s))
        return benchmark.pedantic(launch, rounds=_rounds(effort, call_s * iterations), iterations=iterations)


class DeviceColdClock:
    """Device time of one launch with a cold L2, in seconds, as a clock that only ticks while a launch is measured."""

    name = "device_cold"

    def __init__(self):
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(2 * l2_bytes, dtype=torch.uint8, device="cuda")
        self._elapsed_s = 0.0

    def timer(self) -> float:
        return self._elapsed_s

    def run(self, benchmark, launch: Callable, effort: Effort):
        """Warm up, then let `benchmark` take its rounds; returns the last call's result."""
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

        def flush() -> None:
            self._flush.fill_(1)

        def timed():
            start.record()
            result = launch()
            end.record()
            end.synchronize()
            self._elapsed_s += start.elapsed_time(end) * 1e-3
            return result

        def synchronous():
            launch()
            torch.cuda.synchronize()

        call_s = _warm_up(synchronous, effort.warm_up_s)
        return benchmark.pedantic(timed, setup=flush, rounds=_rounds(effort, call_s), iterations=1)


def clock_for(device: str) -> HostClock | DeviceColdClock:
    return DeviceColdClock() if device == "cuda" else HostClock()


def _warm_up(call: Callable, seconds: float) -> float:
    """Call until `seconds` have passed, at least twice (the first may compile); returns the fastest call's seconds."""
    call()
    fastest = math.inf
    end = time.perf_counter() + seconds
    while True:
        before = time.perf_counter()
        call()
        after = time.perf_counter()
        fastest = min(fastest, after - before)
        if after >= end:
            return max(fastest, 1e-9)


def _rounds(effort: Effort, sample_s: float) -> int:
    return min(effort.most_rounds, max(effort.least_rounds, int(effort.sampling_s / sample_s)))
