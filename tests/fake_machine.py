"""A machine on virtual time, to measure by the clocks of bench.measure: what a launch
truly takes is known exactly.

FakeCpu and FakeCuda stand in for bench.measure.timing.clocks's Cpu and Cuda; `sampled` is
the caller that they share.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from batchline.bench.measure.timing.clocks import make_clock
from batchline.bench.measure.timing.sampling import Effort, sample

TICK_S = 5e-8  # what reading the clock costs the host
CALL_S = 2e-6  # what any call into the driver costs the host, beside the gap before it
EVICT_S = 1e-3
FLUSH_S = 2e-5
CROWDED = 1.5  # how many times longer a call takes while another launch's threads spin
THROTTLED = 2.0  # how many times longer everything takes in a throttling episode


class Kernel:
    """A launch on `machine`: takes `hot_s` where the cache still has its inputs,
    `cold_s` where it has not.

    The first call takes the host another `compile_s`. `waits`: it synchronises with the
    device before it returns. `raises` maps the number of a call, from 1, to what that
    call raises. `spins_s`: how long its threads keep their cores after a call.
    """

    def __init__(
        self,
        machine: _Machine,
        hot_s: float,
        cold_s: float | None = None,
        *,
        compile_s: float = 0.0,
        waits: bool = False,
        raises: dict[int, BaseException] | None = None,
        spins_s: float = 0.0,
    ):
        self.machine, self.hot_s, self.cold_s = machine, hot_s, cold_s or hot_s
        self.compile_s, self.waits, self.raises = compile_s, waits, raises or {}
        self.spins_s = spins_s
        self.called_s: list[float] = []

    def __call__(self) -> Kernel:
        self.called_s.append(self.machine.host_s)
        if len(self.called_s) == 1:
            self.machine.host_s += self.compile_s
        if len(self.called_s) in self.raises:
            raise self.raises[len(self.called_s)]
        self.machine.launch(self)
        return self


class _Machine:
    """Time, and what makes a kernel take longer than it should.

    Args:
        drift: virtual time in seconds → factor on every kernel that starts then.
        throttled: spans (start_s, end_s) in which kernels take THROTTLED times as long.
        noise: standard deviation of the logarithm of each kernel's time.
        spikes: share of the kernels that take five times as long.
    """

    def __init__(
        self,
        *,
        drift: Callable[[float], float] = lambda at_s: 1.0,
        throttled: Sequence[tuple[float, float]] = (),
        noise: float = 0.0,
        spikes: float = 0.0,
        seed: int = 0,
    ):
        self.cache_bytes = 2**20
        self.host_s = 0.0
        self.log: list[object] = (
            []
        )  # every launch (its Kernel), and "hold", "flush", "evict", "record", "replay"
        self.pauses_s: list[float] = []
        self._drift, self._throttled, self._noise, self._spikes = (
            drift,
            throttled,
            noise,
            spikes,
        )
        self._random = random.Random(seed)
        self._cached: Kernel | None = None
        self._asked_s = 0.0
        self._spinning: dict[Kernel, float] = {}  # until when each one's threads spin

    def now_s(self) -> float:
        self.host_s += TICK_S
        return self.host_s

    def pause(self, seconds: float) -> None:
        self.pauses_s.append(seconds)
        self.host_s += seconds

    def rest(self) -> None:
        """Wait until no thread spins."""
        self.host_s = max([self.host_s, *self._spinning.values()])

    def why_throttled(self) -> str | None:
        """Whether an episode overlaps the time since this was last asked."""
        since_s, self._asked_s = self._asked_s, self.host_s
        overlaps = any(
            start_s <= self.host_s and since_s < end_s
            for start_s, end_s in self._throttled
        )
        return "thermal slowdown" if overlaps else None

    def empty_launch(self) -> Kernel:
        return Kernel(self, 1e-6)

    def _takes_s(self, kernel: Kernel, at_s: float) -> float:
        hot, self._cached = self._cached is kernel, kernel
        seconds = (kernel.hot_s if hot else kernel.cold_s) * self._drift(at_s)
        if self._noise:
            seconds *= self._random.lognormvariate(0, self._noise)
        if self._random.random() < self._spikes:
            seconds *= 5
        if any(
            until_s > at_s
            for other, until_s in self._spinning.items()
            if other is not kernel
        ):
            seconds *= CROWDED
        if kernel.spins_s:
            self._spinning[kernel] = at_s + seconds + kernel.spins_s
        return seconds * (
            THROTTLED
            if any(start <= at_s < end for start, end in self._throttled)
            else 1
        )


class FakeCpu(_Machine):
    """Calls take the host's own time."""

    name = "cpu"
    evict_s = EVICT_S

    def evict(self) -> None:
        self.log.append("evict")
        self.host_s += EVICT_S
        self._cached = None

    def synchronize(self) -> None:
        pass

    def launch(self, kernel: Kernel) -> None:
        self.log.append(kernel)
        self.host_s += self._takes_s(kernel, self.host_s)


