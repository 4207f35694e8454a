"""Watches samples being taken: new values before each round, outputs compared at
random, a fence after each turn.

Nothing of this is inside a sample, and nothing that a launch can see says whether it is
looked at: the same lines call it, and which sample was chosen is drawn from the
system's own secrets.

Is a call as quick on values that it has not seen? One that remembers results, by
whatever of its inputs, is not.
"""

from __future__ import annotations

import contextlib
import functools
import operator
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch

from batchline.bench import units
from batchline.bench.measure.checking import check
from batchline.bench.measure.checking.check import SECRET
from batchline.bench.measure.checking.fence import Fence
from batchline.bench.measure.machine import memory
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.timing.clocks import copy_of
from batchline.bench.measure.timing.sampling import Ledger, Samples
from batchline.bench.measure.timing.values import CHANGED_INPUTS, Values
from batchline.bench.measure.worker.preparing import Problem
from batchline.bench.statuses import WRONG, NotMeasured
from batchline.kernels.op import Variant

_LONGEST_S = 5e-3  # a longer call has a turn of few calls, on new values each time
_SHORT_S = 3e-4
_PAIRS, _FEW_PAIRS = 6, 2
_MORE_PAIRS = (
    8,
    12,
    12,
)  # of looks that all must agree, where the first one gives reason to
_SLOWER = 1.5
_MOSTLY = 0.8  # of all pairs of a call on new values and one on old


def may_remember(samples: Samples) -> bool:
    """Whether the calls that turns began with, on new values, took longer than those
    after them, on the same ones.

    They do where the caches were another launch's, too: then `require_no_memory` tells.
    """
    return (
        samples.median_s < _LONGEST_S
        and samples.first_s is not None
        and samples.first_s > _SLOWER * samples.median_s
    )


def require_no_memory(
    launch: Callable[[], object], values: Values, call_s: float, hardware, where: str
) -> None:
    """Time calls after the same values were written again, and after new ones were.

    Raises:
        NotMeasured: WRONG if calls on new values take half as long again in the median,
            and four of five of them do, in each of three looks after a first one.
    """
    pairs = _PAIRS if call_s < _SHORT_S else _FEW_PAIRS

    def timed() -> float:
        hardware.synchronize()
        start_s = hardware.now_s()
        launch()
        hardware.synchronize()
        return hardware.now_s() - start_s

    seen_s, new_s = _pairs(timed, values, pairs)
    if not _ratio(new_s, seen_s) > _SLOWER:
        return
    for more in _MORE_PAIRS:
        seen_s, new_s = _pairs(timed, values, more)
        if not _is_slower(new_s, seen_s):
            return
    new, seen = (
        units.duration(statistics.median(times_s)) for times_s in (new_s, seen_s)
    )
    raise NotMeasured(
        WRONG,
        f"{where}: it remembers results: a call takes {new} on new values, and {seen} on values "
        "that it has seen",
    )


def _pairs(
    timed: Callable[[], float], values: Values, count: int
) -> tuple[list[float], list[float]]:
    """Seconds of `count` calls on values seen before, and of as many on new ones, in an
    order drawn at random.
    """
    seen_s, new_s = [], []
    kinds = [True, False] * count
    SECRET.shuffle(kinds)
    timed()
    for is_new in kinds:
        (values.renew if is_new else values.rewrite)()
        (new_s if is_new else seen_s).append(timed())
    return seen_s, new_s


def _is_slower(one_s: Sequence[float], other_s: Sequence[float]) -> bool:
    longer = sum(one > other for one in one_s for other in other_s)
    return _ratio(one_s, other_s) > _SLOWER and longer >= _MOSTLY * len(one_s) * len(
        other_s
    )


def _ratio(one_s: Sequence[float], other_s: Sequence[float]) -> float:
    return statistics.median(one_s) / max(statistics.median(other_s), 1e-12)


LEAST_CHECKS, LEAST_BESIDE = (
    2,
    1,
)  # of each launch by the clock that ranks, and by another one
_CHECKED_ROUNDS, _REDRAWN_ROUNDS = 0.5, 0.25  # of those that can be afforded
_FULL_LOOKS = 0.02  # of the turns that can be afforded
_MOST_KEPT = 24  # outputs of one check
_MOST_KEPT_BYTES = 2**25
_VOLATILE = frozenset({"result", "copies", "_hold_s", "_held_in_a_row"})  # of a clock


