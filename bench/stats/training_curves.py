"""What a training sweep says: when a run reached a loss, where it stood after so many
updates, a batch's best rate.

Reads the record that bench/noise/experiments/sweep.py makes.
"""

from __future__ import annotations

import bisect
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

Run = Mapping


def batches(record: Mapping) -> list[int]:
    """The batch sizes that were trained, from the smallest up."""
    return sorted({run["batch"] for run in record["runs"]})


def rates(record: Mapping, batch: int) -> list[float]:
    """The learning rates that the batch was trained at, from the least up."""
    return sorted(
        {run["learning_rate"] for run in record["runs"] if run["batch"] == batch}
    )


def runs(record: Mapping, batch: int, learning_rate: float | None) -> list[Run]:
    """The runs of a batch at a rate, by seed; none at the rate None."""
    matching = (
        run
        for run in record["runs"]
        if (run["batch"], run["learning_rate"]) == (batch, learning_rate)
    )
    return sorted(matching, key=lambda run: run["seed"])


def first_reach(run: Run, target_loss: float) -> tuple[float, float] | None:
    """Updates and seconds of training until the training loss was first at the target,
    or None where it never was.

    Between two evaluations the logarithm of the loss is taken for a line.
    """
    curve = run["curve"]
    place = next(
        (
            place
            for place, loss in enumerate(curve["train_loss"])
            if loss <= target_loss
        ),
        None,
    )
    if place is None:
        return None
    if place == 0:
        return float(curve["updates"][0]), float(curve["train_s"][0])
    above, below = curve["train_loss"][place - 1 : place + 1]
    share = (
        math.log(above / target_loss) / math.log(above / below) if below > 0 else 1.0
    )
    return tuple(
        values[place - 1] + share * (values[place] - values[place - 1])
        for values in (curve["updates"], curve["train_s"])
    )


def value_at(run: Run, updates: float, key: str) -> float | None:
    """The curve's `key` after so many updates, interpolated; None where the run has
    none there, as one that diverged.
    """
    positions = run["curve"]["updates"]
    values = run["curve"][key]
    after = bisect.bisect_left(positions, updates)
    if after == len(positions) or values[after] is None:
        return None
    if positions[after] == updates or after == 0 or values[after - 1] is None:
        return float(values[after])
    share = (updates - positions[after - 1]) / (positions[after] - positions[after - 1])
    return values[after - 1] + share * (values[after] - values[after - 1])


def best_rate(record: Mapping, batch: int, target_loss: float) -> float | None:
    """The rate that reaches the target in the fewest updates: the median over seeds,
    all of which must reach it.

    Where at no rate all do, the one at which the most do; None where none does.
    """

    def score(runs_at_rate: Sequence[Run]) -> tuple[float, float] | None:
        reached = [
            reach[0]
            for reach in (first_reach(run, target_loss) for run in runs_at_rate)
            if reach
        ]
        return (
            (-len(reached) / len(runs_at_rate), statistics.median(reached))
            if reached
            else None
        )

    return _best(record, batch, score)


def best_rate_for_budget(record: Mapping, batch: int, updates: float) -> float | None:
    """The rate with the least training loss (geometric mean over seeds) after so many
    updates; none may diverge.
    """

    def score(runs_at_rate: Sequence[Run]) -> float | None:
        losses = [value_at(run, updates, "train_loss") for run in runs_at_rate]
        return (
            None
            if None in losses
            else statistics.fmean(math.log(max(loss, 1e-300)) for loss in losses)
        )

    return _best(record, batch, score)


def _best(record: Mapping, batch: int, score: Callable) -> float | None:
    """Among the rates that were run with the most seeds: one that two seeds favour has
    not been compared with those.
    """
    by_rate = {rate: runs(record, batch, rate) for rate in rates(record, batch)}
    most = max(map(len, by_rate.values()), default=0)
    scores = {
        rate: score(runs_at_rate)
        for rate, runs_at_rate in by_rate.items()
        if len(runs_at_rate) == most
    }
    return min(
        (rate for rate, value in scores.items() if value is not None),
        key=scores.get,
        default=None,
    )


def on_edge(record: Mapping, batch: int, learning_rate: float) -> bool:
    """Whether the rate is the least or the largest that the batch was trained at: a
    better one may lie outside.
    """
    tried = rates(record, batch)
    return learning_rate in (tried[0], tried[-1])


def budget_updates(record: Mapping, batch: int) -> tuple[int, int]:
    """The updates that the sweep's equal updates allow this batch, and that its equal
    epochs do.
    """
    grid = record["grid"]
    return grid["updates"], round(grid["epochs"] * record["samples"] / batch)


def by_seed(
    trained: Sequence[Run], read: Callable[[Run], float | None]
) -> dict[int, float]:
    """What `read` says of each run, by seed, without those of which it says nothing."""
    values = {run["seed"]: read(run) for run in trained}
    return {seed: value for seed, value in values.items() if value is not None}
