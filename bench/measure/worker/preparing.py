"""From a task to launches that may be timed: each variant checked, its memory taken,
compiled and warm; and what became of each.

A Problem is its inputs, and what they must give. What a variant raises on the way is
its outcome; an error that took the device with it ends the process.

Calls that take longer than a profile has time for are met once, and larger batches of
the same are not tried. A known slow-down, to prove a gate with, is a variant that takes
its own time and a share of it more.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from batchline.bench import texts, units
from batchline.bench.measure import stand_in
from batchline.bench.measure.checking import accuracy, check, steadiness
from batchline.bench.measure.checking.check import refusal_of
from batchline.bench.measure.checking.fence import Fence
from batchline.bench.measure.machine import memory
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.reading import reading_process
from batchline.bench.measure.timing.clocks import Clock, Hardware, Unfit, make_clock
from batchline.bench.measure.timing.sampling import Effort, Ledger, Samples
from batchline.bench.measure.timing.values import CHANGED_INPUTS, Values
from batchline.bench.measure.worker.task import DeviceLost, Outcome, Task
from batchline.bench.statuses import (
    INVALID,
    MEASURED,
    NOT_HERE,
    NotMeasured,
)
from batchline.kernels import backends
from batchline.kernels.op import Op, Tensors, Variant

_ENOUGH_INPUTS = 2  # copies that a cold clock takes in turn, where one would fit the cache beside its outputs
# Of outputs that were right, kept to compare later ones with. On a GPU, where memory is
# short, judging takes little.
_MOST_KEPT_BYTES = {"cpu": 2**29, "cuda": 2**24}
RAISED = (Exception, SystemExit)
_WARM_CALLS = 16
_MOST_EMPTYING = 10  # times the effort of a clock, to empty the caches for its samples


class Problem:
    """A task's inputs, which all its entries share, and what they must give.

    `values` are at first the same in every run, so that the errors of two runs can be
    compared; then they change.
    """

    def __init__(self, op: Op, task: Task, device: str):
        self.where = f"on {task.scenario} at B={task.batch}"

        def draw(seed: int) -> Tensors:
            return op.make_inputs(task.scenario, task.batch, task.dtype, device, seed)

        seed = zlib.crc32(
            f"{op.name}/{task.scenario}/{task.dtype}/B{task.batch}".encode()
        )
        self.values = Values(op, draw(seed), draw)
        self.values.expected()  # or there is no room to check anything
        self._most_kept_bytes = _MOST_KEPT_BYTES[device]
        self._right: dict[str, Tensors] = (
            {}
        )  # each entry's right outputs on the values of which this is expected:
        self._right_of: check.Expected | None = None

    @property
    def inputs(self) -> Tensors:
        return self.values.inputs

    @property
    def input_bytes(self) -> int:
        return memory.storage_bytes(self.inputs)

    def copies(self, cache_bytes: int, count: int = _ENOUGH_INPUTS) -> list[Tensors]:
        """The inputs, or `count` sets of the same values where they are small enough to
        survive in such a cache.
        """
        return self.values.sets(1 if self.input_bytes > cache_bytes else count)

    def call(self, variant: Variant) -> tuple[Tensors, check.Accuracy]:
        """The variant's outputs, checked."""
        return check.checked_call(
            variant, self.inputs, self.values.expected(), self.where
        )

    def tolerance_multiple(self, variant: Variant) -> float:
        """How many times the op's own error bound the variant's is here; 1 where it
        declares none.
        """
        if variant.tolerance is None:
            return 1.0
        return check.tolerance_multiple(
            check.held_to(variant, self.inputs, self.values.expected()),
            self.values.expected(),
        )

    def require_right(self, label: str, variant: Variant, returned, how: str) -> None:
        """Raise NotMeasured if what an entry returned for the present values is wrong;
        `how` says where it is from.

        Bits that were right for these values once are. A bound of the variant's own is
        asked about inputs that it was never given.
        """
        outputs = self.plain_outputs(variant, returned, how)
        if self._right_of is not self.values.expected():
            self._right, self._right_of = {}, self.values.expected()
        if label in self._right and check.are_same(outputs, self._right[label]):
            accuracy.require_own_memory(outputs, self.inputs, f"{self.where}, {how}")
            return
        expected = check.held_to(variant, self.values.true, self.values.expected())
        check.check_outputs(outputs, self.inputs, expected, f"{self.where}, {how}")
        self._keep(label, outputs)

    def plain_outputs(self, variant: Variant, returned, how: str) -> Tensors:
        """What a variant returned as plain tensors; raises NotMeasured if it is
        anything else (bench.measure.checking.accuracy).
        """
        count = (
            len(self.values.expected().outputs)
            if variant.gives is None
            else variant.gives
        )
        return accuracy.plain_outputs(
            returned, self.inputs, count, f"{self.where}, {how}"
        )

    def _keep(self, label: str, outputs: Tensors) -> None:
        """A copy of right outputs, where all that are kept are not too many bytes, and
        there is room.
        """
        kept = (*outputs, *itertools.chain(*self._right.values()))
        if sum(output.nbytes for output in kept) <= self._most_kept_bytes:
            try:
                self._right[label] = tuple(output.clone() for output in outputs)
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise


