"""The noise, the step times and the memory of a training of the user's own, asked for
piece by piece: what the user's code ends is one piece, and the others are kept.

Each function is called in a worker (bench.measure.worker), with what
bench.noise.experiments.own_training takes as `train`; it returns plain data, or
{"refused": why} where the user's code is at fault.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import statistics
from collections.abc import Callable, Iterator, MutableMapping, Sequence

import torch
from torch.utils import _pytree as pytree

from batchline.bench import texts
from batchline.bench.errors import UsageError
from batchline.bench.measure.machine import memory
from batchline.bench.measure.machine.state import Guard, NoGuard
from batchline.bench.measure.timing.clocks import Hardware, Host, hardware
from batchline.bench.measure.timing.sampling import Effort
from batchline.bench.noise.experiments import own_training
from batchline.bench.noise.experiments.own_training import (
    Batch,
    OwnTraining,
    Trainee,
    of_the_users,
)
from batchline.bench.noise.experiments.survey import WARM_STEPS, sample_steps
from batchline.bench.noise.meter import NoiseMeter
from batchline.bench.stats.noise_scale import noise_scale, over_batches

Tell = Callable[[str], None]
EVALUATED = 2048  # samples whose mean loss is the training loss
_CHECKED = 8  # samples on which it is seen what the loss is
_SAME_LOSS = 1e-3
_PRECISION = 0.01
_GROWTH = (
    1.1  # from one evaluation to the next, as bench.noise.experiments.sweep has it
)
_AHEAD = 8  # batches that are drawn before the clock runs
_SEED = 1000  # of the batches that are looked at: not those that are trained on


def _answering(function: Callable) -> Callable:
    """The function as a worker's experiment, with the training in the place of its
    name.
    """

    @functools.wraps(function)
    def answer(train: str, *arguments) -> dict:
        *own, device, guard, tell = arguments
        try:
            training = own_training.load(train, device)
            return function(training, *own, guard=guard, tell=tell)
        except UsageError as error:
            return {"refused": texts.clean_line(error)}
        except Exception as error:
            if not memory.is_out_of_memory(error):
                raise
            return {"out_of_memory": texts.error_line(error)}

    return answer


@_answering
def describe(training: OwnTraining, guard: Guard | NoGuard, tell: Tell) -> dict:
    """title, parameters, gradient_bytes, samples (None: not known), batch (in use, None:
    not said), has_optimizer, and notes: what was assumed, a sentence each.

    All that can be refused is, before minutes of measuring.
    """
    tell("a first step")
    trainee = training.copied()
    batch = training.draw(_CHECKED, 0)
    _require_gradients(trainee, batch)
    notes = _notes(training, trainee.model, batch)
    with _unchanged(training, trainee.model):
        meter = _meter(trainee)
        _metered(meter, trainee, batch)
        # the first is of the loss, of which the notes tell
        notes += [f"Assumed: {one}." for one in meter.reading.assumed[1:]]
    with of_the_users("the optimizer's step"):
        trainee.optimizer.step()
    trained = [one for one in training.model.parameters() if one.requires_grad]
    return {
        "title": training.title,
        "parameters": sum(one.numel() for one in training.model.parameters()),
        "gradient_bytes": sum(one.numel() * one.element_size() for one in trained),
        "samples": training.data.samples,
        "batch": training.data.batch,
        "has_optimizer": training.optimizer is not None,
        "notes": notes,
    }


def _require_gradients(trainee: Trainee, batch: Batch) -> None:
    with of_the_users("the loss or its backward pass"):
        loss = float(trainee.backward(batch))
    if not math.isfinite(loss):
        raise UsageError(
            f"the loss of the untrained model is {loss}: it must be finite"
        )
    if all(one.grad is None for one in trainee.model.parameters()):
        raise UsageError(
            "the loss gives the model no gradients: loss(model, batch) must use the model that it is "
            "given, which is a copy"
        )


def _notes(training: OwnTraining, model: torch.nn.Module, batch: Batch) -> list[str]:
    """What is assumed of the loss; refuses one that is not a mean over samples.

    Of a mean, the loss of a batch twice over is that of the batch; of a sum it is twice
    that, and where samples are compared with each other it is anything else.
    """
    rows: list[torch.Tensor] = []
    _map_rows(batch, lambda tensor: rows.append(tensor) or tensor)
    if not rows:
        return [
            "The batch has no tensors with one row per sample that can be seen, so that the loss is a mean over "
            "independent samples was not checked."
        ]
    with _evaluating(training, model), of_the_users("the loss"):
        once, again = (_seeded_loss(training, model, batch, seed) for seed in (0, 1))
        if not _are_same(once, again):
            return [
                "The loss draws random numbers, so that it is a mean over independent samples was not checked."
            ]
        twice = _seeded_loss(training, model, _twice(batch), 0)
        if _are_same(twice, 2 * once):
            raise UsageError(
                "the loss is a sum over the batch: return the mean, or the rate would grow with the batch"
            )
        if not _are_same(twice, once):
            difference = (
                f"a batch twice over has a loss of {twice:.5g}, and once of {once:.5g}"
            )
            if training.samples_apart:
                return [
                    f"Assumed: the loss is a mean over independent samples, though {difference}."
                ]
            raise UsageError(
                f"{difference}: the loss of a sample depends on the others of its batch, so there is no noise "
                'scale of it (if it depends on its row instead, return a dict that has "samples_apart": True too)'
            )
        mean = _mean_of_singles(training, model, batch)
    if mean is None or _are_same(mean, once):
        return []
    return [
        f"The loss of a batch ({once:.5g}) is not the mean of its samples' own losses ({mean:.5g}), as where "
        "tokens are averaged under a mask: the noise scale below takes each sample's part of the batch's loss "
        "for its own."
    ]


def _mean_of_singles(
    training: OwnTraining, model: torch.nn.Module, batch: Batch
) -> float | None:
    """None where a batch of one can't be taken."""
    try:
        return statistics.fmean(
            _seeded_loss(training, model, _only(batch, place), 0)
            for place in range(_CHECKED)
        )
    except Exception:  # the user's code on a batch of one, which nobody has asked for
        return None