class FakeCuda(_Machine):
    """A stream, and a host that pauses for `gaps_s` (from, to) before each call that
    queues something on it.

    Events tick every `tick_s`. `no_graphs`: what a capture raises.
    """

    name = "cuda"

    def __init__(
        self,
        *,
        gaps_s: tuple[float, float] = (0.0, 0.0),
        tick_s: float = 5e-7,
        no_graphs: Exception | None = None,
        **settings,
    ):
        super().__init__(**settings)
        self.free_s = 0.0  # when the stream is done with all that was queued
        self.tick_s = tick_s
        self._gaps_s, self._no_graphs = gaps_s, no_graphs
        self._recorded: list[Kernel] | None = None

    def hold(self, seconds: float) -> None:
        self._queue("hold")
        self.free_s += seconds

    def flush(self) -> None:
        self._queue("flush")
        self.free_s += FLUSH_S
        self._cached = None

    def flush_by_writing(self) -> None:
        self.flush()

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def synchronize(self) -> None:
        self.host_s = max(self.host_s, self.free_s) + CALL_S

    def capture(self, launch: Callable[[], object], times: int) -> Callable[[], None]:
        if self._no_graphs:
            raise self._no_graphs
        self._recorded = recorded = []
        try:
            for _ in range(times):
                launch()
        finally:
            self._recorded = None

        def replay():
            self._queue("replay")
            self._run(recorded)

        return replay

    def release(self) -> None:
        self.log.append("release")

    def launch(self, kernel: Kernel) -> None:
        if self._recorded is not None:
            if kernel.waits:
                raise RuntimeError(
                    "operation not permitted when stream is capturing\nSearch for it in the manual."
                )
            self._recorded.append(kernel)
            return
        self._queue(kernel)
        self._run([kernel])
        if kernel.waits:
            self.synchronize()

    def _queue(self, what: object) -> None:
        """The host makes up its mind, and then queues it: it starts when the stream is
        free.
        """
        self.log.append(what)
        self.host_s += self._random.uniform(*self._gaps_s) + CALL_S
        self.free_s = max(self.free_s, self.host_s)

    def _run(self, kernels: Sequence[Kernel]) -> None:
        for kernel in kernels:
            self.free_s += self._takes_s(kernel, self.free_s)


class FakeEvent:
    """Holds when its stream came to it."""

    def __init__(self, cuda: FakeCuda):
        self._cuda = cuda
        self.reached_s = 0.0

    def record(self) -> None:
        self._cuda._queue("record")
        self.reached_s = self._cuda.free_s

    def query(self) -> bool:
        self._cuda.host_s += CALL_S
        return self._cuda.host_s >= self.reached_s

    def synchronize(self) -> None:
        self._cuda.host_s = max(self._cuda.host_s, self.reached_s) + CALL_S

    def elapsed_time(self, end: FakeEvent) -> float:
        """Milliseconds, in whole ticks."""
        tick_s = self._cuda.tick_s
        return (end.reached_s // tick_s - self.reached_s // tick_s) * tick_s * 1e3


def warm(kernel: Kernel, times: int = 20) -> float:
    """Call until it is compiled and its cache hot, as the runner does; the fastest
    call's seconds.
    """
    machine, calls_s = kernel.machine, []
    for _ in range(times):
        start_s = machine.now_s()
        kernel()
        machine.synchronize()
        calls_s.append(machine.now_s() - start_s)
    return min(calls_s)


def sampled(clock: str, kernels: dict[str, Kernel], effort: Effort, **settings) -> dict:
    """Warm the kernels, all on one machine, and sample them in turns by the clock of
    that name.
    """
    machine = next(iter(kernels.values())).machine
    clocks = {
        name: make_clock(clock, machine, [kernel], warm(kernel), effort.sample_s)
        for name, kernel in kernels.items()
    }
    return sample(
        clocks,
        effort,
        machine.why_throttled,
        **{
            "pause": machine.pause,
            "now_s": machine.now_s,
            "rest": machine.rest,
            **settings,
        },
    )