class Watch:
    """Watches the launches of one problem by one clock; looks at each `least` times or
    more what it computes.

    `variants` are by the launches' names.
    """

    def __init__(
        self,
        problem: Problem,
        variants: Mapping[str, Variant],
        fence: Fence,
        ledger: Ledger,
        least: int = LEAST_CHECKS,
    ):
        self._problem, self._values = problem, problem.values
        self._variants, self._fence, self._ledger = dict(variants), fence, ledger
        self._least = least
        self._checks = dict.fromkeys(variants, 0)
        self._looked_at_all: set[str] = set()
        self._turns_since_look: set[str] = set()
        self._clocks: dict[str, _Parts] = {}  # what each launch's clock is made of
        self._ours: list[_Ours] = []
        self._is_checking = False
        self._spent_s = ledger.spent_s  # when the present round began
        self._expected: check.Expected | None = (
            None  # on the values of the last round that was checked
        )
        self._damage: Tampered | None = None

    def begin(
        self, collects: bool, clocks: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        """Before the first round; `collects`: whether garbage collection is on from now
        on.
        """
        self._fence.collects = collects
        self._clocks = {name: _Parts(clock) for name, clock in clocks.items()}
        hardware = {id(clock.hardware): clock.hardware for clock in clocks.values()}
        self._ours = [
            _Ours(one)
            for one in (
                self,
                self._problem,
                self._values,
                self._fence,
                self._ledger,
                SECRET,
                *hardware.values(),
            )
        ]

    def end(self, collects: bool) -> None:
        """After the last round: look at everything once more."""
        with self._ledger.spending():
            self._look()
            self._require_intact()
        self._fence.collects = collects

    def wants_more(self) -> bool:
        """Whether a launch has not been checked often enough."""
        return any(count < self._least for count in self._checks.values())

    def drop(self, name: str) -> None:
        """This launch has no more turns."""
        self._checks.pop(name, None)
        self._clocks.pop(name, None)

    def before_round(self) -> None:
        """Give the inputs new values, and choose whether this round is checked."""
        self._ledger.check_s = max(
            self._ledger.check_s, self._ledger.spent_s - self._spent_s
        )
        self._spent_s = self._ledger.spent_s
        with self._ledger.spending():
            is_affordable = self._ledger.can_afford(self._ledger.check_s)
            self._is_checking = (
                self.wants_more() or is_affordable
            ) and SECRET.random() < _CHECKED_ROUNDS
            if self._is_checking and not is_affordable and self._values.knows_new:
                self._values.recall()
            elif is_affordable and SECRET.random() < _REDRAWN_ROUNDS:
                self._values.redraw()
            else:
                self._values.renew()
            if self._is_checking:
                self._expect()

    def plan(self, name: str, clock, samples: int) -> list["Look | None"]:
        """What to look at in a turn: for each sample a Look, or None. A Look with calls
        of its own is one more.
        """
        steps: list[Look | None] = [None] * samples
        if self._is_checking and name in self._checks:
            with self._ledger.spending():
                self._checks[name] += 1
                place = SECRET.randrange(samples)
                # At least one of the checks looks at all calls: by its last calls alone
                # a launch that skips some of them is right by luck.
                is_due = (
                    self._checks[name] >= self._least
                    and name not in self._looked_at_all
                )
                if clock.takes_calls and (is_due or SECRET.random() < 0.5):
                    self._looked_at_all.add(name)
                    steps.insert(place, self._look_at_all(name, clock))
                else:
                    steps[place] = Look(self, name, [])
        return steps

    def after_turn(self, name: str) -> None:
        """Raise Tampered if the process or the inputs are not as they were."""
        with self._ledger.spending():
            self._turns_since_look.add(name)
            if self._damage:
                raise self._damage
            self._fence.glance(name)
            self._require_same_clocks(name)
            if not self._values.look_intact():
                raise Tampered(name, CHANGED_INPUTS)
            if self._ledger.can_afford() and SECRET.random() < _FULL_LOOKS:
                self._look()
                self._require_intact()

    def judge(self, name: str, clock_name: str, returned: list, copy) -> None:
        """Raise NotMeasured if what a launch returned is wrong, or was not there when
        the call had returned.

        If the inputs are not what they must be, `after_turn` says so, and nobody is
        blamed for an output.
        """
        try:
            self._require_all_right(
                name, returned, copy, f"the output that was timed by {clock_name}"
            )
        except NotMeasured:
            self._damage = self._damage_of_inputs()
            if not self._damage:
                raise

    def _require_all_right(self, name: str, returned: list, copy, how: str) -> None:
        variant = self._variants[name]
        plain = [self._problem.plain_outputs(variant, one, how) for one in returned]
        one = SECRET.choice(plain)
        self._problem.require_right(name, variant, one, how)
        where = f"{self._problem.where}, {how}"
        if not check.same_bits(
            self._problem.plain_outputs(variant, copy, how), plain[-1]
        ):
            raise NotMeasured(
                WRONG, f"{where}: it was written to after the call had returned"
            )
        if not all(check.are_same(other, one) for other in plain if other is not one):
            raise NotMeasured(
                WRONG,
                f"{where}: {len(returned)} calls in a row on the same inputs differ",
            )

    def spending(self) -> contextlib.AbstractContextManager:
        """What the block takes counts as spent on fences."""
        return self._ledger.spending()

    def spoil(self, count: int) -> None:
        """Leave wrong values in free memory of the outputs' sizes, so that what is not
        written does not look right.
        """
        blocks = [
            _moved_and_negated(output, dtype)
            for _ in range(count)
            for output, dtype in zip(self._expected.outputs, self._expected.dtypes)
        ]
        del blocks

    def _look_at_all(self, name: str, clock) -> "Look":
        """So many calls that their number says nothing, of small outputs at least two; the
        outputs of all are kept.
        """
        output_bytes = self._expected.output_bytes
        most = max(
            1,
            min(
                2 * clock.iterations,
                _MOST_KEPT,
                _MOST_KEPT_BYTES // max(1, output_bytes),
            ),
        )
        return Look(self, name, [clock.launch] * SECRET.randint(min(2, most), most))

    def _require_same_clocks(self, name: str) -> None:
        """Raise Tampered if a clock is made of something else, or an object of ours has
        a method of somebody's own.
        """
        for whose, parts in self._clocks.items():
            if not parts.are_same():
                raise Tampered(name, f"it changed the clock of {whose}")
        for ours in self._ours:
            if not ours.has_its_kinds_methods():
                raise Tampered(name, f"it replaced {ours.what_is_replaced()}")

    def _look(self) -> None:
        (whose,) = (
            self._turns_since_look if len(self._turns_since_look) == 1 else (None,)
        )
        self._fence.look(whose)
        self._turns_since_look.clear()

    def _require_intact(self) -> None:
        if damage := self._damage_of_inputs():
            raise damage

    def _damage_of_inputs(self) -> Tampered | None:
        if self._values.are_intact():
            return None
        (whose,) = (
            self._turns_since_look if len(self._turns_since_look) == 1 else (None,)
        )
        return Tampered(whose, CHANGED_INPUTS)

    def _expect(self) -> None:
        try:
            self._expected = self._values.expected()
        except (
            RuntimeError
        ) as error:  # on values whose outputs are known no reference is needed
            if not memory.is_out_of_memory(error) or not self._values.recall():
                raise
            self._expected = self._values.expected()


class Look:
    """A sample whose outputs are looked at: the last one's of the clock's own calls, or
    those of all of `launches`.
    """

    def __init__(self, watch: Watch, name: str, launches: list):
        self._watch, self._name = watch, name
        self._kept: list = []
        # Called from the same line as the launch itself, with no frame in between.
        self._calls = [
            functools.partial(self._kept.extend, map(operator.call, (launch,)))
            for launch in launches
        ]
        self.is_timed = not launches

    def prepare(self, clock) -> None:
        """Right before the sample."""
        with self._watch.spending():
            if (
                self._calls or not clock.settles_s
            ):  # where a sample is timed it must find its memory warm, or all cold
                self._watch.spoil(max(1, len(self._calls)))
            if self._calls:
                clock.use(self._calls)
            if hasattr(
                clock, "copies"
            ):  # or nothing says that this sample is looked at
                clock.copies = True

    def take(self, clock) -> None:
        """A sample whose time does not count, looked at; raises NotMeasured if it is
        wrong.
        """
        try:
            self.prepare(clock)
            clock.sample()
            self.see(clock)
        finally:
            self._restore(clock)

    def see(self, clock) -> None:
        """Right after the sample; raises NotMeasured if it is wrong."""
        with self._watch.spending():
            returned = self._kept if self._calls else [clock.result]
            copy = copy_of(returned[-1])
            self._restore(clock)
            self._watch.judge(self._name, clock.name, returned, copy)

    def _restore(self, clock) -> None:
        if hasattr(clock, "copies"):
            clock.copies = False
        if self._calls:
            clock.use(None)


def _moved_and_negated(output: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each element's negative in the next one's place, in a new tensor: where all are
    0, or of one sign, too.
    """
    values, moved = output.flatten(), torch.empty(
        output.numel(), dtype=dtype, device=output.device
    )
    moved[1:].copy_(values[:-1])
    moved[:1].copy_(values[-1:])
    return moved.neg_()


class _Ours:
    """An object of ours, in a form in which a microsecond tells whether its methods are
    still those of its class.
    """

    def __init__(self, ours):
        self._ours, self._kind, self._attributes = ours, type(ours), vars(ours)
        self._methods = frozenset(
            name
            for name in dir(type(ours))
            if callable(getattr(type(ours), name, None))
        )

    def has_its_kinds_methods(self) -> bool:
        return (
            type(self._ours) is self._kind
            and vars(self._ours) is self._attributes
            and self._attributes.keys().isdisjoint(self._methods)
        )

    def what_is_replaced(self) -> str:
        covered = sorted(self._methods & vars(self._ours).keys())
        return f"{self._kind.__name__}.{covered[0] if covered else '__dict__'}"


class _Parts:
    """What a clock is made of, in a form that is compared with what it is made of now
    in a microsecond.
    """

    def __init__(self, clock):
        self._clock, self._kind, self._now = clock, type(clock), vars(clock)
        self._names = tuple(name for name in self._now if name not in _VOLATILE)
        self._values = tuple(map(self._now.get, self._names))
        self._known = frozenset(self._names) | _VOLATILE

    def are_same(self) -> bool:
        return (
            type(self._clock) is self._kind
            and vars(self._clock) is self._now
            and all(map(operator.is_, map(self._now.get, self._names), self._values))
            and self._now.keys() <= self._known
        )