def _seeded_loss(
    training: OwnTraining, model: torch.nn.Module, batch: Batch, seed: int
) -> float:
    torch.manual_seed(seed)
    return float(training.loss(model, batch))


def _are_same(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=_SAME_LOSS, abs_tol=1e-12)


def _twice(batch: Batch) -> Batch:
    return _map_rows(batch, lambda tensor: torch.cat([tensor, tensor]))


def _only(batch: Batch, place: int) -> Batch:
    return _map_rows(batch, lambda tensor: tensor[place : place + 1])


def _has_rows(part: object) -> bool:
    return isinstance(part, torch.Tensor) and part.dim() > 0 and len(part) == _CHECKED


def _map_rows(batch: Batch, change: Callable) -> Batch:
    """The batch with `change` of each tensor that has a row for each sample."""

    def changed(part: object) -> object:
        if _has_rows(part):
            return change(part)
        if not isinstance(part, MutableMapping):
            return part
        other = copy.copy(part)  # of a tokenizer, which torch's trees don't know
        for key, value in part.items():
            other[key] = changed(value)
        return other

    return pytree.tree_map(changed, batch)


@contextlib.contextmanager
def _evaluating(training: OwnTraining, model: torch.nn.Module) -> Iterator[None]:
    """In eval mode, without gradients, and the random numbers as they were."""
    was_training = model.training
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(training.devices):
        yield
    model.train(was_training)


@contextlib.contextmanager
def _unchanged(training: OwnTraining, model: torch.nn.Module) -> Iterator[None]:
    """Buffers and random numbers are afterwards what they were: looking changes
    nothing of a training.
    """
    before = {name: one.clone() for name, one in model.named_buffers()}
    with torch.random.fork_rng(training.devices):
        yield
    with torch.no_grad():
        for name, one in model.named_buffers():
            if name in before and before[name].shape == one.shape:
                one.copy_(before[name])


