"""One problem from inputs to outcomes: check each variant, its memory, time all of them in turns, check again.

Runs in a worker process (bench.measure.worker); every method takes and returns what can be sent between processes.
"""
from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch

import kernels
from bench.measure import audit, capacity, ceilings, check, energy, memory, outcome
from bench.measure.clocks import Unfit, make_clock
from bench.measure.hardware import hardware
from bench.measure.patience import Patience
from bench.measure.problem import Problem, configured, launched_with
from bench.measure.sampling import Effort, Samples, sample
from bench.measure.state import cpu_load, state_of
from bench.measure.task import Outcome, Task
from bench.measure.worker import DeviceLost
from bench.records import INVALID, NotMeasured
from bench.verdicts import roofline
from kernels.op import Variant

_RAISED = (Exception, SystemExit)
_WARM_CALLS = 16


@dataclass
class _Entry:
    """One variant, right and warm: the call to time, how long it takes, and what is known of it so far."""

    variant: Variant
    launch: Callable[[], object]
    call_s: float
    facts: dict
    by_clock: dict[str, Samples | str] = field(default_factory=dict)


class Runner:
    """Measures tasks one after another on one device ("cpu" or "cuda"); `begin` is told whose step comes next."""

    def __init__(self, device: str, begin: Callable[[str, str], None] = lambda whose, step: None):
        self._device = device
        self._begin = begin
        self._hardware = hardware(device)
        self._state = state_of(device)
        self._verdicts: dict[tuple[str, str], NotMeasured | None] = {}
        self._patience = Patience(self._timed)
        if device == "cpu":
            memory.keep_freed_memory()
            memory.limit_to_available()
        else:
            # The contract is fp32 accumulation; cuBLAS may otherwise add split-K partial sums in the narrow type.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False

    def ceilings(self, dtypes: tuple[str, ...], effort: Effort) -> tuple[dict | None, str | None]:
        """The machine's ceilings, or why they could not be had."""
        return ceilings.try_to_measure(self._device, dtypes, effort)

    def room(self) -> int | None:
        """Bytes that can still be allocated on the device; None where that is not limited."""
        return memory.room(self._device)

    def capacity(self, op: str, variant: str, scenario: str, dtype: str, law, room_bytes: int | None = None) -> dict:
        """Whether the batch that a memory law predicts as the largest is it (bench.measure.capacity).

        For a fresh worker, and the last thing that it does: the heap hands its memory back from then on.
        """
        self._begin(f"{op}/{variant}", "capacity")
        return capacity.confirm(kernels.ops[op].variants[variant], scenario, dtype, law, self._device, room_bytes)

    def audit(self, op: str, variant: str, dtype: str) -> list[dict]:
        """How far a variant or a negative control is from fp64 on its op's conditions (bench.measure.audit)."""
        subject = (kernels.ops[op].variants | audit.controls(op))[variant]
        return audit.audit(subject, dtype, self._device, lambda name: self._begin(subject.id, f"audit: {name}"),
                           self._require_device)

    def survey(self, workload: str, profile: str) -> dict:
        """The gradient noise of a workload, and its step over the batch (bench.noise.experiments.survey)."""
        from bench.noise.experiments import survey  # the workloads' data, which only this needs

        return survey.survey(workload, profile, self._device, lambda what: self._begin(workload, what))

    def measure(self, task: Task) -> dict[str, Outcome]:
        """Every entry's outcome, by label.

        Raises:
            DeviceLost: if a variant took the device's context with it.
        """
        op = kernels.ops[task.op]
        try:
            problem = Problem(op, task, self._device)
        except _RAISED as error:  # no room for the inputs, usually
            self._require_device(error)
            return dict.fromkeys(task.labels, outcome.of_error(error))
        before = self._state.read()
        entries: dict[str, _Entry] = {}
        outcomes: dict[str, Outcome] = {}
        for label, name in task.entries:
            with self._row_of(label, outcomes):
                variant = launched_with(op.variants[name], task.configs.get(label))
                entries[label] = self._prepare(label, variant, task, problem)
        for clock, effort in zip(task.clocks, (task.effort, *[task.other_effort] * (len(task.clocks) - 1))):
            for label, error in self._sample(clock, effort, entries, problem, task).items():
                del entries[label]
                outcomes[label] = outcome.of_error(error)
        state = self._state_between(before)
        for label, entry in entries.items():
            with self._row_of(label, outcomes):
                facts = entry.facts | {"state": state}
                if task.energy_s:
                    self._begin(label, "energy")
                    facts["energy_j"] = energy.of_a_call(entry.launch, entry.call_s, task.energy_s, self._hardware,
                                                         self._state)
                outcomes[label] = outcome.of_samples(entry.by_clock, task.clocks[0], facts)
        return outcomes

    def _prepare(self, label: str, variant: Variant, task: Task, problem: Problem) -> _Entry:
        """Check the variant on its op's probes and on these inputs, take its memory, warm it up."""
        self._require_right(label, variant, task.dtype)
        self._patience.require_hope(variant.id, task)
        self._begin(label, f"check {problem.where}")
        outputs, accuracy = problem.call(variant)
        output_bytes = sum(tensor.numel() * tensor.element_size() for tensor in outputs)
        del outputs
        inputs = problem.inputs
        launch = functools.partial(variant.function, *inputs)
        self._patience.require_quick(launch, variant.id, task)
        peak = memory.peak_of(launch, self._device)
        self._begin(label, "warm-up")
        call_s = self._warm_up(launch, task.warm_up_s)
        return _Entry(variant, launch, call_s, {
            "backend": variant.backend,
            # A page holds more than a tiny output: the outputs are there all the same.
            "peak_bytes": None if peak.bytes is None else max(peak.bytes, output_bytes),
            "memory_method": peak.method, "output_bytes": output_bytes, "input_bytes": problem.input_bytes,
            "error": accuracy.error, "error_of_tolerance": accuracy.error_of_tolerance,
            "own_tolerance": variant.tolerance is not None, "gives": variant.gives,
            "flops": variant.op.flops(*inputs), "least_bytes": variant.op.least_bytes(*inputs),
            **configured(variant, inputs, task.configs.get(label)),
        })

    def _sample(self, name: str, effort: Effort, entries: Mapping[str, _Entry], problem: Problem,
                task: Task) -> dict[str, BaseException]:
        """Time the entries by one clock, in turns, and look at what was computed; returns the errors by label."""
        clocks, errors = {}, {}
        copies = problem.copies(self._hardware.cache_bytes) if roofline.is_cold(name) else [problem.inputs]
        for label, entry in entries.items():
            self._begin(label, f"timing by {name}")
            launches = [entry.launch, *(functools.partial(entry.variant.function, *copy) for copy in copies[1:])]
            try:
                clocks[label] = make_clock(name, self._hardware, launches, entry.call_s, effort.sample_s)
            except Unfit as unfit:
                entry.by_clock[name] = str(unfit)
            except _RAISED as error:
                self._require_device(error)
                errors[label] = error
        taken = sample(clocks, effort, self._state.why_throttled, lambda label: self._begin(label, f"timing by {name}"))
        for label, samples in taken.items():
            try:
                if isinstance(samples, Unfit):
                    entries[label].by_clock[name] = str(samples)
                    continue
                if isinstance(samples, BaseException):
                    raise samples
                entries[label].by_clock[name] = samples
                clocks[label].sample()  # once more: outputs are not kept from turn to turn
                problem.check(entries[label].variant, clocks[label].result, f"the output that was timed by {name}")
                clocks[label].result = None  # as after a turn: not the outputs of all at once
            except NotMeasured as invalid:
                if invalid.status == INVALID and name != task.clocks[0]:
                    entries[label].by_clock[name] = str(invalid)
                else:
                    errors[label] = invalid
            except _RAISED as error:
                self._require_device(error)
                errors[label] = error
        return errors

    def _warm_up(self, launch: Callable, seconds: float) -> float:
        """Call until `seconds` have passed, and then some if they were few calls; the fastest call's seconds.

        The first call may compile; on a CPU the heap takes a dozen of them to have a warm place for each output.
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

    def _state_between(self, before: dict) -> dict:
        after = self._state.read()
        if self._device == "cpu":
            return cpu_load(before, after, torch.get_num_threads())
        return {"before": before, "after": after}

    def _require_right(self, label: str, variant: Variant, dtype: str) -> None:
        """Raise unless the variant passes its op's probes in this dtype; they are walked once for each."""
        key = variant.id, dtype
        if key not in self._verdicts:
            try:
                check.check_variant(variant, getattr(torch, dtype), self._device,
                                    tell=lambda probe: self._begin(label, f"probes: {probe}"))
                self._verdicts[key] = None
            except _RAISED as error:  # it is this variant's row, in each of its cases
                self._require_device(error)
                self._verdicts[key] = outcome.refusal_of(error)
        refusal = self._verdicts[key]
        if refusal:
            raise NotMeasured(refusal.status, refusal.reason)

    def _require_device(self, error: BaseException) -> None:
        """Raise DeviceLost if the device does not answer any more after `error`."""
        try:
            self._hardware.synchronize()
        except Exception as lost:
            raise DeviceLost(f"{outcome.one_line(error)}; the device's context is lost") from lost

    @contextlib.contextmanager
    def _row_of(self, label: str, outcomes: dict[str, Outcome]) -> Iterator[None]:
        """Turns whatever a variant raises in the block into its outcome."""
        try:
            yield
        except NotMeasured as refusal:
            outcomes[label] = outcome.of_error(refusal)
        except _RAISED as error:
            self._require_device(error)
            outcomes[label] = outcome.of_error(error)
