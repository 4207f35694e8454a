"""Streams, events and graphs on a made-up time: what is queued takes as long as is
said, and is computed late.

The host's clock moves only where work is queued, asked about or waited for. A stream's
work is computed when the stream goes on with an operation of torch's, or is waited for;
until then its results are not there.

How warm each device is: under products for a while, its power cap lowers its clock,
as an H200's does.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

BOOST_MHZ, CAPPED_MHZ = 1980, 1440
_SPAN_S = 0.1  # over which a cap looks at the load
_MOST_LOAD = 0.6  # of that span in products


class Power:
    """The share of the last while that one device has spent on products."""

    def __init__(self):
        self._load = 0.0
        self._until_s = 0.0

    def add(self, start_s: float, seconds: float, is_product: bool) -> float:
        """Count work of so many seconds at the boost clock; returns how many it takes
        at the present one.
        """
        self._load = self._load_at(start_s)
        taken_s = seconds * BOOST_MHZ / self._mhz(self._load) if is_product else seconds
        left = math.exp(-taken_s / _SPAN_S)
        self._load = self._load * left + (1 - left) * is_product
        self._until_s = start_s + taken_s
        return taken_s

    def mhz(self, now_s: float) -> int:
        return self._mhz(self._load_at(now_s))

    def _load_at(self, now_s: float) -> float:
        return self._load * math.exp(-max(0.0, now_s - self._until_s) / _SPAN_S)

    @staticmethod
    def _mhz(load: float) -> int:
        return CAPPED_MHZ if load > _MOST_LOAD else BOOST_MHZ


POWERS: defaultdict[int, Power] = defaultdict(Power)  # by the device's index


# Of the device: for one operation of torch's and one of our kernels, beside what they
# move.
OPERATION_S, KERNEL_S = 1e-3, 2e-3
BYTES_PER_S = 1e8  # of what a launch reads and writes
_JITTER = 0.01
_QUEUE_S, _ASK_S = 5e-6, 1e-6  # of the host
NOT_PERMITTED = "CUDA error: operation not permitted when stream is capturing"
INVALIDATED = "CUDA error: operation failed due to a previous error during capture"
NOT_READY = "CUDA error: device not ready"
_ids = itertools.count(0x5000)


class Clock:
    """The host's."""

    def __init__(self):
        self.now_s = 0.0
        self._random = random.Random(0)

    def queued(self) -> None:
        self.now_s += _QUEUE_S

    def asked(self) -> None:
        self.now_s += _ASK_S

    def wait_until(self, time_s: float) -> None:
        self.now_s = max(self.now_s, time_s)

    def varied(self, seconds: float) -> float:
        """About so many seconds."""
        return seconds * (1 + _JITTER * self._random.random())


CLOCK = Clock()


@dataclass(eq=False)
class Work:
    """Something queued: `compute` is called once, in its stream's order."""

    compute: Callable[[], None]
    is_done: bool = False


class Lost(RuntimeError):
    """What CUDA raises on every call once a kernel has broken the context."""


class Context:
    """A process's: once a kernel has failed, nothing works any more."""

    def __init__(self):
        self.why_lost: str | None = None

    def require(self) -> None:
        if self.why_lost:
            raise Lost(self.why_lost)


CONTEXT = Context()


class Queue:
    """What a stream is: work in order, each with its time."""

    def __init__(self, device: int):
        self.device = device
        self.number = next(_ids)
        self.ready_s = 0.0
        self.capture: Graph | None = None
        self._waiting: deque[Work] = deque()

    def add(
        self,
        compute: Callable[[], None] | None,
        seconds: float,
        is_product: bool = False,
    ) -> Work:
        """Queue work of so many seconds at the boost clock; while the stream is
        captured it is a part of the graph.

        `is_product`: it draws so much power that it is slower under a power cap, and in
        the end brings it on.
        """
        CONTEXT.require()
        CLOCK.queued()
        work = Work(compute or (lambda: None))
        if self.capture:
            self.capture.add(work.compute, seconds, is_product)
            return work
        self._waiting.append(work)
        start_s = max(self.ready_s, CLOCK.now_s)
        self.ready_s = start_s + POWERS[self.device].add(
            start_s, CLOCK.varied(seconds), is_product
        )
        return work

    def compute(self, until: Work | None = None) -> None:
        """Do what is queued, up to some of it; what raises has broken the context."""
        while self._waiting and not (until and until.is_done):
            work = self._waiting.popleft()
            work.is_done = True
            try:
                work.compute()
            except Exception as error:
                CONTEXT.why_lost = f"CUDA error: {error}"
                self._waiting.clear()
        CONTEXT.require()

    def synchronize(self) -> None:
        """Wait until all is done."""
        self.require_not_captured()
        self.compute()
        CLOCK.wait_until(self.ready_s)

    def require_not_captured(self) -> None:
        """Raise what a capture raises that meets what it can't hold; it is invalid from
        then on.
        """
        if self.capture:
            self.capture.is_valid = False
            raise RuntimeError(NOT_PERMITTED)


class Event:
    """A place in a stream, and when it is reached."""

    def __init__(self, timed: bool):
        self._timed = timed
        self._queue: Queue | None = None
        self._work: Work | None = None
        self._time_s: float | None = None

    def record(self, queue: Queue) -> None:
        self._work = queue.add(None, 0.0)
        self._queue, self._time_s = queue, None if queue.capture else queue.ready_s

    def query(self) -> bool:
        CLOCK.asked()
        return self._time_s is None or self._time_s <= CLOCK.now_s

    def synchronize(self) -> None:
        if self._queue:
            self._queue.require_not_captured()
            self._queue.compute(self._work)
            CLOCK.wait_until(self._time_s)

    def hold_back(self, queue: Queue) -> None:
        """Let what is queued there from now on come after this."""
        if self._queue and not queue.capture:
            mine, work = self._queue, self._work
            queue.add(lambda: mine.compute(work), 0.0)
            queue.ready_s = max(queue.ready_s, self._time_s)

    def seconds_to(self, end: Event) -> float:
        if (
            not (self._timed and end._timed)
            or self._time_s is None
            or end._time_s is None
        ):
            raise RuntimeError("CUDA error: invalid resource handle")
        if not (self.query() and end.query()):
            raise RuntimeError(NOT_READY)
        return end._time_s - self._time_s


@dataclass(eq=False)
class Graph:
    """What was captured from a stream: computed at each replay, into the same memory."""

    is_valid: bool = True
    seconds: float = 0.0
    has_products: bool = False
    number: int = field(default_factory=_ids.__next__)
    _parts: list[Callable[[], None]] = field(default_factory=list)

    def add(
        self, compute: Callable[[], None], seconds: float, is_product: bool
    ) -> None:
        self._parts.append(compute)
        self.seconds += seconds
        self.has_products |= is_product

    def replay(self, queue: Queue) -> None:
        def compute() -> None:
            for part in self._parts:
                part()

        queue.add(compute, self.seconds, self.has_products)