def _meter(trainee: Trainee) -> NoiseMeter:
    return NoiseMeter(
        trainee.model, reduction="mean", samples_apart=trainee.samples_apart
    )


def _metered(meter: NoiseMeter, trainee: Trainee, batch: Batch):
    """The loss, and the statistics of the whole model."""
    with of_the_users("a metered step"):
        with meter:
            loss = trainee.backward(batch)
        return float(loss), meter.reading.whole


@_answering
def try_batch(
    training: OwnTraining, batch: int, guard: Guard | NoGuard, tell: Tell
) -> dict:
    """peak_bytes of a whole step above the model and its optimizer's state, how that was
    measured, step_s of one step, and room_bytes, what the device has left for it.
    """
    tell(f"a step of {batch}")
    machine = hardware(training.device)
    step = _step(training, batch)
    for _ in range(WARM_STEPS):
        step()
    machine.synchronize()
    start_s = machine.now_s()
    step()
    machine.synchronize()
    step_s = machine.now_s() - start_s
    peak = memory.peak_of(step, training.device)
    return {
        "batch": batch,
        "step_s": step_s,
        "peak_bytes": peak.bytes,
        "memory_method": peak.method,
        "room_bytes": memory.room(training.device),
    }


def _step(training: OwnTraining, batch: int) -> Callable[[], None]:
    """A whole training step on one batch, of the one copy that all batches share; its
    gradients are let go of.
    """
    trainee = _stepping(training)
    drawn = training.draw_cheaply(batch)

    def step() -> None:
        with of_the_users("a step"):
            trainee.update(drawn)
        trainee.free()

    return step


@functools.cache
def _stepping(training: OwnTraining) -> Trainee:
    """The copy whose steps are timed: at a rate of 0, so that its weights stay."""
    trainee = training.copied()
    trainee.scale_rate(0)
    return trainee


@_answering
def time_steps(
    training: OwnTraining,
    batches: Sequence[int],
    seconds: float,
    guard: Guard | NoGuard,
    tell: Tell,
) -> dict:
    """samples_s by batch, in the order of `batches`, each timed for so many seconds in
    turns with the others; why_not_timed, None unless they are empty; optimizer_s, what
    of a step is the optimizer's.
    """
    tell(f"steps of {', '.join(map(str, batches))} in turns")
    machine = hardware(training.device)
    launches = {}
    for batch in batches:
        step = _step(training, batch)
        step()
        machine.synchronize()
        start_s = machine.now_s()
        step()
        machine.synchronize()
        taken_s = machine.now_s() - start_s
        launches[batch] = Host(machine, [step], taken_s, seconds / 100)
    effort = Effort(_PRECISION, seconds, most=100)
    samples, why = sample_steps(launches, effort, training.device, guard)
    return {
        "samples_s": [samples[batch] for batch in batches],
        "why_not_timed": why,
        "optimizer_s": _optimizer_s(training, machine),
    }


def _optimizer_s(training: OwnTraining, machine: Hardware) -> float:
    """The median time of the optimizer's step alone."""
    trainee = _stepping(training)
    trainee.backward(training.draw_cheaply(1 if training.data.samples else 2))
    times = []
    for _ in range(10):
        machine.synchronize()
        start_s = machine.now_s()
        trainee.optimizer.step()
        machine.synchronize()
        times.append(machine.now_s() - start_s)
    trainee.free()
    return statistics.median(times)


class _Looked:
    """The one training along which the noise is looked at."""

    def __init__(self, training: OwnTraining, batch: int):
        self.trainee = training.copied()
        self.updates = 0
        self._stream = training.stream(batch, 0)

    def train_to(self, updates: int) -> None:
        with of_the_users("a step of training"):
            while self.updates < updates:
                self.trainee.update(next(self._stream))
                self.updates += 1
        self.trainee.free()


