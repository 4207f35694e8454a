"""The training sweep: the digits by plain SGD at every batch size and learning rate,
from the same seeds.

In two stages: every rate of the grid with a few seeds, then the rates that matter with
all seeds. The order is drawn at random, so that a drift of the machine falls on no
batch in particular.
"""

from __future__ import annotations

import datetime
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass

import torch

from batchline.bench.errors import UsageError
from batchline.bench.measure import busy, environment
from batchline.bench.noise.claims import curves
from batchline.bench.noise.experiments.training import train
from batchline.bench.noise.workloads import workloads

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
"""What is trained where no time is one (bench.measure.stand_in): to go the whole way."""


def run(
    seconds: float | None = None,
    seed: int = 0,
    tell: Callable[[str], None] | None = None,
    grid: Grid = Grid(),
    processes: int | None = None,
) -> dict:
    """Train every run of the grid; returns the record, which is plain data. Runs begin
    until `seconds` have passed.

    Every run has one thread; `processes` of them train at a time, by default one a
    core. `why_busy` is what others took of the cores meanwhile, where that is too much
    to use the runs' times; None otherwise.

    Raises:
        UsageError: of a grid with a batch larger than the data, or with too few seeds.
    """
    workload, started_s = workloads["digits"], time.monotonic()
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
    before = busy.read()
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
        "why_busy": busy.why_too_busy(before, busy.read()),
    }


def points(grid: Grid, batch: int, samples: int) -> list[int]:
    """The updates after which a run is looked at: in geometric steps, and where a
    budget ends.
    """
    budgets = budget_updates(grid, batch, samples)
    last, found, place = max(budgets), set(budgets), 1.0
    while place < last:
        found.add(round(place))
        place = max(place + 1, place * _GROWTH)
    return sorted(found)


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
    all_rates, samples = sorted(grid.learning_rates), record["samples"]
    best = {
        batch: curves.best_rate(record, batch, grid.target_loss)
        for batch in grid.batches
    }
    common = {record["usual_rate"], best[max(grid.batches)]}
    jobs = []
    for batch in grid.batches:
        wanted = (
            common
            | {best[batch]}
            | {
                curves.best_rate_for_budget(record, batch, updates)
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
            told_s, left_s = now_s, (now_s - started_s) / done * (len(jobs) - done)
            tell(
                f"[{done}/{len(jobs)}] {stage}: {left_s // 60:.0f} min {left_s % 60:02.0f} s left of it"
            )


def _train_digits(job: Job, looked_at: Sequence[int], target_loss: float) -> dict:
    return train(workloads["digits"], *job, looked_at, target_loss)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