def of_samples(
    by_clock: Mapping[str, Samples | str], ranks: str, facts: Mapping
) -> Outcome:
    """The outcome of an entry that was timed: `by_clock` has its samples, or why a
    clock has none.

    INVALID where the clock that `ranks` has none.
    """
    first = by_clock[ranks]
    if isinstance(first, str):
        return Outcome(INVALID, first)
    for name, samples in by_clock.items():
        if isinstance(samples, Samples) and not samples.median_s > 0:
            return Outcome(
                INVALID,
                f"by {name}, it takes no time at all: whatever it does, it is not this work",
            )
    return Outcome(
        MEASURED,
        "",
        tuple(first.samples_s),
        first.iterations,
        {
            **facts,
            "clock": first.clock,
            "precision": first.precision,
            "discarded": first.discarded,
            "clocks": {
                name: _clock_facts(samples) for name, samples in by_clock.items()
            },
        },
    )


def _clock_facts(samples: Samples | str) -> dict:
    if isinstance(samples, str):
        return {"why_not": samples}
    facts = {
        "median_s": samples.median_s,
        "precision": samples.precision,
        "samples": len(samples.samples_s),
        "iterations": samples.iterations,
    }
    return facts | ({"alone": samples.alone} if samples.alone else {})


def of_error(error: BaseException) -> Outcome:
    """The outcome of an entry that raised."""
    refusal = refusal_of(error)
    return Outcome(refusal.status, refusal.reason)


class LongCalls:
    """What is too slow to be timed. `call_s` gives the seconds that one call of a
    launch takes.
    """

    def __init__(self, call_s: Callable[[Callable], float]):
        self._call_s = call_s
        self._slow: dict[tuple[str, str, str], int] = (
            {}
        )  # the batch at which a variant took too long

    def refuse_known(self, variant_id: str, task: Task) -> None:
        """Raise NotMeasured if the variant was too slow at a smaller batch of the same
        scenario and dtype.
        """
        slow = self._slow.get((variant_id, task.scenario, task.dtype))
        if slow is not None and slow < task.batch:
            raise _too_slow(task, f" at B={slow} already")

    def refuse_slow(self, launch: Callable, variant_id: str, task: Task) -> None:
        """Raise NotMeasured unless a call, compiled by now, takes at most the longest
        time; the quickest of three.
        """
        if all(self._call_s(launch) > task.longest_call_s for _ in range(3)):
            self._slow[variant_id, task.scenario, task.dtype] = task.batch
            raise _too_slow(task)


def _too_slow(task: Task, where: str = "") -> NotMeasured:
    return NotMeasured(
        NOT_HERE,
        f"a call takes over {units.duration(task.longest_call_s)}{where}, the most that this "
        "profile has time for: PROFILE=full times it",
    )