@functools.cache
def _looked(training: OwnTraining, batch: int) -> _Looked:
    return _Looked(training, batch)


@_answering
def look(
    training: OwnTraining,
    updates: int,
    train_batch: int,
    noise_batch: int,
    batches: int,
    guard: Guard | NoGuard,
    tell: Tell,
) -> dict:
    """The noise after so many updates at `train_batch`, as a point of
    bench.noise.experiments.survey, without what the advisor does not ask for; and
    train_loss, that of the first samples in eval mode.

    Calls must be in the order of the updates.
    """
    tell(f"training to {updates} updates")
    looked = _looked(training, train_batch)
    looked.train_to(updates)
    trainee = looked.trainee
    meter = _meter(trainee)
    losses = []
    scales = []
    with _unchanged(training, trainee.model):
        for number in range(batches):
            tell(f"noise after {updates} updates, batch {number + 1}")
            drawn = training.draw(noise_batch, _SEED + updates * batches + number)
            loss, whole = _metered(meter, trainee, drawn)
            losses.append(loss)
            scales.append(noise_scale(whole.mean_square, whole.squared_norms))
        train_loss = training.evaluate(trainee.model, EVALUATED, noise_batch)
    trainee.free()
    return {
        "seed": 0,
        "updates": updates,
        "loss": statistics.fmean(losses),
        "train_loss": train_loss,
        "estimate": over_batches(scales, noise_batch).to_json(),
        "layers": {},
        "tests": {},
        "cosines": [],
    }


@_answering
def train(
    training: OwnTraining,
    batch: int,
    factor: float,
    seed: int,
    target_loss: float,
    most_updates: int,
    evaluated: int,
    guard: Guard | NoGuard,
    tell: Tell,
) -> dict:
    """A run of bench.noise.experiments.sweep: trained at `factor` times the rate in use
    until the training loss is at the target, or for so many updates. The loss is taken
    in batches of `evaluated`.

    `learning_rate` is the factor. train_s is the time of the steps alone; the batches
    are drawn before.
    """
    tell(f"training at batch {batch}, rate x{factor:g}, seed {seed}")
    trainee = training.copied()
    trainee.scale_rate(factor)
    batches = training.stream(batch, seed)
    machine = hardware(training.device)
    curve: dict[str, list] = {"updates": [0], "train_s": [0.0], "train_loss": []}
    curve["train_loss"].append(training.evaluate(trainee.model, EVALUATED, evaluated))
    why = ""
    while curve["train_loss"][-1] > target_loss and curve["updates"][-1] < most_updates:
        done = curve["updates"][-1]
        point = min(most_updates, max(done + 1, round(done * _GROWTH)))
        train_s = _train(trainee, batches, point - done, machine)
        loss = training.evaluate(trainee.model, EVALUATED, evaluated)
        if not math.isfinite(loss):
            why = f"the loss is not finite after {point} updates"
            break
        curve["updates"].append(point)
        curve["train_s"].append(curve["train_s"][-1] + train_s)
        curve["train_loss"].append(loss)
        tell(f"batch {batch}, rate x{factor:g}: {point} updates, loss {loss:.3g}")
    return {
        "batch": batch,
        "learning_rate": factor,
        "seed": seed,
        "diverged": bool(why),
        "why": why,
        "curve": curve,
    }


def _train(
    trainee: Trainee, batches: Iterator[Batch], updates: int, machine: Hardware
) -> float:
    """Seconds of so many steps."""
    seconds = 0.0
    with of_the_users("a step of training"):
        while updates:
            drawn = [next(batches) for _ in range(min(updates, _AHEAD))]
            machine.synchronize()
            start_s = machine.now_s()
            for batch in drawn:
                trainee.update(batch)
            machine.synchronize()
            seconds += machine.now_s() - start_s
            updates -= len(drawn)
    return seconds
