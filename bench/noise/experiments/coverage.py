"""`batchline coverage`: how often the noise scale's 95% intervals cover it, measured on a
problem with a known one.

Every estimate is drawn afresh, in fp64, from one linear layer on Gaussian inputs, whose
noise scale is known in closed form. x ~ N(0, I) and dy_t = (Eᵀx_t − ε_t)/T with
ε ~ N(0, σ²) are the inputs and output gradients of least squares over T tokens, E[I,O]
how far the weight is from the best one. Then ‖G‖² = ‖E‖² and tr Σ = ((I+1)‖E‖² +
I·O·σ²)/T.

So is every estimate of `Samples`: gradients G + e of 64 parameters or fewer, with an e of
light tails or heavy ones, and G as long as makes B_simple/B what the setting says.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy.special import bdtrc
from tabulate import tabulate

from batchline.bench.errors import UsageError
from batchline.bench.stats.noise_scale import (
    BOUNDED,
    ENOUGH_SAMPLES,
    NO_SIGNAL,
    SHOWN_RARE,
    BatchStatistics,
    NoiseEstimate,
    noise_scale,
    over_batches,
    within_batch,
)

CLEAN = 0
NOT_AS_CLAIMED = 1
AS_CLAIMED = "as claimed"
WIDE = "wide"
WARNED = "warned"
GOOD = (AS_CLAIMED, WIDE, WARNED)
LEAST, MOST = 0.93, 0.97  # of nominal 95% intervals
MISLED = 1 - LEAST  # miss without a warning, where most have one
TOO_HIGH = 0.035  # of low ends, which claim 2.5%
_CHANCE = 1e-3  # a verdict against the intervals is by chance in no more
_MOSTLY = 0.5  # warned so often, the unwarned ones are a selection
_STANDARD_ERRORS = 3.5
_MOST_ELEMENTS = 2**21  # of the inputs that are drawn at once: 16 MiB
PARAMETERS = 64
DRAWS = 600


class Problem(Protocol):
    """Gradients whose noise scale is known, in words; `rare` is how rare the samples are that
    make most of it, and `light` whether ‖g‖² has a variance, so that a bias can be seen.
    """

    words: str
    rare: float
    light: bool
    trace: float
    square: float

    @property
    def noise_scale(self) -> float: ...

    def elements(self, batch: int) -> int:
        """How many numbers are drawn for a batch."""

    def statistics(
        self, count: int, batch: int, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """M[D], n[D,B] and d[D,B] of so many batches."""


@dataclass(frozen=True)
class Linear:
    """T tokens per sample, I inputs, O outputs, σ of the targets' noise and ‖E‖ of the
    weight's error.
    """

    tokens: int
    inputs: int
    outputs: int
    sigma: float
    error: float = 1.0
    rare = 1.0
    light = True

    @property
    def words(self) -> str:
        return f"linear, T {self.tokens}, {self.inputs} to {self.outputs}, σ {self.sigma:g}"

    @property
    def square(self) -> float:
        """‖G‖² of the true gradient."""
        return self.error**2

    @property
    def trace(self) -> float:
        """tr Σ of one sample's gradient."""
        return (
            (self.inputs + 1) * self.square + self.inputs * self.outputs * self.sigma**2
        ) / self.tokens

    @property
    def noise_scale(self) -> float:
        """B_simple = tr Σ/‖G‖²."""
        return self.trace / self.square

    def draw(
        self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x[B,T,I] and dy[B,T,O] of independent samples; every call's E is the same,
        and full of equal entries.
        """
        x = torch.randn(
            batch, self.tokens, self.inputs, generator=generator, dtype=dtype
        )
        noise = self.sigma * torch.randn(
            batch, self.tokens, self.outputs, generator=generator, dtype=dtype
        )
        error = self.error / (self.inputs * self.outputs) ** 0.5
        return x, (x.sum(2, keepdim=True) * error - noise) / self.tokens

    def elements(self, batch: int) -> int:
        return batch * self.tokens * (self.inputs + self.outputs)

    def statistics(
        self, count: int, batch: int, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x, dy = (
            drawn.unflatten(0, (count, batch))
            for drawn in self.draw(count * batch, generator)
        )
        return statistics_of(x, dy)


Shape = tuple[int, int, int]  # batches, samples, parameters


def _normal(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _of_variances(
    variances: Sequence[float], shape: Shape, generator: torch.Generator
) -> torch.Tensor:
    scales = torch.tensor(variances, dtype=torch.float64).sqrt()
    return _normal((*shape[:2], len(variances)), generator) * scales


def _student(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    """Student's t with 3 degrees of freedom."""
    chi_square = _normal((3, *shape), generator).square().sum(0)
    return _normal(shape, generator) * (3 / chi_square).sqrt()


def _of_student_length(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    chi_square = _normal((3, *shape[:2], 1), generator).square().sum(0)
    return _normal(shape, generator) * (3 / chi_square).sqrt()


def _of_lognormal_length(
    sigma: float, shape: Shape, generator: torch.Generator
) -> torch.Tensor:
    lengths = (sigma * _normal((*shape[:2], 1), generator)).exp()
    return _normal(shape, generator) * lengths


def _with_outliers(
    rare: float, times: float, shape: Shape, generator: torch.Generator
) -> torch.Tensor:
    drawn = torch.rand((*shape[:2], 1), generator=generator, dtype=torch.float64)
    return _normal(shape, generator) * torch.where(drawn < rare, times, 1.0)


@dataclass(frozen=True)
class Noise:
    """A distribution of e[D,B,P], of mean 0, and tr Σ of it."""

    words: str
    trace: float
    draw: Callable[[Shape, torch.Generator], torch.Tensor]
    rare: float = 1.0
    light: bool = True


_ONE_DIRECTION = (0.9,) + (0.1 / (PARAMETERS - 1),) * (PARAMETERS - 1)
_SPECTRUM = tuple(1 / number**2 for number in range(1, PARAMETERS + 1))
NOISES = (
    Noise("Gaussian", PARAMETERS, _normal),
    Noise("spectrum 1/i²", sum(_SPECTRUM), functools.partial(_of_variances, _SPECTRUM)),
    Noise(
        "90% in one direction", 1.0, functools.partial(_of_variances, _ONE_DIRECTION)
    ),
    Noise("2 parameters", 2.0, functools.partial(_of_variances, (1.0, 1.0))),
    Noise("t3 each parameter", 3 * PARAMETERS, _student, light=False),
    Noise("t3 whole sample", 3 * PARAMETERS, _of_student_length, light=False),
    Noise(
        "lognormal length, σ 1/2",
        PARAMETERS * math.exp(0.5),
        functools.partial(_of_lognormal_length, 0.5),
        light=False,
    ),
    Noise(
        "lognormal length, σ 1",
        PARAMETERS * math.exp(2),
        functools.partial(_of_lognormal_length, 1.0),
        light=False,
    ),
    Noise(
        "1% of samples x30",
        PARAMETERS * (1 + 0.01 * 899),
        functools.partial(_with_outliers, 0.01, 30.0),
        rare=0.01,
        light=False,
    ),
)


@dataclass(frozen=True)
class Samples:
    """Gradients G + e, all entries of G alike, with a B_simple of `noise_scale`."""

    noise: Noise
    noise_scale: float

    @property
    def words(self) -> str:
        return self.noise.words

    @property
    def rare(self) -> float:
        return self.noise.rare

    @property
    def light(self) -> bool:
        return self.noise.light

    @property
    def trace(self) -> float:
        return self.noise.trace

    @property
    def square(self) -> float:
        return self.trace / self.noise_scale

    def elements(self, batch: int) -> int:
        return 4 * batch * PARAMETERS

    def statistics(
        self, count: int, batch: int, generator: torch.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        g = self.noise.draw((count, batch, PARAMETERS), generator)
        g = g + (self.square / g.shape[2]) ** 0.5
        mean = g.mean(1)
        d = (g @ mean[:, :, None])[:, :, 0]
        return mean.square().sum(1).numpy(), g.square().sum(2).numpy(), d.numpy()


@dataclass(frozen=True)
class Setting:
    """`batches` independent batches of `batch` samples of a problem; of one batch the
    interval is the score test's.
    """

    batch: int
    batches: int
    problem: Problem

    @property
    def samples(self) -> int:
        return self.batch * self.batches

    @property
    def ratio(self) -> float:
        """B_simple/B."""
        return self.problem.noise_scale / self.batch


# B, K, then T, I, O and σ: from a B_simple of 2 to one of 2,000, batches above and
# below it, few samples and many
_OF_LINEAR = tuple(
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


# B, K and B_simple/B: both sides of B_simple, from one batch and over several, and from
# so many samples that none is warned of rare ones
_DESIGNS = (
    (16, 1, 0.3),
    (64, 1, 0.05),
    (64, 1, 1.0),
    (64, 1, 10.0),
    (256, 1, 0.05),
    (256, 1, 1.0),
    (32, 16, 0.05),
    (8, 64, 1.0),
    (64, 32, 0.05),
    (64, 32, 1.0),
)
SETTINGS = _OF_LINEAR + tuple(
    Setting(batch, batches, Samples(noise, ratio * batch))
    for noise in NOISES
    for batch, batches, ratio in _DESIGNS
)


@dataclass(frozen=True)
class Row:
    """The results of many draws of a setting. Shares are of the draws, but for the
    `unwarned_…`, which are of the draws without a warning of the data and None where
    each has one. An unbounded interval covers what is in it.

    `warned` draws have a warning of the data, and `misled` ones miss and have none.
    `unseen`: each draw warns of rare samples that so few can't show. `trace_off` and
    `square_off`: how far the mean of S and of G2 is from the truth, in standard errors.
    """

    setting: Setting
    draws: int
    bounded: float
    covered: float
    warned: float
    unwarned_covered: float | None
    unwarned_too_high: float | None
    misled: float
    unseen: bool
    trace_off: float
    square_off: float

    @property
    def shown_rare(self) -> float:
        """How rare samples may be for a draw to have one, with 95%."""
        return SHOWN_RARE / self.setting.samples

    @property
    def verdict(self) -> str:
        """One of GOOD, or what is wrong, beyond what chance explains in one of 1,000.

        The warning of rare samples excuses a row whose problem has them, and no other.
        Where the data warn in most draws, the others are a selection, of those that did
        not show the tail: such a row is judged by how many miss without a warning.
        Within one batch an interval may be wide: at or below B_simple the two parts of
        Var G2 can't be told apart.
        """
        unwarned = round(self.draws * (1 - self.warned))
        if self.unseen and self.setting.problem.rare < self.shown_rare:
            return WARNED
        if self.warned >= _MOSTLY:
            few = not _more(self.misled, self.draws, MISLED)
            return WARNED if few else "misses without a warning"
        off = max(abs(self.trace_off), abs(self.square_off))
        if self.setting.problem.light and off > _STANDARD_ERRORS:
            return "biased"
        if _more(1 - self.unwarned_covered, unwarned, 1 - LEAST):
            return "covers too little"
        if _more(self.unwarned_too_high, unwarned, TOO_HIGH):
            return "low end too high"
        if not _more(self.unwarned_covered, unwarned, MOST):
            return AS_CLAIMED
        bounded_enough = self.setting.batches > 1 and self.bounded >= 0.95
        return "covers too much" if bounded_enough else WIDE


def _more(share: float, of: int, than: float) -> bool:
    """Whether a share is larger than another beyond chance, by the binomial test."""
    count = round(share * of)
    return count > 0 and float(bdtrc(count - 1, of, than)) < _CHANCE


def run(draws: int = DRAWS, seed: int = 0) -> int:
    """Measure and print the table; 0 if every row is as claimed, 1 if one is not."""
    rows = table(
        draws, seed, tell=lambda line: print(line, file=sys.stderr, flush=True)
    )
    print(show(rows))
    return CLEAN if all(row.verdict in GOOD for row in rows) else NOT_AS_CLAIMED


def table(
    draws: int = DRAWS, seed: int = 0, tell: Callable[[str], None] = lambda line: None
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


_HEADERS = (
    "problem",
    "B",
    "batches",
    "B_simple/B",
    "bounded",
    "covered",
    "unseen",
    "warned by data",
    "covered of the rest",
    "low end too high",
    "misled by data",
    "verdict",
)


def show(rows: Sequence[Row]) -> str:
    """The rows as a table, how well its shares are known, and how often a warning of the
    data was needless.
    """
    draws = min(row.draws for row in rows)
    error = math.sqrt(0.95 * 0.05 / draws)
    text = tabulate(
        [_cells(row) for row in rows],
        _HEADERS,
        tablefmt="simple",
        disable_numparse=True,
    )
    text += (
        f"\n\nEach row is {draws:,} draws: a share of 95% is known to {error:.1%} (one standard error). "
        f"From fewer than {ENOUGH_SAMPLES:,} samples each draw\nwarns that it can't show large samples rarer than "
        "what is under unseen. Of a problem that has such samples this is the row's\nwarning. Every other row is "
        "judged by what its data say. "
        f"As claimed: {LEAST:.0%} to {MOST:.0%} of the draws without a warning of the\ndata cover, and "
        f"{TOO_HIGH:.1%} of their low ends at most are too high. Where the data warn in half or more: {MISLED:.0%} at "
        "most miss without\nthat warning (misled by data). A row fails where chance explains it in less than 1 of "
        "1,000: the fewer the draws, the farther\noff it must be."
    )
    for light, words in ((True, "light tails"), (False, "heavy tails")):
        fine = [
            row.warned
            for row in rows
            if row.setting.problem.light == light and row.covered >= LEAST
        ]
        if fine:
            text += (
                f"\nOf {words}: in the {len(fine)} rows where {LEAST:.0%} or more of all cover, with a warning or "
                f"without, the data warn in {np.mean(fine):.0%} of the draws (median {np.median(fine):.0%})."
            )
    return text


def _cells(row: Row) -> list[str]:
    setting = row.setting
    unwarned = (
        ("", "")
        if row.unwarned_covered is None
        else (f"{row.unwarned_covered:.1%}", f"{row.unwarned_too_high:.1%}")
    )
    return [
        setting.problem.words,
        str(setting.batch),
        str(setting.batches),
        f"{setting.ratio:.2g}",
        f"{row.bounded:.1%}",
        f"{row.covered:.1%}",
        f"1 in {1 / row.shown_rare:.0f}" if row.unseen else "",
        f"{row.warned:.1%}",
        *unwarned,
        f"{row.misled:.1%}",
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
    problem = setting.problem
    batches = _batches(setting, draws, generator)
    estimates = [
        estimator([next(batches) for _ in range(setting.batches)]) for _ in range(draws)
    ]
    truth = problem.noise_scale
    covered = np.array([truth in one.simple for one in estimates])
    too_high = np.array([one.simple.low > truth for one in estimates])
    warned = np.array([bool(one.warning) for one in estimates])
    unwarned = ~warned
    return Row(
        setting,
        draws,
        float(np.mean([one.answer == BOUNDED for one in estimates])),
        float(covered.mean()),
        float(warned.mean()),
        float(covered[unwarned].mean()) if unwarned.any() else None,
        float(too_high[unwarned].mean()) if unwarned.any() else None,
        float((unwarned & ~covered).mean()),
        all(one.unseen for one in estimates if one.answer != NO_SIGNAL),
        _standard_errors([one.scale.trace for one in estimates], problem.trace),
        _standard_errors([one.scale.square for one in estimates], problem.square),
    )


def estimate(batches: Sequence[BatchStatistics]) -> NoiseEstimate:
    """Within one batch, or over several."""
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
    left = draws * setting.batches
    at_once = max(1, _MOST_ELEMENTS // setting.problem.elements(setting.batch))
    while left:
        count = min(left, at_once)
        yield from map(
            BatchStatistics,
            *setting.problem.statistics(count, setting.batch, generator),
        )
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
    tokens_of_x = x.flatten(1, 2)
    tokens_of_dy = dy.flatten(1, 2)
    mean = tokens_of_dy.mT @ tokens_of_x / x.shape[1]
    d = ((tokens_of_dy @ mean) * tokens_of_x).sum(2).unflatten(1, x.shape[1:3]).sum(2)
    return mean.square().sum((1, 2)).numpy(), n.numpy(), d.numpy()
