"""What a worker process does (bench.measure.worker.worker): one problem from inputs to
outcomes, and the smaller requests.

Every method takes and returns what can be sent between processes. A problem can be held
ready (ReadyProblem) and timed a turn at a time, when the parent says so: it can then take turns
between two processes that are alive at once, each with another revision's kernels.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict

import torch

from batchline import kernels
from batchline.bench import units
from batchline.bench.measure.ahead.folder import load_what_was_compiled
from batchline.bench.measure.checking import audit, steadiness
from batchline.bench.measure.checking.check import SECRET
from batchline.bench.measure.checking.fence import Fence
from batchline.bench.measure.compiled import static_facts
from batchline.bench.measure.machine import memory, process_state
from batchline.bench.measure.machine.environment import threads_of_torch
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.machine.state import (
    cpu_load,
    each_thread_on_a_core,
    give_each_thread_a_core,
    guard_of,
    state_of,
)
from batchline.bench.measure.reading import reading_process
from batchline.bench.measure.timing import ceilings, sustained
from batchline.bench.measure.timing.clocks import (
    Unfit,
    hardware,
    is_cold,
    keeps_outputs,
)
from batchline.bench.measure.timing.sampling import (
    Effort,
    Ledger,
    Samples,
    Unwatched,
    sample,
)
from batchline.bench.measure.worker import watch
from batchline.bench.measure.worker.preparing import (
    RAISED,
    Entry,
    Preparing,
    Problem,
    of_error,
    of_samples,
)
from batchline.bench.measure.worker.task import Outcome, Task
from batchline.bench.measure.worker.watch import LEAST_BESIDE, LEAST_CHECKS, Watch
from batchline.bench.statuses import INVALID, MEASURED, WRONG, NotMeasured
from batchline.kernels import forks

_SETTLES_S = 3e-3  # a turn follows another process': its threads spin on for a while, and the caches are its own
_LONG_S = 0.02  # a call that takes so long has settled before most of it is done
_COPIES = 5  # of the inputs
_TURNS_OF_A_COPY = 2  # both turns of one side in A B B A
_PLACED_BYTES = (
    2**26
)  # larger inputs are in no cache, and where they lie makes no difference
_MOST_KEPT_BYTES = (
    2**32
)  # by all clocks of a problem at once: a sixth of the memory of a small GPU (24 GB)


class ReadyProblem:
    """The entries of one task, each ready to be timed by the task's first clock, on
    several copies of the inputs.

    Where a copy happens to lie in memory makes up to a tenth of a small call's time,
    for as long as its process lives. Garbage collection is off until they are let go
    of.
    """

    def __init__(
        self,
        task: Task,
        preparing: Preparing,
        hardware,
        state,
        begin: Callable[[str, str], None],
    ):
        self._preparing, self._hardware, self._state, self._begin = (
            preparing,
            hardware,
            state,
            begin,
        )
        self._outcomes: dict[str, Outcome] = {}
        self._entries, self._clocks = {}, {}
        self._watched: dict[str, object] = {}  # every clock, by what it times
        self._copies: dict[str, list[str]] = {}  # what each entry's clocks time
        self._watch = Unwatched()
        ledger = Ledger()
        self._problem = preparing.problem(kernels.ops[task.op], task)
        ledger.check_s = (
            ledger.total_s
        )  # to draw values and compute what is expected of them
        if isinstance(self._problem, Outcome):
            self._outcomes = dict.fromkeys(task.labels, self._problem)
        else:
            try:
                self._prepare(task, ledger)
            except Tampered as tampered:
                self._end_all(tampered, task.labels)
        if hardware.name == "cpu":
            give_each_thread_a_core()
            preparing.fence.accept()  # that was ours
        gc.collect()
        gc.disable()
        if self._clocks:
            variants = {label: self._entries[label].variant for label in self._clocks}
            self._watch = Watch(self._problem, variants, preparing.fence, ledger)
        self._watch.begin(collects=False, clocks=self._watched)
        state.why_throttled()  # what was before is not of these turns

    def _prepare(self, task: Task, ledger: Ledger) -> None:
        op, name = kernels.ops[task.op], task.clocks[0]
        self._entries, refused = self._preparing.entries(
            op, task, self._problem, ledger
        )
        self._outcomes |= refused
        for number, copy in enumerate(self._problem.copies(_PLACED_BYTES, _COPIES), 1):
            clocks = self._preparing.clocks(name, task.effort, self._entries, [copy])
            for label, clock in clocks.made.items():
                self._clocks.setdefault(label, []).append(clock)
                which = f"{label} on copy {number}"
                self._watched[which] = clock
                self._copies.setdefault(label, []).append(which)
            self._outcomes |= {
                label: of_error(error) for label, error in clocks.errors.items()
            } | {
                label: Outcome(INVALID, why) for label, why in clocks.why_unfit.items()
            }
        self._clocks = {
            label: itertools.cycle(
                clock for clock in clocks for _ in range(_TURNS_OF_A_COPY)
            )
            for label, clocks in self._clocks.items()
            if label not in self._outcomes
        }

    @property
    def ready(self) -> tuple[str, ...]:
        """The labels of those that can be timed."""
        return tuple(self._clocks)

    def turn(self, label: str, seconds: float) -> tuple[list[float], str | None]:
        """Seconds a call, in samples over so many seconds and at least one, and what
        slowed the machine down or None.

        No samples from an entry that has failed.
        """
        if label not in self._clocks:
            return [], None
        clock = next(self._clocks[label])
        self._begin(label, f"timing by {clock.name}")
        self._watch.before_round()
        taken: tuple[list[float], str | None] = [], None
        try:
            self._settle(clock, self._entries[label].call_s)
            taken = self._samples(label, clock, seconds), self._state.why_throttled()
        except RAISED as error:
            self._fail(label, error)
        finally:
            clock.result = None
        try:
            self._watch.after_turn(label)
        except Tampered as tampered:
            self._end_all(tampered, self.ready)
            return [], None
        return taken

    def outcomes(self) -> dict[str, Outcome]:
        """Each entry's outcome, with its facts: its output is compared with the
        reference, on the path that was timed.

        The samples are in the answers to `turn`.
        """
        for label, clocks in list(self._clocks.items()):
            clock = next(clocks)
            try:
                clock.sample()
                self._problem.require_right(
                    label,
                    self._entries[label].variant,
                    clock.result,
                    f"the output that was timed by {clock.name}",
                )
                self._outcomes[label] = Outcome(
                    MEASURED, facts=self._entries[label].facts
                )
            except RAISED as error:
                self._fail(label, error)
            finally:
                clock.result = None
        try:
            self._watch.end(collects=True)
        except Tampered as tampered:
            self._end_all(tampered, self.ready)
        gc.enable()
        return self._outcomes

    def _settle(self, clock, call_s: float) -> None:
        until_s = self._hardware.now_s() + (_SETTLES_S if call_s < _LONG_S else 0)
        while self._hardware.now_s() < until_s:
            clock.sample()

    def _samples(self, label: str, clock, seconds: float) -> list[float]:
        """Samples for so many seconds and at least one; at a random moment among them
        what is computed is looked at.
        """
        look = next(filter(None, self._watch.plan(label, clock, 1)), None)
        start_s = self._hardware.now_s()
        look_s = start_s + SECRET.uniform(0, seconds)
        samples_s = [clock.sample()]
        while self._hardware.now_s() - start_s < seconds:
            samples_s.append(clock.sample())
            if look and self._hardware.now_s() > look_s:
                look.take(clock)
                look = None
        if look:
            look.take(clock)
        return samples_s

    def _fail(self, label: str, error: BaseException) -> None:
        self._preparing.require_device(error)
        self._clocks.pop(label, None)
        for which in (label, *self._copies.get(label, ())):
            self._watch.drop(which)
        self._outcomes[label] = of_error(error)

    def _end_all(self, tampered: Tampered, labels: Iterable[str]) -> None:
        """No more turns for anybody in a process that was tampered with: wrong is who
        did it, or whoever may have.
        """
        for label in tuple(labels):
            if tampered.whose in (label, None):
                self._outcomes[label] = Outcome(WRONG, tampered.reason)
            else:
                self._outcomes[label] = Outcome(
                    INVALID, f"{tampered.whose} changed its process: {tampered.reason}"
                )
        self._clocks.clear()


class Runner:
    """Measures tasks one after another on one device ("cpu" or "cuda"); `begin` is told
    whose step comes next.
    """

    def __init__(
        self, device: str, begin: Callable[[str, str], None] = lambda whose, step: None
    ):
        self._device = device
        self._begin = begin
        self._hardware = hardware(device)
        self._state = state_of(device)
        self._guard = guard_of(device, lambda why: begin("", why))
        self._ready: ReadyProblem | None = None
        reading_process.from_sources_only(process_state.op_folders().values())
        reading_process.refuse_audit_hooks()
        forks.start_threads_here()  # the process that this one is forked from calls no kernel
        if device == "cpu":
            memory.keep_freed_memory()
            memory.limit_to_available()
            torch.set_num_threads(threads_of_torch())
        else:
            # The contract is fp32 accumulation; cuBLAS may otherwise add split-K
            # partial sums in the narrow type.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
            load_what_was_compiled()
        self._fence = Fence()  # last: what is done above is ours
        self._preparing = Preparing(device, self._hardware, begin, self._fence)

    def ceilings(
        self, dtypes: tuple[str, ...], effort: Effort
    ) -> tuple[dict | None, str | None]:
        """The machine's ceilings, or why they could not be had."""
        with self._placed():
            return ceilings.try_to_measure(
                self._device,
                dtypes,
                effort,
                self._guard,
                lambda what: self._begin("", f"ceilings: {what}"),
            )

    def room(self) -> int | None:
        """Bytes that can still be allocated on the device; None where that is not
        limited.
        """
        return memory.room(self._device)

    def capacity(
        self,
        op: str,
        variant: str,
        scenario: str,
        dtype: str,
        law,
        room_bytes: int | None = None,
    ) -> dict:
        """Whether the batch that a memory law predicts as the largest is it
        (bench.measure.machine.memory).

        For a fresh worker, and the last thing that it does: the heap hands its memory
        back from then on.
        """
        self._begin(f"{op}/{variant}", "capacity")
        return memory.confirm(
            kernels.ops[op].variants[variant],
            scenario,
            dtype,
            law,
            self._device,
            room_bytes,
        )

    def audit(self, op: str, variant: str, dtype: str) -> list[dict]:
        """How far a variant or a negative control is from fp64 on its op's conditions
        (bench.measure.checking.audit).
        """
        subject = audit.controls(op).get(variant) or kernels.ops[op].variants[variant]
        return audit.audit(
            subject,
            dtype,
            self._device,
            lambda name: self._begin(subject.id, f"audit: {name}"),
            self._preparing.require_device,
        )

    def invariance(
        self, op: str, variant: str, scenario: str, dtype: str, batches: tuple[int, ...]
    ) -> dict:
        """Whether a sample's result is bitwise the same in every batch and in every
        call (bench.measure.checking.steadiness).
        """
        subject = kernels.ops[op].variants[variant]
        self._begin(subject.id, f"batch invariance on {scenario}")
        return steadiness.compare_batches(
            subject,
            scenario,
            dtype,
            batches,
            self._device,
            self._preparing.require_device,
        )

    def experiment(self, function: str, subject: str, *arguments):
        """What `function` ("package.module:name") returns for `subject`, its arguments,
        the device, the guard, and a callable that is told of each step.
        """
        module, _, name = function.partition(":")
        call = getattr(importlib.import_module(module), name)
        return call(
            subject,
            *arguments,
            self._device,
            self._guard,
            lambda what: self._begin(subject, what),
        )

    def measure(self, task: Task) -> dict[str, Outcome]:
        """Every entry's outcome, by label; INVALID where others had the cores in each
        attempt (bench.measure.machine.state).

        Raises:
            DeviceLost: if a variant took the device's context with it.
            Tampered: if a variant changed the process, so that nothing that it says is
            to be believed.
        """
        outcomes, why = self._guard.measured(lambda: self._attempt(task))
        if why:
            outcomes |= {
                label: Outcome(INVALID, why)
                for label, one in outcomes.items()
                if one.status == MEASURED
            }
        return outcomes

    @contextlib.contextmanager
    def _placed(self) -> Iterator[None]:
        """Each thread on a core of its own, where it is the CPU's time that is
        measured.
        """
        if self._device != "cpu":
            yield
            return
        try:
            with each_thread_on_a_core():
                self._fence.accept_cores()
                yield
        finally:
            self._fence.accept_cores()

    def _attempt(self, task: Task) -> dict[str, Outcome]:
        """Every entry's outcome, by label, whoever had the cores."""
        op, ledger = kernels.ops[task.op], Ledger()
        problem = self._preparing.problem(op, task)
        if isinstance(problem, Outcome):
            return dict.fromkeys(task.labels, problem)
        ledger.check_s = (
            ledger.total_s
        )  # to draw values and compute what is expected of them
        before = self._state.read()
        entries, outcomes = self._preparing.entries(op, task, problem, ledger)
        with self._placed():
            for clock, effort in zip(
                task.clocks,
                (task.effort, *[task.other_effort] * (len(task.clocks) - 1)),
            ):
                for label, error in self._sample(
                    clock, effort, entries, problem, task, ledger
                ).items():
                    del entries[label]
                    outcomes[label] = of_error(error)
        state, spent = self._state_between(before), ledger.facts(len(entries))
        for label, entry in entries.items():
            with self._preparing.catch() as caught:
                facts = entry.facts | spent | {"state": state}
                if task.energy_s:
                    self._begin(label, "energy")
                    facts["energy_j"] = sustained.energy_of_a_call(
                        entry.launch,
                        entry.call_s,
                        task.energy_s,
                        self._hardware,
                        self._state,
                    )
                if (
                    self._device == "cuda"
                    and task.sustained_s
                    and sustained.is_sustained(facts["flops"])
                ):
                    self._begin(label, "sustained load")
                    facts["sustained"] = sustained.measure(
                        entry.launch,
                        entry.call_s,
                        self._hardware,
                        self._state,
                        task.sustained_s,
                    )
                outcomes[label] = of_samples(entry.by_clock, task.clocks[0], facts)
            if caught.outcome:
                outcomes[label] = caught.outcome
        return outcomes

    def waves(
        self,
        op: str,
        variant: str,
        scenario: str,
        dtype: str,
        batch: int,
        compiled: list[dict],
        gpu: dict,
    ) -> dict | None:
        """How the variant's launch fills the GPU (bench.measure.compiled.static_facts); None where it
        is not to be told.
        """
        subject = kernels.ops[op].variants[variant]
        self._begin(subject.id, f"waves on {scenario}")
        found = static_facts.waves_of(subject, scenario, dtype, batch, compiled, gpu)
        return asdict(found) if found else None

    def hold(self, task: Task) -> tuple[str, ...]:
        """Make the task's entries ready to be timed in turns, until `release`; the
        labels of those that are.
        """
        self._ready_since = self._state.read()
        self._ready = ReadyProblem(
            task, self._preparing, self._hardware, self._state, self._begin
        )
        return self._ready.ready

    def turn(self, label: str, seconds: float) -> tuple[list[float], str | None]:
        """Samples of one held entry over so many seconds, and what slowed the machine
        down meanwhile, or None.
        """
        return self._ready.turn(label, seconds)

    def release(self) -> tuple[dict[str, Outcome], dict]:
        """What became of the held entries, their facts or what they ended with, and the
        machine's state meanwhile.

        Lets go of them.
        """
        ready, self._ready = self._ready, None
        return ready.outcomes(), self._state_between(self._ready_since)

    def _sample(
        self,
        name: str,
        effort: Effort,
        entries: Mapping[str, Entry],
        problem: Problem,
        task: Task,
        ledger: Ledger,
    ) -> dict[str, BaseException]:
        """Time the entries by one clock, in turns, and look at what was computed;
        returns the errors by label.

        Where the clock would keep too much memory for all of them, each is sampled
        alone, and says so.
        """
        why_alone = _why_alone(name, entries)
        if why_alone is None:
            return self._sample_in_turns(name, effort, entries, problem, task, ledger)
        errors = {}
        for label, entry in entries.items():
            errors |= self._sample_in_turns(
                name, effort, {label: entry}, problem, task, ledger
            )
            if isinstance(samples := entry.by_clock.get(name), Samples):
                samples.alone = why_alone
            self._hardware.release()
        return errors

    def _sample_in_turns(
        self,
        name: str,
        effort: Effort,
        entries: Mapping[str, Entry],
        problem: Problem,
        task: Task,
        ledger: Ledger,
    ) -> dict[str, BaseException]:
        """Time the entries by one clock, in turns; returns the errors by label."""
        copies = (
            problem.copies(self._hardware.cache_bytes)
            if is_cold(name)
            else [problem.inputs]
        )
        clocks = self._preparing.clocks(name, effort, entries, copies)
        errors = dict(clocks.errors)
        for label, why in clocks.why_unfit.items():
            entries[label].by_clock[name] = why
        watch = Watch(
            problem,
            {label: entries[label].variant for label in clocks.made},
            self._fence,
            ledger,
            LEAST_CHECKS if name == task.clocks[0] else LEAST_BESIDE,
        )
        taken = sample(
            clocks.made,
            effort,
            self._state.why_throttled,
            lambda label: self._begin(label, f"timing by {name}"),
            now_s=self._hardware.now_s,
            watch=watch,
        )
        problem.values.drop_sets()
        for label, samples in taken.items():
            try:
                if isinstance(samples, Unfit):
                    entries[label].by_clock[name] = str(samples)
                    continue
                if isinstance(samples, BaseException):
                    raise samples
                entries[label].by_clock[name] = samples
                if name == task.clocks[0]:
                    self._require_no_memory(entries[label], samples, problem, ledger)
            except NotMeasured as invalid:
                if invalid.status == INVALID and name != task.clocks[0]:
                    entries[label].by_clock[name] = str(invalid)
                else:
                    errors[label] = invalid
            except RAISED as error:
                self._preparing.require_device(error)
                errors[label] = error
        return errors

    def _require_no_memory(
        self, entry: Entry, samples: Samples, problem: Problem, ledger: Ledger
    ) -> None:
        """Raise NotMeasured if the entry is quick on values that it has seen alone."""
        if watch.may_remember(samples):
            with ledger.spending():
                watch.require_no_memory(
                    entry.launch,
                    problem.values,
                    samples.median_s,
                    self._hardware,
                    problem.where,
                )

    def _state_between(self, before: dict) -> dict:
        after = self._state.read()
        if self._device == "cpu":
            return cpu_load(before, after)
        return {"before": before, "after": after}


def _why_alone(name: str, entries: Mapping[str, Entry]) -> str | None:
    """Why the entries can't be sampled in turns by the clock called `name`, or None.

    What a clock keeps of an entry is about its peak: its outputs, and what it needs to
    make them.
    """
    if len(entries) < 2 or not keeps_outputs(name):
        return None
    kept_bytes = sum(
        entry.facts["peak_bytes"] or entry.facts["output_bytes"]
        for entry in entries.values()
    )
    if kept_bytes <= _MOST_KEPT_BYTES:
        return None
    return (
        f"sampled alone, one after another: the graphs of all {len(entries)} together would keep "
        f"{units.size(kept_bytes)}"
    )
