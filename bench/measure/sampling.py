"""Samples of several launches in turns, until each median is known well enough: one room for order, stop and state.

Interleaved in short turns, in an order drawn anew each round, whatever the machine does over tenths of a second it
does to all of them alike. Samples that were taken while it was throttled are dropped and taken again after a pause.
"""
from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from bench.records import INVALID, THE_MACHINE_WAS, NotMeasured
from bench.verdicts import medians

_TURN_S = 2e-3
_LOOK_S = 0.05       # between two looks at the machine's state and at the precision reached
_FIRST_ROUNDS = 3    # of one sample each, to learn how long they are
_PAUSES_S = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True)
class Effort:
    """When to stop: every median known to ±`precision` (a share of it), or each launch timed for `seconds`.

    Each launch gets `least` samples whatever they take; of more than `most`, so many are kept, evenly over the time.
    """

    precision: float
    seconds: float
    least: int = medians.LEAST_SAMPLES
    most: int = 400

    @property
    def sample_s(self) -> float:
        """How long a sample of a short call should be, so that `most` of them span the whole time."""
        return self.seconds / self.most


@dataclass
class Samples:
    """What was taken of one launch: seconds a call, each the mean of `iterations` calls in a row."""

    clock: str
    iterations: int
    samples_s: list[float] = field(default_factory=list)
    discarded: int = 0

    @property
    def precision(self) -> float:
        return medians.precision(self.samples_s)

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples_s)


class _Launch:
    """One clock on one launch, with its samples: those kept, and those taken since the last look at the state."""

    def __init__(self, clock):
        self.clock = clock
        self.kept = Samples(clock.name, clock.iterations)
        self.fresh_s: list[float] = []
        self.spent_s = 0.0           # on the samples kept, with all that they take beside what they time
        self.fresh_spent_s = 0.0
        self.a_sample_s = math.inf   # the quickest, likewise
        self.samples_a_turn = 1
        self.error: BaseException | None = None

    def turn(self, now_s: Callable[[], float]) -> None:
        """Settle if that is worth it, then the samples of a turn."""
        start_s = reached_s = now_s()
        try:
            if self.a_sample_s < self.clock.settles_s or self.a_sample_s == math.inf:
                self.clock.settle()
                reached_s = now_s()
            for _ in range(self.samples_a_turn):
                self.fresh_s.append(self.clock.sample())
                before_s, reached_s = reached_s, now_s()
                self.a_sample_s = min(self.a_sample_s, reached_s - before_s)
        finally:
            self.clock.result = None  # or the outputs of all would be in memory at once
            self.fresh_spent_s += reached_s - start_s

    def wants_more(self, effort: Effort) -> bool:
        count = len(self.kept.samples_s)
        if self.error or count >= effort.most:
            return False
        return count < effort.least or (self.spent_s < effort.seconds and self.kept.precision > effort.precision)

    def thinned(self, most: int) -> Samples:
        """What was kept, or `most` of it evenly over the time."""
        taken = self.kept.samples_s
        if len(taken) > most:
            self.kept.samples_s = [taken[index * len(taken) // most] for index in range(most)]
        return self.kept


def sample(clocks: Mapping[str, object], effort: Effort, why_throttled: Callable[[], str | None],
           tell: Callable[[str], None] = lambda name: None, pause: Callable[[float], None] = time.sleep,
           now_s: Callable[[], float] = time.perf_counter, seed: int = 0) -> dict[str, Samples | BaseException]:
    """Take samples by each clock, in turns; returns each name's samples, or what its launch raised.

    Args:
        clocks: name → a clock made for one launch, which must be warm.
        effort: when to stop.
        why_throttled: asked right after work: what slowed the machine down, or None.
        tell: told the name of the launch whose turn it is.

    A launch with too few samples that were not throttled gets NotMeasured(INVALID).
    """
    launches = {name: _Launch(clock) for name, clock in clocks.items()}
    order = random.Random(seed)
    pauses = iter(_PAUSES_S)
    collecting = gc.isenabled()
    gc.disable()
    try:
        throttled = None
        why_throttled()  # what was before is not of these samples
        for _ in range(_FIRST_ROUNDS):
            _rounds(launches, order, tell, now_s, 0)
        _share_out(launches.values())
        # All go on until none wants more: samples over another span of time would have another share of the drift.
        while any(launch.wants_more(effort) for launch in launches.values()):
            if throttled:
                pause_s = next(pauses, None)
                if pause_s is None:
                    break
                pause(pause_s)
                why_throttled()
            _rounds(launches, order, tell, now_s, _LOOK_S)
            throttled = why_throttled()
            _keep_or_drop(launches, throttled)
    finally:
        if collecting:
            gc.enable()
    return {name: _outcome(launch, effort, throttled) for name, launch in launches.items()}


def _rounds(launches: Mapping[str, _Launch], order: random.Random, tell: Callable, now_s: Callable,
            seconds: float) -> None:
    """Rounds of one turn each, for so many seconds and at least one."""
    names = [name for name, launch in launches.items() if not launch.error]
    until_s = now_s() + seconds
    while True:
        order.shuffle(names)
        for name in list(names):
            tell(name)
            try:
                launches[name].turn(now_s)
            except (Exception, SystemExit) as error:  # it ends as this launch's row
                launches[name].error = error
                names.remove(name)
        if not names or now_s() >= until_s:
            return


def _share_out(launches: Iterable[_Launch]) -> None:
    """How many samples a turn of each has, from now on: as many as fit the usual turn, or half the slowest's sample.

    Once for all, and not by the time at hand: with more samples where the machine happens to be fast, launches of
    unlike lengths would have unlike shares of its fast times.
    """
    known = [launch for launch in launches if launch.a_sample_s < math.inf]
    turn_s = max(_TURN_S, *(launch.a_sample_s / 2 for launch in known), 0)
    for launch in known:
        launch.samples_a_turn = max(1, int(turn_s / max(launch.a_sample_s, 1e-9)))


def _keep_or_drop(launches: Mapping[str, _Launch], throttled: str | None) -> None:
    for launch in launches.values():
        if throttled:
            launch.kept.discarded += len(launch.fresh_s)
        else:
            launch.kept.samples_s += launch.fresh_s
            launch.spent_s += launch.fresh_spent_s
        launch.fresh_s, launch.fresh_spent_s = [], 0.0


def _outcome(launch: _Launch, effort: Effort, throttled: str | None) -> Samples | BaseException:
    if launch.error:
        return launch.error
    count = len(launch.kept.samples_s)
    if count < effort.least:
        return NotMeasured(INVALID, f"{THE_MACHINE_WAS}throttled ({throttled}): {count} of at least {effort.least} "
                                    f"samples are left, {launch.kept.discarded} were dropped")
    return launch.thinned(effort.most)
