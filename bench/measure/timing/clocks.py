"""The clocks, by name: what one sample is. reports/methodology/measuring.md says when
which one is right.

A clock is made for one launch on one hardware and then asked for samples, one at a
time, so that the samples of several variants can be taken in turns. `launches` are the
same call on several copies of its inputs, used in turn.

What a sample computed last is in `result` after it. By a clock that `takes_calls` a
sample can be of other calls for once (`use`): it goes through the same lines, so that a
launch can't tell that it is looked at.

What a clock needs of the machine: a host clock, caches to empty, and on CUDA a
stream with events to time it by.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Protocol

import torch

from batchline.bench import texts
from batchline.bench.cases import CLOCKS
from batchline.bench.measure import stand_in
from batchline.bench.measure.machine import process_state
from batchline.bench.statuses import NOT_CAPTURED

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_USUAL_CACHE_BYTES = 64 * 2**20  # where the system does not say: more than most have
_SPIN_HZ = 2e9  # at or above the clocks of the GPUs of today, so a hold is never shorter than asked


class Hardware(Protocol):
    """What is asked of the hardware behind "cpu" and "cuda"; each of the two also has
    what its own clocks take.
    """

    name: str
    cache_bytes: int

    def now_s(self) -> float:
        """Seconds on its clock."""

    def synchronize(self) -> None:
        """Wait until all calls are done."""

    def empty_launch(self) -> Callable[[], object]:
        """The least that a call can be."""


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
        process_state.wait_until_asleep()

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


Launches = Sequence[Callable[[], object]]

_LEAST_HOLD_S, _MOST_HOLD_S = 1e-4, 0.2
_HELD_LONG_ENOUGH = 50  # samples in a row after which half the hold is tried
_MOST_LAUNCHES = 200  # under one hold: the driver queues about a thousand and then makes the host wait
_HOT_SAMPLE_S = 5e-4  # events tick every half microsecond at worst, so a sample this long is known to 0.1%


class Clock(Protocol):
    """A clock of one launch, asked for one sample at a time.

    name: what stored runs call it. is_cold: whether the caches are emptied before each
    sample; stats.roofline.is_cold says the same of a stored name. settles_s: how long
    calls are made before a turn's samples. takes_calls: whether `use` makes the next
    samples those of other calls. is_all_timed: whether a sample takes what it reads,
    and next to nothing else. hardware: what it times on. iterations: calls in a sample.
    result: what the sample's last call returned; it is checked.
    """

    name: str
    hardware: Hardware
    is_cold: bool
    settles_s: float
    takes_calls: bool
    is_all_timed: bool
    iterations: int
    result: object

    def settle(self) -> None:
        """Let what ran before have no part in the next sample."""

    def sample(self) -> float:
        """Seconds a call."""


class Unfit(Exception):
    """This clock can't time this launch; the message says why."""


class Host:
    """What the caller waits for: wall time of `iterations` calls in a row, to the end
    of what they started.
    """

    name = "host"
    is_cold = False
    settles_s = 0.005  # a longer call has its own data back in the caches before most of it is done
    takes_calls = True
    is_all_timed = True  # a sample takes what it reads, and next to nothing else

    def __init__(
        self, hardware: Hardware, launches: Launches, call_s: float, sample_s: float
    ):
        self.hardware = hardware
        self.launch = launches[0]
        self.iterations = (
            max(1, math.ceil(sample_s / call_s)) if hardware.name == "cpu" else 1
        )
        self._usual = (self.launch,) * (self.iterations - 1)
        self.use(None)
        self.result = None

    def use(self, calls: Sequence[Callable[[], object]] | None) -> None:
        """Let the next samples be of these calls; of its own ones for None."""
        if calls is None:
            self._before_last, self._last = (
                self._usual,
                self.launch,
            )  # the same objects each time: Watch compares them
        else:
            *before_last, self._last = calls
            self._before_last = tuple(before_last)

    def settle(self) -> None:
        """One call that is not timed: what ran before may have been another variant."""
        self.launch()
        self.hardware.synchronize()

    def sample(self) -> float:
        """Seconds a call."""
        before_last, last, now_s = self._before_last, self._last, self.hardware.now_s
        self.result = None
        start_s = now_s()
        for launch in before_last:
            launch()
        result = last()
        self.hardware.synchronize()
        seconds = now_s() - start_s
        self.result = result
        return seconds / (len(before_last) + 1)


class HostCold:
    """Wall time of one call after the caches were emptied."""

    name = "host_cold"
    is_cold = True
    settles_s = 0.0
    takes_calls = False
    is_all_timed = False
    iterations = 1

    def __init__(
        self, hardware: Hardware, launches: Launches, call_s: float, sample_s: float
    ):
        self.hardware = hardware
        self._launches = itertools.cycle(launches)
        self.result = None

    def settle(self) -> None:
        """Nothing: each sample starts from emptied caches."""

    def sample(self) -> float:
        """Seconds of the call."""
        launch = next(self._launches)
        self.result = None
        self.hardware.evict()
        start_s = self.hardware.now_s()
        result = launch()
        seconds = self.hardware.now_s() - start_s
        self.result = result
        return seconds


