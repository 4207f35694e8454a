"""The training sweep: the digits by plain SGD at every batch size and learning rate,
from the same seeds.

In two stages: every rate of the grid with a few seeds, then the rates that matter with
all seeds. The order is drawn at random, so that a drift of the machine falls on no
batch in particular. Each run gives a curve: losses, accuracy, the loss' jitter between
steps, and time.

The sharpness of a minimum is the largest eigenvalue of the training loss' Hessian, by
power iteration on Hessian-vector products. Keskar et al. 2016, arXiv:1609.04836, ask
whether large batches end in sharp minima. They measure the largest rise of the loss in
a box; for a quadratic bowl the largest eigenvalue says the same, and it needs no box to
be chosen.
"""

from __future__ import annotations

import datetime
import itertools
import math
import multiprocessing
import random
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass

import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.measure.machine import environment
from batchline.bench.measure.machine import state as machine_state
from batchline.bench.noise.workloads import Batch, Samples, Workload, workloads
from batchline.bench.stats import fits

_GROWTH = (
    1.1  # from one evaluation to the next, which tells a step count to well within 5%
)
_MOST_PROCESSES = 8

Job = tuple[int, float, int]  # batch, learning rate, seed


@dataclass(frozen=True)
class Grid:
    """What is trained, and for how long: `updates`, or `epochs` where that is more, so
    that both budgets can be read.

    An epoch is as many samples as there are to train on. `target_loss` is the mean
    training loss that tuning aims at.
    """

    batches: tuple[int, ...] = (
        4,
        8,
        16,
        32,
        64,
        128,
        256,
        512,
        1437,
    )  # the last takes all
    learning_rates: tuple[float, ...] = tuple(2.0**power for power in range(-4, 2))
    tuning_seeds: int = 2
    seeds: int = 5
    updates: int = 1000
    epochs: int = 30
    target_loss: float = 0.1


SMALL = Grid(
    batches=(64, 256, 1437),
    learning_rates=(0.125, 0.5),
    tuning_seeds=1,
    seeds=2,
    updates=40,
    epochs=2,
)
"""The sweep on a stand-in for a GPU (bench.measure.stand_in), whose times mean nothing."""


def run(
    seconds: float | None = None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
    grid: Grid = Grid(),
    processes: int | None = None,
) -> dict:
    """Train every run of the grid; returns the record, which is plain data. Runs begin
    until `seconds` have passed.

    Every run has one thread; `processes` of them train at a time, by default one per
    core. `why_busy` is what others took of the cores meanwhile, where that is too much
    to use the runs' times; None otherwise.

    Raises:
        UsageError: of a grid with a batch larger than the data, or with too few seeds.
    """
    workload = workloads["digits"]
    started_s = time.monotonic()
    samples = len(workload.train)
    if max(grid.batches) > samples or not 1 <= grid.tuning_seeds <= grid.seeds:
        raise UsageError(
            f"the sweep needs batches up to {samples} and at least as many seeds as for tuning: {grid}"
        )
    machine = environment.machine("cpu")
    processes = processes or min(_MOST_PROCESSES, machine["cpu_cores"])
    record = {
        "workload": workload.name,
        "title": workload.title,
        "samples": samples,
        "held_out": len(workload.held_out),
        "grid": _plain(grid),
        "seed": seed,
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(
            timespec="seconds"
        ),
        "machine": machine,
        "threads": 1,
        "processes": processes,
        "usual_rate": _usual_rate(grid),
        "runs": [],
        "not_run": [],
    }
    deadline_s = None if seconds is None else started_s + seconds
    tell = tell or _to_stderr
    before = machine_state.read()
    with ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        for stage, choose in (
            ("every learning rate", _tuning),
            ("the best rates with more seeds", _replicates),
        ):
            jobs = choose(record, grid, seed)
            random.Random(seed).shuffle(jobs)
            try:
                for job, result in _trained(
                    pool, jobs, grid, samples, deadline_s, f"sweep, {stage}", tell
                ):
                    record["runs" if result else "not_run"].append(result or list(job))
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    record["runs"].sort(
        key=lambda one: (one["batch"], one["learning_rate"], one["seed"])
    )
    return record | {
        "partial": bool(record["not_run"]),
        "seconds": round(time.monotonic() - started_s, 1),
        "why_busy": machine_state.why_too_busy(before, machine_state.read()),
    }


def points(grid: Grid, batch: int, samples: int) -> list[int]:
    """The updates after which a run is evaluated: in geometric steps, and where a
    budget ends.
    """
    budgets = budget_updates(grid, batch, samples)
    last = max(budgets)
    updates = set(budgets)
    place = 1.0
    while place < last:
        updates.add(round(place))
        place = max(place + 1, place * _GROWTH)
    return sorted(updates)


def budget_updates(grid: Grid, batch: int, samples: int) -> tuple[int, int]:
    """The updates that equal updates allow, and that equal epochs do."""
    return grid.updates, round(grid.epochs * samples / batch)


def _plain(grid: Grid) -> dict:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in asdict(grid).items()
    }


def _usual_rate(grid: Grid) -> float:
    """The rate of the grid next to the workload's own."""
    return min(
        grid.learning_rates,
        key=lambda rate: abs(rate - workloads["digits"].learning_rate),
    )


