"""Samples of several launches in turns, until each median is known well enough: one room
for order, stop and state.

Interleaved in short turns, in an order drawn anew each round, whatever the machine does
over tenths of a second it does to all of them alike. Samples that were taken while it
was throttled are dropped and taken again after a pause.
"""

from __future__ import annotations

import contextlib
import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import (
    perf_counter as now_s,
)  # as it is now, whatever a variant makes of time.perf_counter later
from types import MappingProxyType

from batchline.bench.measure.machine import process_state
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.stats import intervals
from batchline.bench.statuses import INVALID, THE_MACHINE_WAS, NotMeasured

_SHARE = 0.03  # of a task's time, for what can be done less often
_TURN_S = (
    4e-3  # several times as long as the threads of the launch before are waited for
)
_LOOK_S = 0.05  # between two looks at the machine's state and at the precision reached
_FIRST_ROUNDS = 3  # of one sample each, to learn how long they are
_PAUSES_S = (0.1, 0.3, 1.0, 3.0)
_LEAST_BESIDE_S, _BESIDE = (
    2e-5,
    0.1,
)  # that a sample may take beside what it reads: so long, or such a share of it
# Or so many times what it is for the launch that takes least, and such a share at most:
# a busy machine makes it longer for all, and so does a clock that has been slowed down
# for all.
_BESIDE_USUAL, _MOST_BESIDE = 3, 0.3


class Ledger:
    """Counts from when it is made."""

    def __init__(self):
        self._since_s = now_s()
        self._depth = 0
        self.spent_s = 0.0
        self.check_s = 0.0  # what the dearest checked round took

    @property
    def total_s(self) -> float:
        return now_s() - self._since_s

    def can_afford(self, more_s: float = 0.0) -> bool:
        """Whether less than the usual share of the time will have been spent after so
        many seconds more.
        """
        return self.spent_s + more_s < _SHARE * self.total_s

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """What the block takes counts as spent, once."""
        start_s = now_s()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.spent_s += now_s() - start_s

    def facts(self, entries: int) -> dict[str, float]:
        """The share of one of so many entries: seconds of the task, and of them those
        spent on fences.
        """
        return {
            "task_s": self.total_s / max(1, entries),
            "fences_s": self.spent_s / max(1, entries),
        }


@dataclass(frozen=True)
class Effort:
    """When to stop: every median known to ±`precision` (a share of it), or each launch
    timed for `seconds`.

    Each launch gets `least` samples whatever they take; of more than `most`, so many
    are kept, evenly over the time.
    """

    precision: float
    seconds: float
    least: int = intervals.LEAST_SAMPLES
    most: int = 400

    @property
    def sample_s(self) -> float:
        """How long a sample of a short call should be, so that `most` of them span the
        whole time.
        """
        return self.seconds / self.most


@dataclass
class Samples:
    """What was taken of one launch: seconds a call, each the mean of `iterations` calls
    in a row.

    `first_s`: the median of the calls that turns began with, which were not timed; None
    where there were none. `alone`: why the launch was not sampled in turns with the
    others of its problem; None where it was.
    """

    clock: str
    iterations: int
    samples_s: list[float] = field(default_factory=list)
    discarded: int = 0
    first_s: float | None = None
    alone: str | None = None

    @property
    def precision(self) -> float:
        return intervals.median_precision(self.samples_s)

    @property
    def median_s(self) -> float:
        return statistics.median(self.samples_s)


