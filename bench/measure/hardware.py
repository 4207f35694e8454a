"""What a clock needs of the machine: a host clock, caches to empty, and on CUDA a
stream with events to time it by.
"""

from __future__ import annotations

import functools
import gc
from time import perf_counter
from collections.abc import Callable
from pathlib import Path

import torch

from batchline.bench.measure import stand_in, threads

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE_BYTES = 64 * 2**20  # where the system does not say: more than most have
_SPIN_HZ = 2e9  # at or above the clocks of the GPUs of today, so a hold is never shorter than asked


class Cpu:
    """Calls run where the clock is read; emptying the caches means writing twice the
    last level's size.
    """

    name = "cpu"

    def __init__(self):
        self.cache_bytes = last_level_cache_bytes()
        self._eviction: torch.Tensor | None = None
        self._turn = 0

    def now_s(self) -> float:
        return perf_counter()

    @functools.cached_property
    def evict_s(self) -> float:
        """Seconds that `evict` takes, the first of them apart."""
        self.evict()
        start_s = self.now_s()
        self.evict()
        return self.now_s() - start_s

    def evict(self) -> None:
        """Replace what every cache holds. All of torch's threads write a part, so each
        core's own caches go too.

        Those threads sleep when this returns: a launch with threads of its own would
        find them spinning on its cores.
        """
        if self._eviction is None:
            self._eviction = torch.empty(2 * self.cache_bytes, dtype=torch.uint8)
        self._turn = (self._turn + 1) % 256
        self._eviction.fill_(self._turn)
        threads.wait_until_asleep()

    def synchronize(self) -> None:
        """Calls on the CPU are done when they return."""

    def empty_launch(self) -> Callable[[], object]:
        """The least that a call through torch can be: one element, one addition."""
        one = torch.zeros(1)
        return lambda: one.add_(1)


class Cuda:
    """torch's current stream on the first GPU."""

    name = "cuda"

    def __init__(self):
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._written = torch.empty(
            2 * self.cache_bytes, dtype=torch.uint8, device="cuda"
        )
        self._read = torch.zeros(2 * self.cache_bytes // 4, device="cuda")
        self._largest = torch.empty((), device="cuda")

    def now_s(self) -> float:
        return perf_counter()

    def hold(self, seconds: float) -> None:
        """Queue a kernel that spins for at least so long: what is queued behind it
        starts when it ends.
        """
        torch.cuda._sleep(int(seconds * _SPIN_HZ))

    def flush(self) -> None:
        """Queue a write over twice the L2 cache, then a read of as much elsewhere.

        What was written alone would be written back within the next kernel's time.
        """
        self.flush_by_writing()
        torch.amax(self._read, 0, out=self._largest)

    def flush_by_writing(self) -> None:
        """Queue the write alone, for comparison."""
        self._written.fill_(1)

    def event(self) -> torch.cuda.Event:
        return torch.cuda.Event(enable_timing=True)

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def capture(self, launch: Callable[[], object], times: int) -> Callable[[], None]:
        """A CUDA graph of `times` launches in a row; returns its replay. Raises
        whatever the capture raises.

        The current stream stays what it was: torch.cuda.graph leaves its own one
        current where a capture fails.
        """
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        collecting = gc.isenabled()
        gc.disable()  # a collection that frees device memory during the capture invalidates it
        try:
            with torch.cuda.graph(graph):
                for _ in range(times):
                    launch()
        finally:
            torch.cuda.set_stream(stream)
            if collecting:
                gc.enable()
        return graph.replay

    def release(self) -> None:
        """Give back the memory that nothing uses, a graph's own too, which torch keeps
        for no other.
        """
        gc.collect()  # whoever watched a clock refers to it in a circle
        torch.cuda.empty_cache()

    def empty_launch(self) -> Callable[[], object]:
        """A kernel that spins for no cycle."""
        return lambda: torch.cuda._sleep(0)


class StandIn(Cuda):
    """The stand-in GPU, by the host's clock of its made-up times."""

    def now_s(self) -> float:
        return stand_in.now_s()


def hardware(device: str) -> Cpu | Cuda:
    """The hardware behind "cpu" or "cuda"."""
    if device == "cpu":
        return Cpu()
    return StandIn() if stand_in.is_on() else Cuda()


def last_level_cache_bytes() -> int:
    """The size of the largest cache that /sys names for the first core; a usual size
    where it does not.
    """
    sizes = []
    for path in _CACHES.glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(
            int(text[:-1]) * {"K": 2**10, "M": 2**20}[text[-1]]
            if text[-1] in "KM"
            else int(text)
        )
    return max(sizes, default=_USUAL_CACHE_BYTES)
