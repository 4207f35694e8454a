"""One training run by plain SGD, and its curve: losses, accuracy, the loss' jitter
between steps, and time.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from batchline.bench.noise.experiments.sharpness import sharpness
from batchline.bench.noise.workloads.workload import Batch, Samples, Workload

_WINDOW, _LEAST_WINDOW = 50, 10  # steps whose losses give step_loss_std
_DIGITS = 4  # significant, of what is stored


def train(
    workload: Workload,
    batch: int,
    learning_rate: float,
    seed: int,
    points: Sequence[int],
    target_loss: float,
) -> dict:
    """Train from the seed's untrained model and look at it after so many updates each;
    plain data.

    `train_s` is the time of the training steps alone. `step_loss_std` is the standard
    deviation of the loss between the last steps, from their successive differences,
    which a falling mean does not enter (von Neumann 1941); None before ten steps.
    `sharpness` is that of the training loss at the end, `sharpness_at_target` where the
    loss was first seen at `target_loss` or below; None where it never was. A run whose
    loss stops being finite ends there.
    """
    model = workload.model(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    batches = _batches(workload.train, batch, seed)
    curve: dict[str, list] = {
        key: []
        for key in (
            "updates",
            "train_loss",
            "test_loss",
            "test_accuracy",
            "train_s",
            "step_loss_std",
        )
    }
    step_losses: deque[torch.Tensor] = deque(maxlen=_WINDOW)
    updates, train_s, why, at_target = 0, 0.0, "", None
    for point in [0, *points]:
        train_s += _steps(
            workload,
            model,
            optimizer,
            itertools.islice(batches, point - updates),
            step_losses,
        )
        updates = point
        train_loss, _ = _evaluate(workload, model, workload.train)
        test_loss, test_accuracy = _evaluate(workload, model, workload.held_out)
        if not math.isfinite(train_loss + test_loss):
            why = f"the loss is not finite after {updates} updates"
            break
        row = (
            updates,
            train_loss,
            test_loss,
            test_accuracy,
            train_s,
            _jitter(step_losses),
        )
        for values, value in zip(curve.values(), row):
            values.append(
                value if value is None or isinstance(value, int) else _short(value)
            )
        if at_target is None and train_loss <= target_loss:
            at_target = _sharpness(workload, model)
    if not why and curve["train_loss"][-1] > curve["train_loss"][0]:
        why = "the loss ends above the untrained model's"
    return {
        "batch": batch,
        "learning_rate": learning_rate,
        "seed": seed,
        "diverged": bool(why),
        "why": why,
        "curve": curve,
        "sharpness": None if why else _sharpness(workload, model),
        "sharpness_at_target": at_target,
    }


def _steps(
    workload: Workload,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Batch],
    step_losses: deque[torch.Tensor],
) -> float:
    """A step a batch, each one's loss kept; returns the seconds that they took."""
    started_s = time.perf_counter()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = workload.losses(model, inputs, targets).mean()
        loss.backward()
        optimizer.step()
        step_losses.append(loss.detach())
    return time.perf_counter() - started_s


def _batches(samples: Samples, batch: int, seed: int) -> Iterator[Batch]:
    """What is left over in an epoch is passed by, so that every update has its full
    batch.
    """
    drawn = samples.epochs(batch, torch.Generator().manual_seed(seed), "cpu")
    return (one for one in drawn if len(one[0]) == batch)


@torch.no_grad()
def _evaluate(
    workload: Workload, model: nn.Module, samples: Samples
) -> tuple[float, float]:
    """Mean loss and accuracy."""
    loss = workload.losses(model, samples.inputs, samples.targets).mean()
    hits = model(samples.inputs).argmax(1) == samples.targets
    return float(loss), float(hits.double().mean())


def _jitter(losses: Sequence[torch.Tensor]) -> float | None:
    if len(losses) < _LEAST_WINDOW:
        return None
    steps = torch.stack(list(losses)).double().diff()
    return float((steps.square().mean() / 2).sqrt())


def _sharpness(workload: Workload, model: nn.Module) -> float:
    loss = workload.losses(model, workload.train.inputs, workload.train.targets).mean()
    return _short(sharpness(loss, list(model.parameters())).value)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
