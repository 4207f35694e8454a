"""The gradient noise of a workload over its training, and what its step costs over the
batch: what the advisor needs.

At several points of training, from several seeds, independent batches are drawn and
their statistics taken by the meter, that is by Batchline's own kernels. Whole steps are
timed in turns, so whatever the machine does it does to all batches alike.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from batchline.bench.measure import stand_in
from batchline.bench.measure.machine import memory
from batchline.bench.measure.machine.state import Guard, NoGuard, state_of
from batchline.bench.measure.timing.clocks import Host, hardware
from batchline.bench.measure.timing.sampling import Effort, sample
from batchline.bench.noise.meter import NoiseMeter, Reading
from batchline.bench.noise.workloads import Workload, workloads
from batchline.bench.stats.noise_scale import (
    inner_product_test,
    noise_scale,
    norm_test,
    orthogonality_test,
    over_batches,
    two_batch_sizes,
)
from batchline.bench.statuses import NotMeasured

Tell = Callable[[str], None]
_PRECISION = 0.01
_GROUP = 4  # batches that are put together for the two-batch-size estimate and the cosine of a larger batch
_SMALLER = 4  # times smaller is the other batch whose direction is looked at, and so many times more are drawn
WARM_STEPS = 3


@dataclass(frozen=True)
class Survey:
    """How much to look at: after how many updates, how many seeds, and how many
    independent batches each time.

    `updates`, `noise_batch` and `step_batches` are by workload: the points of training,
    the size of the batches whose noise is taken, and the batches whose step is timed,
    each for `step_s` seconds at most.
    """

    seeds: int
    batches: int
    updates: Mapping[str, tuple[int, ...]]
    noise_batch: Mapping[str, int]
    step_batches: Mapping[str, tuple[int, ...]]
    step_s: float


_NOISE_BATCH = {"digits": 256, "characters": 16}
SURVEYS = {
    "smoke": Survey(
        1,
        8,
        {"digits": (0, 45), "characters": (0,)},
        _NOISE_BATCH,
        {"digits": (1, 8, 64), "characters": (1, 4)},
        0.1,
    ),
    "quick": Survey(
        2,
        16,
        {"digits": (0, 45, 180, 450), "characters": (0, 60, 240)},
        _NOISE_BATCH,
        {"digits": (1, 4, 16, 64, 256, 1024), "characters": (1, 2, 4, 8, 16, 32, 64)},
        0.4,
    ),
    "full": Survey(
        5,
        32,
        {"digits": (0, 45, 180, 450, 1350), "characters": (0, 60, 240, 900, 3000)},
        _NOISE_BATCH,
        {
            "digits": tuple(2**power for power in range(13)),
            "characters": tuple(2**power for power in range(9)),
        },
        2.0,
    ),
}
SURVEYS["evidence"] = SURVEYS["quick"]

# A step of the characters takes seconds where kernels are emulated.
_ON_STAND_IN = Survey(
    1,
    8,
    {"digits": (0,), "characters": (0,)},
    {"digits": 32, "characters": 4},
    {"digits": (1, 8, 64), "characters": (1, 4)},
    0.1,
)


def survey(
    name: str,
    profile: str,
    device: str,
    guard: Guard | NoGuard,
    tell: Tell = lambda what: None,
) -> dict:
    """The noise, the step times and the memory of the workload called `name`, as plain
    data.

    Returns:
        title, samples, parameters, train_batch, learning_rate, noise_batch; points:
        [{"seed", "updates", "loss", "estimate" (NoiseEstimate's JSON, over independent
        batches), "layers" {name: estimate}, "tests", "two_batch_sizes" (tr Σ, ‖G‖²),
        "cosines" [{"batch", "cosines"}]}];
        steps: [{"batch", "samples_s", "peak_bytes", "memory_method"}]; why_not_timed,
        None unless the samples_s are empty; limit_bytes, what the device has room for.
    """
    workload = workloads[name]
    effort = _ON_STAND_IN if device == "cuda" and stand_in.is_on() else SURVEYS[profile]
    limit_bytes = memory.room(device)
    steps, why_not_timed = _steps(workload, effort, device, guard, tell)
    points = [
        point
        for seed in range(effort.seeds)
        for point in _training(workload, effort, seed, device, tell)
    ]
    return {
        "title": workload.title,
        "samples": len(workload.train),
        "train_batch": workload.batch,
        "learning_rate": workload.learning_rate,
        "noise_batch": effort.noise_batch[name],
        "parameters": sum(
            parameter.numel() for parameter in workload.model(0).parameters()
        ),
        "points": points,
        "steps": steps,
        "why_not_timed": why_not_timed,
        "limit_bytes": limit_bytes,
    }


def _training(
    workload: Workload, effort: Survey, seed: int, device: str, tell: Tell
) -> Iterator[dict]:
    """Plain SGD from a seed, with a look at the noise at each of the points."""
    model = workload.model(seed, device)
    generator = torch.Generator().manual_seed(seed)
    looks = torch.Generator().manual_seed(
        1000 + seed
    )  # of its own, so that looking does not change the training
    batches = workload.train.epochs(workload.batch, generator, device)
    points = effort.updates[workload.name]
    for done in range(points[-1] + 1):
        if done in points:
            what = f"{workload.name}: noise after {done} updates, seed {seed + 1} of {effort.seeds}"
            yield {"seed": seed, "updates": done} | _look(
                workload,
                model,
                effort,
                looks,
                device,
                lambda batch: tell(f"{what}, batch {batch}"),
            )
        if done < points[-1]:
            _update(workload, model, next(batches))


def _update(workload: Workload, model: torch.nn.Module, batch) -> None:
    _backward(workload, model, batch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= workload.learning_rate * parameter.grad


def _backward(workload: Workload, model: torch.nn.Module, batch) -> torch.Tensor:
    for parameter in model.parameters():
        parameter.grad = None
    loss = workload.losses(model, *batch).mean()
    loss.backward()
    return loss


def _look(
    workload: Workload,
    model: torch.nn.Module,
    effort: Survey,
    generator: torch.Generator,
    device: str,
    tell: Callable[[int], None],
) -> dict:
    """The noise at one point of training; tells the number of each batch, from 1,
    before it is drawn.
    """
    batch = effort.noise_batch[workload.name]
    meter = NoiseMeter(model, reduction="mean")
    readings = []
    losses = []
    means = []
    for number in range(effort.batches):
        tell(number + 1)
        drawn = workload.train.draw(batch, generator, device)
        with meter:
            losses.append(_backward(workload, model, drawn).item())
        readings.append(meter.reading)
        means.append(_gradient(model))
    small = batch // _SMALLER
    smaller = []
    for _ in range(_SMALLER * effort.batches):
        _backward(workload, model, workload.train.draw(small, generator, device))
        smaller.append(_gradient(model))
    groups = [
        torch.stack(means[start : start + _GROUP]).mean(0)
        for start in range(0, len(means) - _GROUP + 1, _GROUP)
    ]
    two = two_batch_sizes(
        batch,
        statistics.fmean(map(_square, means)),
        _GROUP * batch,
        statistics.fmean(map(_square, groups)),
    )
    return {
        "loss": statistics.fmean(losses),
        "estimate": _estimate([reading.whole for reading in readings], batch).to_json(),
        "layers": {
            layer: _estimate(
                [reading.layers[layer] for reading in readings], batch
            ).to_json()
            for layer in readings[0].layers
        },
        "tests": _tests(readings),
        "two_batch_sizes": {"trace": two.trace, "square": two.square},
        "cosines": [
            {"batch": size, "cosines": _cosines(gradients)}
            for size, gradients in (
                (small, smaller),
                (batch, means),
                (_GROUP * batch, groups),
            )
        ],
    }


def _estimate(of_batches: Sequence, batch: int):
    return over_batches(
        [noise_scale(one.mean_square, one.squared_norms) for one in of_batches], batch
    )


def _tests(readings: Sequence[Reading]) -> dict[str, float]:
    """Each test's value at this batch, the median over the batches."""
    values: dict[str, list[float]] = {}
    for reading in readings:
        for test in (norm_test, inner_product_test, orthogonality_test):
            result = test(reading.whole)
            values.setdefault(result.name, []).append(result.value)
    return {name: statistics.median(of_test) for name, of_test in values.items()}


