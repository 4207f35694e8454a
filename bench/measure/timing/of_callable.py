"""One callable, timed in this process by the clocks that variants are timed by, with its
peak memory and, where its work is given, the ceiling that binds it.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from batchline.bench.cases import CLOCKS
from batchline.bench.errors import UsageError
from batchline.bench.measure.machine import memory
from batchline.bench.measure.machine import state as machine_state
from batchline.bench.measure.timing import ceilings
from batchline.bench.measure.timing.clocks import Hardware, hardware, make_clock
from batchline.bench.measure.timing.sampling import Effort, Samples, sample
from batchline.bench.stats import roofline
from batchline.kernels.elements import dtype_name

_EFFORT = Effort(precision=0.02, seconds=0.5)
_CEILINGS = Effort(precision=0.05, seconds=0.2)  # of each rate
_WARM_CALLS = 2  # a compiler's first call, and one that finds what it compiled


@dataclass(frozen=True)
class Work:
    """What a call does by its definition: floating-point operations, and bytes with
    each distinct input element read once and each output element written once.
    """

    flops: float
    least_bytes: float


@dataclass(frozen=True)
class Timed:
    """What a call returned, its samples in seconds of a call (each the mean of
    `iterations` calls), and what is known besides them.
    """

    result: object
    samples_s: Sequence[float]
    iterations: int
    facts: dict


def timed(
    function: Callable,
    inputs: Sequence,
    clock: str | None = None,
    work: Work | None = None,
    effort: Effort = _EFFORT,
) -> Timed:
    """Time `function(*inputs)` by a clock, by default the one that ranks on the inputs'
    device.

    Raises:
        UsageError: for a clock that the device does not have, or work of a call without
        a tensor among its inputs. NotMeasured: if the machine was throttled throughout.
        What the function raises passes through.
    """
    device = _device_of(inputs)
    clock = clock or CLOCKS[device][0]
    if clock not in CLOCKS[device]:
        raise UsageError(
            f"{clock!r} is no clock of {device}: use {', '.join(CLOCKS[device])}"
        )
    machine = hardware(device)
    call = functools.partial(function, *inputs)
    result, call_s = _warmed(call, machine)
    before = machine_state.read()
    samples = _sampled(call, call_s, clock, machine, effort)
    busy = machine_state.why_too_busy(before, machine_state.read())
    peak = memory.peak_of(call, device)
    gc.unfreeze()  # what the measuring of memory has frozen
    facts = {
        "device": device,
        "clock": clock,
        "precision": samples.precision,
        "discarded": samples.discarded,
        "busy": busy,
        "peak_bytes": peak.bytes,
        "memory_method": peak.method,
    }
    if work is not None:
        facts |= _bound(work, inputs, result, device, clock, samples.median_s)
    return Timed(result, samples.samples_s, samples.iterations, facts)


def _device_of(inputs: Sequence) -> str:
    return "cuda" if any(one.is_cuda for one in _tensors(inputs)) else "cpu"


def _tensors(values: object) -> list[torch.Tensor]:
    """Those among what a call takes or returns."""
    if isinstance(values, torch.Tensor):
        return [values]
    several = values if isinstance(values, Iterable) else ()
    return [one for one in several if isinstance(one, torch.Tensor)]


def _warmed(call: Callable, machine: Hardware) -> tuple[object, float]:
    """What the call returns, and the seconds that a warm one takes."""
    for _ in range(_WARM_CALLS):
        result = call()
    machine.synchronize()
    start_s = machine.now_s()
    call()
    machine.synchronize()
    return result, max(machine.now_s() - start_s, 1e-9)


def _sampled(
    call: Callable, call_s: float, clock: str, machine: Hardware, effort: Effort
) -> Samples:
    made = make_clock(clock, machine, [call], call_s, effort.sample_s)
    taken = sample(
        {clock: made},
        effort,
        machine_state.state_of(machine.name).why_throttled,
        now_s=machine.now_s,
    )[clock]
    if isinstance(taken, BaseException):
        raise taken
    return taken


def _bound(
    work: Work,
    inputs: Sequence,
    result: object,
    device: str,
    clock: str,
    median_s: float,
) -> dict:
    """The regime, the floor in seconds, and the share of the binding ceiling that was
    reached; or why there are none.
    """
    tensors = _tensors(inputs)
    if not tensors:
        raise UsageError("the work of a call is held against a dtype: give it a tensor")
    dtype = dtype_name(tensors[0].dtype)
    known, why_none = _ceilings(device, dtype)
    facts = dataclasses.asdict(work)
    if known is None:
        return {**facts, "why_no_ceilings": why_none}
    output_bytes = sum(one.nbytes for one in _tensors(result))
    bound = roofline.bound(
        facts | {"output_bytes": output_bytes}, dtype, clock, median_s, known
    )
    return facts | dataclasses.asdict(bound)


@functools.cache
def _ceilings(device: str, dtype: str) -> tuple[dict | None, str | None]:
    """The machine's, measured once in a process."""
    return ceilings.try_to_measure(device, (dtype,), _CEILINGS, machine_state.NoGuard())