class Unwatched:
    """Watches nothing; bench.measure.worker.watch.Watch has the same methods, and does."""

    def begin(
        self, collects: bool, clocks: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        """Before the first round."""

    def end(self, collects: bool) -> None:
        """After the last round."""

    def wants_more(self) -> bool:
        """Whether there must be more rounds."""
        return False

    def drop(self, name: str) -> None:
        """This launch has raised, and has no more turns."""

    def before_round(self) -> None:
        """Before every launch's next turn."""

    def plan(self, name: str, clock, samples: int) -> list:
        """What to look at in a turn: for each sample a Look, or None."""
        return [None] * samples

    def after_turn(self, name: str) -> None:
        """After each turn."""


class _Launch:
    """One clock on one launch, with its samples: those kept, and those taken since the
    last look at the state.
    """

    def __init__(self, name: str, clock):
        self.name = name
        self.clock = clock
        self.kept = Samples(clock.name, clock.iterations)
        self.fresh_s: list[float] = []
        self.spent_s = (
            0.0  # on the samples kept, with all that they take beside what they time
        )
        self.fresh_spent_s = 0.0
        self.a_sample_s = math.inf  # the quickest, likewise
        self.samples_a_turn = 1
        self.first_s: list[float] = []  # the calls that turns began with
        self.beside_s: list[float] = []  # what samples took beside what they read
        self.error: BaseException | None = None

    def turn(self, now_s: Callable[[], float], watch: Unwatched) -> None:
        """Settle if that is worth it, then the samples of a turn."""
        looks = watch.plan(self.name, self.clock, self.samples_a_turn)
        start_s = now_s()
        try:
            if self.a_sample_s < self.clock.settles_s or self.a_sample_s == math.inf:
                self.clock.settle()
                self.first_s.append(now_s() - start_s)
                self.fresh_spent_s += self.first_s[-1]
            for look in looks:
                if look:
                    look.prepare(self.clock)
                before_s = now_s()
                seconds = self.clock.sample()
                took_s = now_s() - before_s
                if look:
                    look.see(self.clock)
                if not look or look.is_timed:
                    self._keep(seconds, took_s)
        finally:
            self.clock.result = None  # or the outputs of all would be in memory at once

    def require_true_time(self, usual_s: float) -> None:
        """Raise Tampered if samples took much longer than they read: then it is not the
        clock that was read.

        `usual_s`: what samples take beside what they read, of the launch of these for
        which that is least.
        """
        if self.beside_s and self.kept.samples_s:
            beside_s, read_s = (
                statistics.median(self.beside_s),
                self.kept.median_s * self.clock.iterations,
            )
            busy_s = min(_BESIDE_USUAL * usual_s, _MOST_BESIDE * read_s)
            if beside_s > max(_LEAST_BESIDE_S, _BESIDE * read_s, busy_s):
                raise Tampered(
                    self.name,
                    f"it changed the clock: samples that read {read_s:.3g} s took "
                    f"{read_s + beside_s:.3g} s",
                )

    def _keep(self, seconds: float, took_s: float) -> None:
        self.fresh_s.append(seconds)
        self.fresh_spent_s += took_s
        self.a_sample_s = min(self.a_sample_s, took_s)
        if self.clock.is_all_timed:
            self.beside_s.append(took_s - seconds * self.clock.iterations)

    def wants_more(self, effort: Effort) -> bool:
        count = len(self.kept.samples_s)
        if self.error or count >= effort.most:
            return False
        return count < effort.least or (
            self.spent_s < effort.seconds and self.kept.precision > effort.precision
        )

    def thinned(self, most: int) -> Samples:
        """What was kept, or `most` of it evenly over the time."""
        taken = self.kept.samples_s
        self.kept.first_s = statistics.median(self.first_s) if self.first_s else None
        if len(taken) > most:
            self.kept.samples_s = [
                taken[index * len(taken) // most] for index in range(most)
            ]
        return self.kept


def sample(
    clocks: Mapping[str, object],
    effort: Effort,
    why_throttled: Callable[[], str | None],
    tell: Callable[[str], None] = lambda name: None,
    pause: Callable[[float], None] = time.sleep,
    now_s: Callable[[], float] = time.perf_counter,
    seed: int = 0,
    watch: Unwatched = Unwatched(),
    rest: Callable[[], None] = process_state.wait_until_asleep,
) -> dict[str, Samples | BaseException]:
    """Take samples by each clock, in turns; returns each name's samples, or what its
    launch raised.

    Args:
        clocks: name → a clock made for one launch, which must be warm.
        effort: when to stop.
        why_throttled: asked right after work: what slowed the machine down, or None.
        tell: told the name of the launch whose turn it is.
        watch: told of each round and turn, and chooses the samples that are looked at.
        rest: called before each turn: returns when what ran before no longer has a
        core.

    A launch with too few samples that were not throttled gets NotMeasured(INVALID).

    Raises:
        Tampered: if a launch changed the clock, or whatever `watch` finds changed.
    """
    launches = {name: _Launch(name, clock) for name, clock in clocks.items()}
    order = random.Random(seed)
    pauses = iter(_PAUSES_S)
    collecting = gc.isenabled()
    gc.disable()
    watch.begin(collects=False, clocks=clocks)
    try:
        throttled = None
        why_throttled()  # what was before is not of these samples
        for _ in range(_FIRST_ROUNDS):
            _rounds(launches, order, tell, rest, now_s, 0, watch)
        _share_out(launches.values())
        # All go on until none wants more: samples over another span of time would have
        # another share of the drift.
        while (
            any(launch.wants_more(effort) for launch in launches.values())
            or watch.wants_more()
        ):
            if throttled:
                pause_s = next(pauses, None)
                if pause_s is None:
                    break
                pause(pause_s)
                why_throttled()
            _rounds(launches, order, tell, rest, now_s, _LOOK_S, watch)
            throttled = why_throttled()
            _keep_or_drop(launches, throttled)
        beside_s = [
            statistics.median(launch.beside_s)
            for launch in launches.values()
            if launch.beside_s
        ]
        for launch in launches.values():
            launch.require_true_time(min(beside_s) if len(beside_s) > 1 else 0.0)
        watch.end(collects=collecting)
    finally:
        if collecting:
            gc.enable()
    return {
        name: _outcome(launch, effort, throttled) for name, launch in launches.items()
    }


def _rounds(
    launches: Mapping[str, _Launch],
    order: random.Random,
    tell: Callable,
    rest: Callable,
    now_s: Callable,
    seconds: float,
    watch: Unwatched,
) -> None:
    """Rounds of one turn each, for so many seconds and at least one."""
    names = [name for name, launch in launches.items() if not launch.error]
    until_s = now_s() + seconds
    while names:
        watch.before_round()
        order.shuffle(names)
        for name in list(names):
            tell(name)
            rest()
            try:
                launches[name].turn(now_s, watch)
            except (Exception, SystemExit) as error:  # it ends as this launch's row
                launches[name].error = error
                names.remove(name)
                watch.drop(name)
            watch.after_turn(name)
        if now_s() >= until_s:
            return


def _share_out(launches: Iterable[_Launch]) -> None:
    """How many samples a turn of each has, from now on: as many as fit the usual turn,
    or half the slowest's sample.

    Once for all, and not by the time at hand: with more samples where the machine
    happens to be fast, launches of unlike lengths would have unlike shares of its fast
    times.
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


def _outcome(
    launch: _Launch, effort: Effort, throttled: str | None
) -> Samples | BaseException:
    if launch.error:
        return launch.error
    count = len(launch.kept.samples_s)
    if count < effort.least:
        return NotMeasured(
            INVALID,
            f"{THE_MACHINE_WAS}throttled ({throttled}): {count} of at least {effort.least} "
            f"samples are left, {launch.kept.discarded} were dropped",
        )
    return launch.thinned(effort.most)