def slower(variant: Variant, share: float, hardware) -> Variant:
    """The variant, each call of it longer by `share` of that very call's time.

    On a CPU the caller spins; on a GPU, where a call only queues its work, a kernel
    spins for at least that share of what a call took when it was first tried.
    """
    function, now_s = variant.function, hardware.now_s
    known_s: dict[tuple, float] = {}

    def on_cpu(*inputs):
        start_s = now_s()
        outputs = function(*inputs)
        until_s = now_s() * (1 + share) - start_s * share
        while now_s() < until_s:
            pass
        return outputs

    def on_cuda(*inputs):
        key = tuple(tensor.shape for tensor in inputs)
        if key not in known_s:
            function(*inputs)
            hardware.synchronize()
            known_s[key] = min(_seconds(function, inputs, hardware) for _ in range(5))
        outputs = function(*inputs)
        hardware.hold(share * known_s[key])
        return outputs

    return replace(variant, function=on_cpu if hardware.name == "cpu" else on_cuda)


def _seconds(function, inputs, hardware) -> float:
    start_s = hardware.now_s()
    function(*inputs)
    hardware.synchronize()
    return hardware.now_s() - start_s


@dataclass
class Entry:
    """One variant, right and warm: the call to time, how long it takes, and what is
    known of it so far.
    """

    variant: Variant
    launch: Callable[[], object]
    call_s: float
    facts: dict
    by_clock: dict[str, Samples | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Clocks:
    """Of one clock for the entries of a task, by label: those that could be made, why
    it can't time others, and what yet others raised.
    """

    made: Mapping[str, Clock]
    why_unfit: Mapping[str, str]
    errors: Mapping[str, BaseException]


@dataclass
class Caught:
    """What was raised in a block, as an outcome; None where nothing was."""

    outcome: Outcome | None = None


class Preparing:
    """Prepares the entries of tasks on one device; `begin` is told whose step comes
    next.
    """

    def __init__(
        self,
        device: str,
        hardware: Hardware,
        begin: Callable[[str, str], None],
        fence: Fence,
    ):
        self._device = device
        self.fence = fence
        self._hardware = hardware
        self._begin = begin
        self._verdicts: dict[tuple[str, ...], NotMeasured | int | None] = {}
        self._prepared: set[tuple[str, str]] = set()
        self._long_calls = LongCalls(self._timed)

    def problem(self, op: Op, task: Task) -> Problem | Outcome:
        """The task's problem; or every entry's outcome, where its inputs can't be made."""
        try:
            return Problem(op, task, self._device)
        except RAISED as error:  # no room for the inputs, usually
            self.require_device(error)
            return of_error(error)

    def entries(
        self,
        op: Op,
        task: Task,
        problem: Problem,
        ledger: Ledger,
    ) -> tuple[dict[str, Entry], dict[str, Outcome]]:
        """The entries that are right and warm, and the outcomes of the others, by label.

        Raises:
            Tampered: if one of them changed the process or the inputs.
        """
        entries, outcomes = {}, {}
        self._look(ledger, None, problem)  # what was done since the last task
        self.fence.keep_ops()
        for label, name in task.entries:
            loaded, files = self.fence.loaded_files(), reading_process.states(
                [op.folder]
            )
            with self.catch() as caught:
                self._begin(label, "importing it")
                variant = op.variants[name]
                self.fence.keep(variant)
            if new := self.fence.loaded_files() - loaded:
                if reading_process.states([op.folder]) != files:
                    raise Tampered(
                        label, f"a file of {op.name} changed while it was imported"
                    )
                # Of another's file it is nobody's until each is measured alone.
                self._look(
                    ledger, label if new == {f"{op.package}.{name}"} else None, problem
                )
            if caught.outcome:
                outcomes[label] = caught.outcome
                continue
            is_new = self._is_new(variant.id, task.dtype)
            with self.catch() as caught:
                variant = variant.with_config(task.configs.get(label))
                if label in task.planted:
                    variant = slower(variant, task.planted[label], self._hardware)
                entries[label] = self._prepare(label, variant, task, problem, ledger)
            if caught.outcome:
                outcomes[label] = caught.outcome
            (self._look if is_new else self._glance)(ledger, label, problem)
        return entries, outcomes

    def _is_new(self, variant_id: str, dtype: str) -> bool:
        """Whether this is the first time that it is asked of the variant in this dtype."""
        is_new = (variant_id, dtype) not in self._prepared
        self._prepared.add((variant_id, dtype))
        return is_new

    def _glance(self, ledger: Ledger, whose: str, problem: Problem) -> None:
        """Raise Tampered if what is quickly read has changed: the rest is looked at
        when the samples are taken.
        """
        with ledger.spending():
            self.fence.glance(whose)
            if not problem.values.look_intact():
                raise Tampered(whose, CHANGED_INPUTS)

    def _look(self, ledger: Ledger, whose: str | None, problem: Problem) -> None:
        """Raise Tampered if the process or the inputs have changed."""
        with ledger.spending():
            self.fence.look(whose)
            if not problem.values.are_intact():
                raise Tampered(whose, CHANGED_INPUTS)

    def clocks(
        self,
        name: str,
        effort: Effort,
        entries: Mapping[str, Entry],
        copies: Sequence[Tensors],
    ) -> Clocks:
        """A clock for each entry, or why it has none.

        `copies` of the inputs are called on in turn, if the clock does so.
        """
        if too_slow := self._why_too_slow(name, effort):
            return Clocks({}, dict.fromkeys(entries, too_slow), {})
        clocks, why_unfit, errors = {}, {}, {}
        for label, entry in entries.items():
            self._begin(label, f"timing by {name}")
            launches = [
                functools.partial(entry.variant.function, *copy) for copy in copies
            ]
            try:
                clocks[label] = make_clock(
                    name, self._hardware, launches, entry.call_s, effort.sample_s
                )
            except Unfit as unfit:
                why_unfit[label] = str(unfit)
            except RAISED as error:
                self.require_device(error)
                errors[label] = error
        return Clocks(clocks, why_unfit, errors)

    def _why_too_slow(self, name: str, effort: Effort) -> str | None:
        """Why a clock would take much longer than the effort that it gets, whatever it
        times; or None.
        """
        if name == "host_cold":
            if effort.least * self._hardware.evict_s > _MOST_EMPTYING * effort.seconds:
                cache = units.size(self._hardware.cache_bytes)
                return (
                    f"emptying a cache of {cache} for each sample takes longer than this profile has: "
                    "PROFILE=full times it"
                )
        return None

    def require_device(self, error: BaseException) -> None:
        """Raise DeviceLost if the device does not answer any more after `error`."""
        try:
            self._hardware.synchronize()
        except Exception as lost:
            raise DeviceLost(
                f"{texts.error_line(error)}; the device's context is lost"
            ) from lost

    @contextlib.contextmanager
    def catch(self) -> Iterator[Caught]:
        """A block in which whatever a variant raises becomes its outcome."""
        caught = Caught()
        try:
            yield caught
        except NotMeasured as refusal:
            caught.outcome = of_error(refusal)
        except RAISED as error:
            self.require_device(error)
            caught.outcome = of_error(error)

    def _prepare(
        self, label: str, variant: Variant, task: Task, problem: Problem, ledger: Ledger
    ) -> Entry:
        """Check the variant on its op's probes and on these inputs, take its memory,
        warm it up.
        """
        probes = (
            self._require_right(label, variant, task, ledger) if task.probes else None
        )
        self._long_calls.refuse_known(variant.id, task)
        self._begin(label, f"check {problem.where}")
        before = memory.measure_usage(self._device)
        outputs, errors = problem.call(variant)
        output_bytes = sum(tensor.numel() * tensor.element_size() for tensor in outputs)
        del outputs
        inputs = problem.inputs
        launch = functools.partial(variant.function, *inputs)
        self._long_calls.refuse_slow(launch, variant.id, task)
        peak = memory.peak_of(launch, self._device)
        kept = memory.kept_since(before)
        self._begin(label, "warm-up")
        call_s = self._warm_up(launch, task.warm_up_s)
        return Entry(
            variant,
            launch,
            call_s,
            {
                "backend": variant.backend,
                # A page holds more than a tiny output: the outputs are there all the
                # same. So is what earlier calls kept.
                "peak_bytes": (
                    None
                    if peak.bytes is None
                    else max(peak.bytes, output_bytes) + (kept or 0)
                ),
                "kept_bytes": kept,
                "memory_method": peak.method,
                "output_bytes": output_bytes,
                "input_bytes": problem.input_bytes,
                "error": errors.error,
                "error_of_tolerance": errors.error_of_tolerance,
                "error_of_typical": errors.error_of_typical,
                "probes": probes,
                "own_tolerance": variant.tolerance is not None,
                "gives": variant.gives,
                "is_peer": variant.backend in backends.PEERS,
                "tolerance_multiple": problem.tolerance_multiple(variant),
                "is_baseline": variant.name == variant.op.baseline,
                "flops": variant.op.flops(*inputs),
                "least_bytes": variant.op.least_bytes(*inputs),
                **variant.configuration(inputs, task.configs.get(label)),
            },
        )

    def _require_right(
        self, label: str, variant: Variant, task: Task, ledger: Ledger
    ) -> int:
        """Raise unless the variant passes its op's probes in this dtype, again and
        again, and near this scenario.

        Each is tried once. Returns on how many of the probes it computed something.
        """

        def walk_probes() -> int:
            return check.check_variant(
                variant,
                getattr(torch, task.dtype),
                self._device,
                _probes_for(variant, task.dtype),
                tell=lambda probe: self._begin(label, f"probes: {probe}"),
            )

        def call_often() -> None:
            self._begin(label, "probes: one of them many times")
            with ledger.spending():
                steadiness.require_same_bits(variant, task.dtype, self._device)

        def try_nearby() -> None:
            self._begin(label, f"sizes near {task.scenario}")
            with ledger.spending():
                steadiness.require_right_nearby(
                    variant, task.scenario, task.dtype, self._device, task.nearby_seed
                )

        probes = self._proven_once((variant.id, task.dtype), walk_probes)
        self._proven_once((variant.id, task.dtype, "often"), call_often)
        self._proven_once((variant.id, task.dtype, "near", task.scenario), try_nearby)
        return probes

    def _proven_once(
        self, key: tuple[str, ...], prove: Callable[[], int | None]
    ) -> int | None:
        """What `prove` returned when it was called for this key, now or earlier.

        What it raised is raised again: it is this variant's row, in each of its cases.
        """
        if key not in self._verdicts:
            try:
                self._verdicts[key] = prove()
            except RAISED as error:
                self.require_device(error)
                self._verdicts[key] = refusal_of(error)
        verdict = self._verdicts[key]
        if isinstance(verdict, NotMeasured):
            raise NotMeasured(verdict.status, verdict.reason)
        return verdict

    def _warm_up(self, launch: Callable, seconds: float) -> float:
        """Call until `seconds` have passed, and then some if they were few calls; the
        fastest call's seconds.

        The first call may compile; on a CPU the heap takes a dozen of them to have a
        warm place for each output.
        """
        self._timed(launch)
        start_s, fastest_s = self._hardware.now_s(), math.inf
        for calls in itertools.count(1):
            fastest_s = min(fastest_s, self._timed(launch))
            spent_s = self._hardware.now_s() - start_s
            if spent_s >= seconds and (calls >= _WARM_CALLS or spent_s >= 5 * seconds):
                return max(fastest_s, 1e-9)

    def _timed(self, launch: Callable) -> float:
        """Seconds of one call, until the device is done."""
        start_s = self._hardware.now_s()
        launch()
        self._hardware.synchronize()
        return self._hardware.now_s() - start_s


def _probes_for(variant: Variant, dtype: str) -> list[str] | None:
    """The names of the probes that a variant is checked on, None for all: on the
    stand-in the smallest ones that it takes, for emulation takes minutes to walk
    them all, and the tests do so.
    """
    if not stand_in.is_on():
        return None
    flops = {}
    for name, make in variant.op.probes.items():
        inputs = make(getattr(torch, dtype), "meta", 0)
        if (
            all(tensor.numel() for tensor in inputs)
            and variant.why_unsupported(*inputs) is None
        ):
            flops[name] = variant.op.flops(*inputs)
    return sorted(flops, key=flops.__getitem__)[: stand_in.MOST_PROBES]