class _BehindASpin:
    """What the device clocks share: queue everything behind a spinning kernel, so that
    no host gap is inside.

    Whether the hold was long enough is checked each time: if the start event has passed
    before the end event was queued, the sample is thrown away and the next hold is
    twice as long (NVBench's blocking kernel, without its deadlock on a launch that
    waits for the device).

    `result` is a copy where `copies` is set, queued right behind the end event: what
    another stream has not written by then is not in it.
    """

    settles_s = 0.0
    takes_calls = False
    copies = False
    is_all_timed = False
    iterations = 1

    def __init__(
        self, hardware: Hardware, launches: Launches, call_s: float, sample_s: float
    ):
        self.hardware = hardware
        self._launches = itertools.cycle(launches)
        self._start, self._end = hardware.event(), hardware.event()
        self._hold_s, self._held_in_a_row = _LEAST_HOLD_S, 0
        self.result = None

    def settle(self) -> None:
        """Nothing: what must come before a sample is queued with it."""

    def sample(self) -> float:
        """Seconds a launch."""
        while True:
            self.hardware.hold(self._hold_s)
            self._before()
            self._start.record()
            self._timed()
            self._end.record()
            if self.copies:
                self.result = copy_of(self.result)
            held = not self._start.query()
            self._end.synchronize()
            if held:
                self._shorten()
                return self._start.elapsed_time(self._end) * 1e-3 / self.iterations
            if self._hold_s >= _MOST_HOLD_S:
                raise Unfit(
                    f"{self.name}: the launch waits for the device, so the host's time is inside any pair of "
                    "events; time it by the host clock"
                )
            self._hold_s, self._held_in_a_row = 2 * self._hold_s, 0

    def _shorten(self) -> None:
        """A single stall of the host is no reason to hold for ever after."""
        self._held_in_a_row += 1
        if self._held_in_a_row == _HELD_LONG_ENOUGH:
            self._hold_s, self._held_in_a_row = max(_LEAST_HOLD_S, self._hold_s / 2), 0

    def _before(self) -> None:
        raise NotImplementedError

    def _timed(self) -> None:
        raise NotImplementedError

    def _enough(self, call_s: float) -> int:
        """Launches that fill a hot sample. `call_s` is at most right: the host's part
        may be most of it.
        """
        return max(1, min(_MOST_LAUNCHES, math.ceil(_HOT_SAMPLE_S / max(call_s, 1e-9))))


class DeviceCold(_BehindASpin):
    """Event to event around one launch, with a cold L2."""

    name = "device_cold"
    is_cold = True

    def _before(self) -> None:
        self.hardware.flush()

    def _timed(self) -> None:
        self.result = next(self._launches)()


class DeviceHot(_BehindASpin):
    """Event to event around many launches in a row, with whatever they leave in L2."""

    name = "device_hot"
    is_cold = False

    def __init__(
        self, hardware: Hardware, launches: Launches, call_s: float, sample_s: float
    ):
        super().__init__(hardware, launches[:1], call_s, sample_s)
        self.iterations = self._enough(call_s)
        self.iterations = self._enough(self.sample())

    def _before(self) -> None:
        self.result = next(self._launches)()

    def _timed(self) -> None:
        launch = next(self._launches)
        for _ in range(self.iterations):
            self.result = launch()


class Graph(_BehindASpin):
    """Replay of a CUDA graph of many launches in a row: the device's time with no
    launch from the host at all.
    """

    name = "graph"
    is_cold = False

    def __init__(
        self, hardware: Hardware, launches: Launches, call_s: float, sample_s: float
    ):
        super().__init__(hardware, launches[:1], call_s, sample_s)
        launch = launches[0]
        self._captured = None  # what the last launch of a replay writes to

        def kept():
            self._captured = launch()

        self._capture(kept, self._enough(call_s))
        enough = self._enough(self.sample())
        if enough > self.iterations:
            self._capture(kept, enough)

    def _capture(self, launch: Callable, times: int) -> None:
        self.iterations = times
        try:
            self._replay = self.hardware.capture(launch, times)
        except (
            Exception
        ) as error:  # whatever torch, Triton or the driver raises: the launch has no graph
            raise Unfit(f"{NOT_CAPTURED}: {texts.error_line(error)}") from error

    def _before(self) -> None:
        self._replay()

    def _timed(self) -> None:
        self._replay()
        self.result = self._captured


def copy_of(returned):
    """A copy of what a launch returned, where that is tensors; itself where it is
    anything else.
    """
    if isinstance(returned, tuple):
        return tuple(map(copy_of, returned))
    return returned.clone() if isinstance(returned, torch.Tensor) else returned


_BY_NAME = {
    clock.name: clock for clock in (Host, HostCold, DeviceCold, DeviceHot, Graph)
}


def is_cold(name: str) -> bool:
    """Whether the clock called `name` empties the caches before each sample."""
    return _BY_NAME[name].is_cold


def keeps_outputs(name: str) -> bool:
    """Whether the clock called `name` has memory of its own for its launch's outputs
    for as long as it lives.
    """
    return _BY_NAME[name] is Graph


def make_clock(
    name: str, hardware: Hardware, launches: Launches, call_s: float, sample_s: float
) -> Clock:
    """The clock called `name` for a launch that takes about `call_s`; host samples are
    about `sample_s` long.

    Raises:
        ValueError: for a name that is not a clock of this hardware.
        Unfit: if this clock can't time this launch.
    """
    if name not in CLOCKS[hardware.name]:
        raise ValueError(
            f"{name!r} is no clock of {hardware.name}: use {', '.join(CLOCKS[hardware.name])}"
        )
    return _BY_NAME[name](hardware, launches, call_s, sample_s)
