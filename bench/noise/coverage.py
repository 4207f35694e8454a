"""`batchline coverage`: how often the noise scale's 95% intervals cover it, measured on a
problem with a known one.

Every estimate is drawn afresh from the analytic linear layer
(bench.noise.workloads.linear), in fp64.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tabulate import tabulate

from batchline.bench.errors import UsageError
from batchline.bench.noise.estimators import (
    BOUNDED,
    NO_SIGNAL,
    NO_UPPER_BOUND,
    BatchStatistics,
    NoiseEstimate,
    noise_scale,
    over_batches,
    within_batch,
)
from batchline.bench.noise.workloads.linear import Linear

CLEAN, NOT_AS_CLAIMED = 0, 1
AS_CLAIMED = "as claimed"
LEAST, MOST = 0.93, 0.975  # of nominal 95% intervals
_MOSTLY = 0.95  # bounded so often, the bounded ones are no selection
_STANDARD_ERRORS = 3
_MOST_ELEMENTS = 2**21  # of the inputs that are drawn at once: 16 MiB


@dataclass(frozen=True)
class Setting:
    """`batches` independent batches of `batch` samples of a problem; of one batch the
    interval is the jackknife's.
    """

    batch: int
    batches: int
    problem: Linear


# B, K, then T, I, O and σ: from a B_simple of 2 to one of 2,000, batches above and
# below it, few samples and many
SETTINGS = tuple(
    Setting(batch, batches, Linear(*sizes))
    for batch, batches, *sizes in (
        (32, 1, 4, 4, 4, 0.5),
        (128, 1, 8, 8, 8, 0.5),
        (64, 1, 4, 8, 8, 1.0),
        (256, 1, 1, 16, 16, 0.25),
        (256, 1, 2, 16, 16, 1.0),
        (512, 1, 1, 16, 16, 1.0),
        (1024, 1, 1, 32, 32, 0.7),
        (4096, 1, 1, 32, 32, 1.4),
        (8, 16, 4, 4, 4, 0.5),
        (8, 16, 4, 8, 8, 1.0),
        (32, 16, 1, 16, 16, 0.25),
        (64, 16, 1, 16, 16, 1.0),
        (64, 16, 1, 32, 32, 0.7),
        (256, 16, 1, 32, 32, 1.4),
        (16, 1, 1, 16, 16, 0.25),
        (32, 1, 1, 32, 32, 0.8),
        (512, 1, 1, 32, 32, 1.4),
        (64, 16, 1, 32, 32, 1.4),
    )
)


@dataclass(frozen=True)
class Row:
    """What came of many draws of a setting. Shares are of the draws, and an unbounded
    interval covers what is in it.

    `trace_off` and `square_off`: how far the mean of S and of G2 is from the truth, in
    standard errors.
    """

    setting: Setting
    draws: int
    bounded: float
    no_upper_bound: float
    no_signal: float
    covered: float
    covered_where_bounded: float | None
    trace_off: float
    square_off: float

    @property
    def verdict(self) -> str:
        """AS_CLAIMED, or what is wrong. An interval without an upper end can't be too
        low: of many the share is higher.

        A jackknife on a batch below B_simple is wide and says so (within_batch); that
        it covers more is as claimed.
        """
        mostly_bounded = self.bounded >= _MOSTLY
        share = self.covered_where_bounded if mostly_bounded else self.covered
        wide = (
            self.setting.batches == 1
            and self.setting.batch < self.setting.problem.noise_scale
        )
        if max(abs(self.trace_off), abs(self.square_off)) > _STANDARD_ERRORS:
            return "biased"
        if share < LEAST:
            return "covers too little"
        return (
            "covers too much"
            if mostly_bounded and share > MOST and not wide
            else AS_CLAIMED
        )


def run(draws: int = 1000, seed: int = 0) -> int:
    """Measure and print the table; 0 if every row is as claimed, 1 if one is not."""
    rows = table(
        draws, seed, tell=lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(show(rows))
    return CLEAN if all(row.verdict == AS_CLAIMED for row in rows) else NOT_AS_CLAIMED


def table(
    draws: int = 1000, seed: int = 0, tell: Callable[[str], None] = lambda line: None
) -> list[Row]:
    """A row for each of SETTINGS. `tell` is told of each before it is measured.

    Raises:
        UsageError: of fewer than two draws.
    """
    if draws < 2:
        raise UsageError(f"a share needs two draws or more, and --draws is {draws}")
    rows = []
    for number, setting in enumerate(SETTINGS):
        tell(
            f"[{number + 1}/{len(SETTINGS)}] {draws:,} draws at B_simple {setting.problem.noise_scale:,.1f}, "
            f"{setting.batches} x {setting.batch}"
        )
        rows.append(
            measure(
                setting,
                draws,
                torch.Generator().manual_seed(seed * len(SETTINGS) + number),
            )
        )
    return rows


def show(rows: Sequence[Row]) -> str:
    """The rows as a table, and how well its shares are known."""
    headers = [
        "B",
        "T",
        "I",
        "O",
        "σ",
        "B_simple",
        "method",
        "bounded",
        "covered where bounded",
        "covered of all",
        NO_UPPER_BOUND,
        "S off",
        "G2 off",
        "verdict",
    ]
    draws = min(row.draws for row in rows)
    return (
        tabulate(
            [_cells(row) for row in rows],
            headers,
            tablefmt="simple",
            disable_numparse=True,
        )
        + f"\n\nEach row is {draws:,} draws: a share of 95% is known to {math.sqrt(0.95 * 0.05 / draws):.1%} (one "
        f"standard error). As claimed: {LEAST:.0%} to {MOST:.1%}."
    )


def _cells(row: Row) -> list[str]:
    setting, problem = row.setting, row.setting.problem
    method = (
        "within the batch" if setting.batches == 1 else f"{setting.batches} batches"
    )
    where_bounded = (
        "" if row.covered_where_bounded is None else f"{row.covered_where_bounded:.1%}"
    )
    return [
        str(setting.batch),
        str(problem.tokens),
        str(problem.inputs),
        str(problem.outputs),
        f"{problem.sigma:g}",
        f"{problem.noise_scale:,.1f}",
        method,
        f"{row.bounded:.1%}",
        where_bounded,
        f"{row.covered:.1%}",
        f"{row.no_upper_bound:.1%}",
        f"{row.trace_off:+.1f} SE",
        f"{row.square_off:+.1f} SE",
        row.verdict,
    ]


def measure(
    setting: Setting,
    draws: int,
    generator: torch.Generator,
    estimator: Callable[[Sequence[BatchStatistics]], NoiseEstimate] | None = None,
) -> Row:
    """The row of a setting, from so many draws of the `estimator`, which is given the
    batches of each.
    """
    estimator = estimator or estimate
    problem, batches = setting.problem, _batches(setting, draws, generator)
    estimates = [
        estimator([next(batches) for _ in range(setting.batches)]) for _ in range(draws)
    ]
    covered = np.array([problem.noise_scale in found.simple for found in estimates])
    answers = np.array([found.answer for found in estimates])
    bounded = answers == BOUNDED
    return Row(
        setting,
        draws,
        float(bounded.mean()),
        float((answers == NO_UPPER_BOUND).mean()),
        float((answers == NO_SIGNAL).mean()),
        float(covered.mean()),
        float(covered[bounded].mean()) if bounded.any() else None,
        _standard_errors([found.scale.trace for found in estimates], problem.trace),
        _standard_errors([found.scale.square for found in estimates], problem.square),
    )


def estimate(batches: Sequence[BatchStatistics]) -> NoiseEstimate:
    """By the jackknife within one batch, or over several."""
    if len(batches) == 1:
        return within_batch(batches[0])
    return over_batches(
        [noise_scale(each.mean_square, each.squared_norms) for each in batches],
        batches[0].batch,
    )


def _standard_errors(values: Sequence[float], truth: float) -> float:
    return float(
        (np.mean(values) - truth) / (np.std(values, ddof=1) / math.sqrt(len(values)))
    )


def _batches(
    setting: Setting, draws: int, generator: torch.Generator
) -> Iterator[BatchStatistics]:
    """The statistics of draws · batches independent batches, drawn as many at once as
    fit into a few MiB.
    """
    problem, left = setting.problem, draws * setting.batches
    at_once = max(
        1,
        _MOST_ELEMENTS
        // (setting.batch * problem.tokens * (problem.inputs + problem.outputs)),
    )
    while left:
        count = min(left, at_once)
        x, dy = (
            drawn.unflatten(0, (count, setting.batch))
            for drawn in problem.draw(count * setting.batch, generator)
        )
        yield from map(BatchStatistics, *statistics_of(x, dy))
        left -= count


def statistics_of(
    x: torch.Tensor, dy: torch.Tensor
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """M[D], n[D,B] and d[D,B] of D batches of weight gradients Σ_t dy_t x_tᵀ, none of
    which is materialised.

    Args:
        x: [D,B,T,I]
        dy: [D,B,T,O]
    """
    n = ((x @ x.mT) * (dy @ dy.mT)).sum((2, 3))  # the ghost norm, exact enough in fp64
    tokens_of_x, tokens_of_dy = x.flatten(1, 2), dy.flatten(1, 2)
    mean = tokens_of_dy.mT @ tokens_of_x / x.shape[1]
    d = ((tokens_of_dy @ mean) * tokens_of_x).sum(2).unflatten(1, x.shape[1:3]).sum(2)
    return mean.square().sum((1, 2)).numpy(), n.numpy(), d.numpy()