def _tuning(record: dict, grid: Grid, seed: int) -> list[Job]:
    return [
        (batch, rate, seed + one)
        for batch in grid.batches
        for rate in grid.learning_rates
        for one in range(grid.tuning_seeds)
    ]


def _replicates(record: dict, grid: Grid, seed: int) -> list[Job]:
    """For each batch its best rates by each criterion, the neighbours of the best, and
    two rates common to all.

    Common are the workload's own rate and the largest batch's best.
    """
    all_rates = sorted(grid.learning_rates)
    samples = record["samples"]
    best = {
        batch: fits.best_rate(record, batch, grid.target_loss) for batch in grid.batches
    }
    common = {record["usual_rate"], best[max(grid.batches)]}
    jobs = []
    for batch in grid.batches:
        wanted = (
            common
            | {best[batch]}
            | {
                fits.best_rate_for_budget(record, batch, updates)
                for updates in budget_updates(grid, batch, samples)
            }
        )
        if best[batch] is not None:
            place = all_rates.index(best[batch])
            wanted |= set(all_rates[max(0, place - 1) : place + 2])
        jobs += [
            (batch, rate, seed + one)
            for rate in sorted(wanted - {None})
            for one in range(grid.tuning_seeds, grid.seeds)
        ]
    return jobs


def _trained(
    pool: ProcessPoolExecutor,
    jobs: Sequence[Job],
    grid: Grid,
    samples: int,
    deadline_s: float | None,
    stage: str,
    tell: Callable[[str], None],
) -> Iterator[tuple[Job, dict | None]]:
    """Each job and its run; None for those that were not begun by the deadline."""
    started_s = told_s = time.monotonic()
    if deadline_s is not None and started_s > deadline_s:
        yield from ((job, None) for job in jobs)
        return
    futures = {
        pool.submit(
            _train_digits, job, points(grid, job[0], samples), grid.target_loss
        ): job
        for job in jobs
    }
    tell(f"{stage}: {len(jobs)} training runs")
    for done, future in enumerate(as_completed(futures), 1):
        yield futures[future], None if future.cancelled() else future.result()
        now_s = time.monotonic()
        if deadline_s is not None and now_s > deadline_s:
            for waiting in futures:
                waiting.cancel()
        if now_s - told_s > 10:
            told_s = now_s
            left_s = (now_s - started_s) / done * (len(jobs) - done)
            tell(
                f"[{done}/{len(jobs)}] {stage}: {left_s // 60:.0f} min {left_s % 60:02.0f} s left of it"
            )


def _train_digits(job: Job, looked_at: Sequence[int], target_loss: float) -> dict:
    return train(workloads["digits"], *job, looked_at, target_loss)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    updates = 0
    train_s = 0.0
    why = ""
    at_target = None
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
    """One step per batch; appends each loss to `step_losses`, and returns the seconds
    that the steps took.
    """
    started_s = time.perf_counter()
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = workload.losses(model, inputs, targets).mean()
        loss.backward()
        optimizer.step()
        step_losses.append(loss.detach())
    return time.perf_counter() - started_s


def _batches(samples: Samples, batch: int, seed: int) -> Iterator[Batch]:
    """The epochs' full batches: the rest of an epoch is left out."""
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
    return _short(largest_eigenvalue(loss, list(model.parameters())).value)


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


_TOLERANCE = 0.01
_MOST_ITERATIONS = 100


@dataclass(frozen=True)
class Eigenvalue:
    """`value`, and `residual` = ‖Hv − λv‖: a symmetric H has an eigenvalue within that
    of `value`.
    """

    value: float
    residual: float


def largest_eigenvalue(
    loss: torch.Tensor, parameters: Sequence[torch.Tensor], seed: int = 0
) -> Eigenvalue:
    """The largest eigenvalue (not the largest in magnitude) of the Hessian of `loss`, a
    scalar with a graph.

    Iterates until the residual is 1% of the eigenvalue, or a hundred times.

    Raises:
        ValueError: of a loss that is not finite.
    """
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"no sharpness of a loss of {loss.item()}: it must be finite")
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    shapes = [parameter.shape for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]

    def hessian(vector: torch.Tensor) -> torch.Tensor:
        pieces = [
            piece.view(shape) for piece, shape in zip(vector.split(sizes), shapes)
        ]
        curved = [pair for pair in zip(gradients, pieces) if pair[0].requires_grad]
        if not curved:  # a loss that is linear in everything
            return torch.zeros_like(vector)
        of, along = zip(*curved)
        products = torch.autograd.grad(
            of, parameters, along, retain_graph=True, materialize_grads=True
        )
        return torch.cat([product.flatten() for product in products])

    start = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).to(
        loss
    )
    dominant = _dominant(hessian, start)
    if dominant.value >= 0:
        return dominant
    # the dominant one is negative: with it taken off the diagonal, the largest is
    shifted = _dominant(lambda vector: hessian(vector) - dominant.value * vector, start)
    return Eigenvalue(shifted.value + dominant.value, shifted.residual)


def _dominant(
    matrix: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor
) -> Eigenvalue:
    """The eigenvalue largest in magnitude."""
    vector = start / start.norm()
    for _ in range(_MOST_ITERATIONS):
        product = matrix(vector)
        value = float(vector @ product)
        norm = float(product.norm())
        residual = float((product - value * vector).norm())
        if residual <= _TOLERANCE * abs(value):
            break
        vector = product / norm
    return Eigenvalue(value, residual)