def _gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat(
        [parameter.grad.flatten() for parameter in model.parameters()]
    ).cpu()


def _square(gradient: torch.Tensor) -> float:
    return float(gradient.double().square().sum())


def _cosines(gradients: Sequence[torch.Tensor]) -> list[float]:
    """Of disjoint pairs of independent batches, so that the cosines are independent
    too.
    """
    return [
        float(
            torch.dot(left.double(), right.double())
            / math.sqrt(_square(left) * _square(right))
        )
        for left, right in zip(gradients[::2], gradients[1::2])
        if _square(left) and _square(right)
    ]


def _steps(
    workload: Workload, effort: Survey, device: str, guard: Guard | NoGuard, tell: Tell
) -> tuple[list[dict], str | None]:
    """Whole training steps (forward, backward, update), and their peak memory above the
    model's own.

    Where the machine was busy or throttled none has a time, and the second of what is
    returned says why.
    """
    machine = hardware(device)
    launches = {}
    peaks = {}
    generator = torch.Generator().manual_seed(0)
    for batch in effort.step_batches[workload.name]:
        tell(f"{workload.name}: a step of {batch}")
        model = workload.model(0, device)
        drawn = workload.train.draw(batch, generator, device)
        step = _Step(workload, model, drawn)
        for _ in range(WARM_STEPS):
            step()
        machine.synchronize()
        start_s = machine.now_s()
        step()
        machine.synchronize()
        peaks[batch] = memory.peak_of(step, device)
        launches[batch] = Host(
            machine, [step], machine.now_s() - start_s, effort.step_s / 100
        )
    samples, why = sample_steps(
        launches, Effort(_PRECISION, effort.step_s, most=100), device, guard
    )
    return [
        {
            "batch": batch,
            "samples_s": samples[batch],
            "peak_bytes": peak.bytes,
            "memory_method": peak.method,
        }
        for batch, peak in peaks.items()
    ], why


def sample_steps(
    launches: Mapping[int, Host], effort: Effort, device: str, guard: Guard | NoGuard
) -> tuple[dict[int, list[float]], str | None]:
    """Each step's samples in seconds; none of any, and why, where the machine was busy
    or throttled meanwhile.
    """
    clocks = {f"a step of {batch}": clock for batch, clock in launches.items()}
    now_s = hardware(device).now_s
    taken, why = guard.measured(
        lambda: sample(clocks, effort, state_of(device).why_throttled, now_s=now_s)
    )
    for name, samples in taken.items():
        if isinstance(samples, NotMeasured):
            why = why or samples.reason
        elif isinstance(samples, BaseException):
            raise RuntimeError(f"{name}: {samples}") from samples
    return {
        batch: [] if why else samples.samples_s
        for batch, samples in zip(launches, taken.values())
    }, why


@dataclass(frozen=True)
class _Step:
    """A training step on one batch; it frees its gradients, which every step makes
    anew.
    """

    workload: Workload
    model: torch.nn.Module
    batch: tuple[torch.Tensor, torch.Tensor]

    def __call__(self) -> None:
        _update(self.workload, self.model, self.batch)
        for parameter in self.model.parameters():
            parameter.grad = None
