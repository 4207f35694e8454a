"""Fits over the batch size, of times by a line with the terms that it needs and of bytes
by a line; the curves of training runs; and the change points of a history.

Latency: weights are 1/t², as the noise of a time is a share of it, and no coefficient
is below 0 (Lawson and Hanson, Solving Least Squares Problems, 1974, ch. 23). What a
line lacks is added a term at a time, the one that explains most: a second slope from a
measured batch on, or one batch that is no part of the law, a jump. A term is taken if
its F test survives Bonferroni over all that were offered, at 1%. The test is on
logarithms, in which twice the law and half of it are equally far. It takes no scatter
for less than 1%: processes differ by as much, however well a few medians agree. With
few batches no test can reach that; so a fit that is off by a quarter, which is not
noise, is also left for one that halves it. Of lines with noise up to 5%, at most 2% get
a term (tests/test_laws.py asserts it).

Memory: plain least squares.

Training: when a run of a sweep reached a loss, where it stood after so many updates, a
batch's best rate, from the record that bench.noise.experiments.sweep makes.

History: where a case's medians changed their level, by ruptures' PELT and a t test of
each change that it offers. The critical value is calibrated so that a flat history shows no change, because
hundreds of cases are looked at each time. Simulated (tests/test_change_points.py
repeats it in small): of flat histories of 10 to 200 runs with 2% of noise, independent
or AR(1) with φ = 0.3, without spikes or with one run in fifty slower by 5-50%, about 1%
at most show a change. A step of +5% in such noise is found, within three runs, in 83 to
89 of a hundred histories with 16 runs on either side, in about eight of ten with 8
behind it and 100 before it, and with 8 on either side in four or five of ten. That last
step is 5 standard errors, and noise of φ = 0.3 alone reaches 5.4 in one of a hundred
histories that short: a test that sees more of them gives more false alarms.
"""

from __future__ import annotations

import bisect
import functools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit

from batchline.bench.stats.intervals import Interval, Means, Quantiles, fieller
from batchline.bench.stats.roofline import Waves

GOOD_FIT = 0.25  # of a time: a fit that misses by more is none
_CONFIDENCE = 0.95
_LEVEL = 0.01  # at which a term is added
_LEAST_NOISE = 0.01
_EITHER_SIDE = (
    2  # batches, of a second slope: with one it would be that batch's own jump
)
_LEAST_STEPS = (
    3  # different batches, or numbers of waves, that a line and its scatter need
)
_EXACT = 1e-12  # squares of relative residuals that are rounding
LEAST_MEMORY_BATCHES = 3  # two points make any line
Run = Mapping
LEAST_RUNS = 10  # two segments
LEAST_SEGMENT = 5  # two slow runs in a row are bad luck: three of five would be needed
_LEAST_SERIES_NOISE = (
    0.01  # of a logarithm: processes differ by 1%, however alike a few runs look
)
_CRITICAL_T = 5.5
_CANDIDATE_PENALTY = (
    4  # in variances: offers too many changes, which the t test then drops
)
_SPIKE = 4.0  # standard deviations from the median of a run and its three neighbours on each side
_NEIGHBOURS = 3
_SIGMA_OF_MAD = 1.4826  # of the normal distribution


class LatencyFit:
    """t(B) = values · (1, B) in seconds, or (1, min(B, bend_at), max(B − bend_at, 0))
    with a `knot`, and the `jumps`.

    With `waves`, B is rounded up to full ones. `knot` and `jumps` are rows of
    batches[N] and times_s[N]; the batches of the jumps are left out.
    """

    def __init__(
        self,
        batches: np.ndarray,
        times_s: np.ndarray,
        waves: Waves | None = None,
        knot: int | None = None,
        jumps: tuple[int, ...] = (),
    ):
        from scipy.optimize import nnls

        self.batches = batches
        self.times_s = times_s
        self.waves = waves
        self.knot = knot
        self.jumps = jumps
        self._axis = (
            batches
            if waves is None
            else np.array([waves.filled(batch) for batch in batches])
        )
        self.bend_at = math.inf if knot is None else float(self._axis[knot])
        self._kept = np.delete(np.arange(len(batches)), jumps)
        weighted = self._curve(self._axis[self._kept]) / times_s[self._kept, None]
        self._scale = np.linalg.norm(weighted, axis=0)
        self._design = weighted / self._scale
        scaled, _ = nnls(self._design, np.ones(len(self._kept)))
        self.values = scaled / self._scale
        self._degrees = len(self._kept) - len(scaled)
        self._squares = float((np.log1p(self.misses[self._kept]) ** 2).sum())

    def _curve(self, axis: np.ndarray) -> np.ndarray:
        columns = [
            np.ones(len(axis)),
            np.minimum(axis, self.bend_at),
            np.maximum(axis - self.bend_at, 0),
        ]
        return np.stack(columns[: 2 if self.knot is None else 3], axis=1)

    def seconds_at(self, axis: np.ndarray) -> np.ndarray:
        """The law without its jumps at batches[N], taken as they are: not rounded up."""
        return self._curve(np.asarray(axis, float)) @ self.values

    @property
    def misses(self) -> np.ndarray:
        """measured/law − 1 of each batch, the jumps no part of the law."""
        return self.times_s / self.seconds_at(self._axis) - 1

    @property
    def worst(self) -> tuple[int, float]:
        """The row that the law misses by most, jumps left out, and the size of that
        miss.
        """
        misses = np.abs(self.misses[self._kept])
        return int(self._kept[misses.argmax()]), float(misses.max())

    @property
    def clear(self) -> float:
        """A share over the law that the scatter does not explain at any of the batches
        (Bonferroni).
        """
        return self._noise * float(
            stdtrit(self._degrees, 1 - _LEVEL / len(self.batches))
        )

    def longer(self) -> LatencyFit | None:
        """This fit with one term more, the one that explains most; None where chance
        may explain it.
        """
        offers = self._offers() if self._degrees > 1 else []
        if not offers:
            return None
        best = min(offers, key=lambda fit: fit._squares)
        t = (
            math.sqrt(max(self._squares - best._squares, 0)) / best._noise
        )  # its square is the F of one term
        is_luck = 2 * stdtr(best._degrees, -t) * len(offers) > _LEVEL
        return (
            best
            if not is_luck
            or best.worst[1] <= self.worst[1] / 2
            and self.worst[1] > GOOD_FIT
            else None
        )

    def _offers(self) -> list[LatencyFit]:
        free = [row for row in range(len(self.batches)) if row not in self.jumps]
        terms = [(row, self.jumps) for row in free] if self.knot is None else []
        terms += [(self.knot, (*self.jumps, row)) for row in free]
        return [
            LatencyFit(self.batches, self.times_s, self.waves, *more)
            for more in terms
            if self._determines(*more)
        ]

    def _determines(self, knot: int | None, jumps: tuple[int, ...]) -> bool:
        """Whether enough different batches, or numbers of waves, are left for a line,
        and on either side of a knot.
        """
        steps = np.unique(np.delete(self._axis, jumps))
        if knot is None:
            return len(steps) >= _LEAST_STEPS
        return (
            min((steps < self._axis[knot]).sum(), (steps > self._axis[knot]).sum())
            >= _EITHER_SIDE
        )

    @property
    def information(self) -> float:
        """Schwarz's criterion (BIC): the smaller, the better."""
        count = len(self.batches)
        return count * math.log(max(self._squares, _EXACT) / count) + (
            count - self._degrees
        ) * math.log(count)

    @property
    def _noise(self) -> float:
        return max(math.sqrt(self._squares / self._degrees), _LEAST_NOISE)

    def interval(self, index: int) -> Interval:
        """The t interval of a coefficient: that of plain least squares, which the bound
        at 0 does not disturb.
        """
        free, covariance = self._unbounded
        margin = self._quantile * math.sqrt(covariance[index, index])
        center = (
            free[index] if free[index] + margin > 0 else 0
        )  # all of it below 0 says nothing of where it is above
        return self._holding(self.values[index], center - margin, center + margin)

    def ratio(self, top: np.ndarray, bottom: np.ndarray) -> tuple[float, Interval]:
        """Of two sums of the coefficients, neither of which can be below 0, with
        Fieller's interval (JRSS B 16, 1954).

        Where the bottom may be 0 it has no upper end.
        """
        free, covariance = self._unbounded
        value = (top @ self.values) / (bottom @ self.values)
        both = np.array([top, bottom])
        ends = fieller(
            Means.of(both @ free, both @ covariance @ both.T),
            Quantiles(-self._quantile, self._quantile),
        )
        return float(value), self._holding(value, ends.low, ends.high)

    @staticmethod
    def _holding(value: float, low: float, high: float) -> Interval:
        """The ends, not below 0, and not without the value, which a bound may have
        moved.
        """
        return Interval(float(max(0, min(low, value))), float(max(high, value)))

    @property
    def _quantile(self) -> float:
        return float(stdtrit(self._degrees, (1 + _CONFIDENCE) / 2))

    @functools.cached_property
    def _unbounded(self) -> tuple[np.ndarray, np.ndarray]:
        """Plain least squares: the coefficients and their covariance."""
        inverse = np.linalg.pinv(self._design)
        free = inverse.sum(axis=1)
        variance = ((1 - self._design @ free) ** 2).sum() / self._degrees
        covariance = (
            variance * (inverse @ inverse.T) / np.outer(self._scale, self._scale)
        )
        return free / self._scale, covariance


def fit_latency(
    batches: np.ndarray, times_s: np.ndarray, waves: Waves | None = None
) -> LatencyFit:
    """The law of these times: a line with the terms that it needs, in batches or, where
    that fits better, in waves.
    """
    fits = [LatencyFit(batches, times_s)]
    if (
        waves is not None
        and len({waves.count(batch) for batch in batches}) >= _LEAST_STEPS
    ):
        fits.append(LatencyFit(batches, times_s, waves))
    for row, fit in enumerate(fits):
        while (longer := fit.longer()) is not None:
            fit = longer
        fits[row] = fit
    return min(fits, key=lambda fit: fit.information)


@dataclass(frozen=True)
class MemoryLaw:
    """Bytes: m(B) = fixed + per_sample · B. `misfit` is the worst |measured − law| as a
    share of the largest m.
    """

    fixed: float
    per_sample: float
    misfit: float

    def bytes_at(self, batch: float) -> float:
        return self.fixed + self.per_sample * batch

    def largest_batch(self, room_bytes: float) -> int | None:
        """The largest B with m(B) ≤ `room_bytes`; None where memory does not grow with
        the batch.
        """
        if self.per_sample <= 0:
            return None
        return max(0, int((room_bytes - self.fixed) / self.per_sample))


def fit_memory(batches: Sequence[int], sizes: Sequence[float]) -> MemoryLaw | None:
    """Least squares over (batch, bytes); None from fewer than three batches.

    Unweighted: a page or two of rounding is nothing at a large batch, and it is the
    large ones that a limit concerns.
    """
    if len(set(batches)) < LEAST_MEMORY_BATCHES:
        return None
    slope, intercept = statistics.linear_regression(batches, sizes)
    worst = max(
        abs(intercept + slope * batch - size) for batch, size in zip(batches, sizes)
    )
    return MemoryLaw(intercept, slope, worst / max(*sizes, 1))


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


@dataclass(frozen=True)
class ChangePoint:
    """`index` is the first run of the new level; the levels are geometric means between
    the neighbouring changes.
    """

    index: int
    before: float
    after: float

    @property
    def effect(self) -> float:
        """The change as a share: +0.05 is 5% more."""
        return self.after / self.before - 1


def change_points(values: Sequence[float]) -> list[ChangePoint]:
    """The changes of level in a history of positive values, the oldest first; none in
    fewer than LEAST_RUNS.

    The l2 cost of the logarithms, without spikes, over a noise scale that steps do not
    widen (the MAD of the differences, over √2), is segmented by PELT (Killick,
    Fearnhead and Eckley, JASA 107, 2012). Then the change with the least t between its
    neighbours, in the spread within all segments, is dropped until every t reaches the
    critical value.

    Raises:
        ValueError: if a value is not a positive finite number.
    """
    logs = np.asarray(values, dtype=float)
    if not (np.isfinite(logs).all() and (logs > 0).all()):
        raise ValueError("a history of times needs positive finite numbers")
    if len(logs) < LEAST_RUNS:
        return []
    logs = _without_spikes(np.log(logs))
    bounds = _candidates(logs)
    while len(bounds) > 2:
        t = _t_of_changes(logs, bounds)
        if t.min() >= _CRITICAL_T:
            break
        del bounds[1 + int(t.argmin())]
    levels = np.exp([part.mean() for part in _parts(logs, bounds)])
    return [
        ChangePoint(index, float(before), float(after))
        for index, before, after in zip(bounds[1:-1], levels, levels[1:])
    ]


def run_noise(logs: np.ndarray) -> float:
    """The standard deviation of one run, of the differences between neighbours; at
    least 1%.
    """
    return max(
        _SIGMA_OF_MAD * float(np.median(np.abs(np.diff(logs)))) / 2**0.5,
        _LEAST_SERIES_NOISE,
    )


def _without_spikes(logs: np.ndarray) -> np.ndarray:
    """A run that is far from the median of its neighbourhood becomes it; a step that
    lasts stays (Hampel's filter).
    """
    padded = np.pad(logs, _NEIGHBOURS, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * _NEIGHBOURS + 1)
    local = np.median(windows, axis=1)
    return np.where(np.abs(logs - local) > _SPIKE * run_noise(logs), local, logs)


def _candidates(logs: np.ndarray) -> list[int]:
    """0, where a segment may begin, and the length."""
    import ruptures

    scaled = (logs / run_noise(logs))[:, None]
    search = ruptures.KernelCPD(kernel="linear", min_size=LEAST_SEGMENT).fit(
        scaled
    )  # the l2 cost, PELT, in C
    return [0, *search.predict(pen=_CANDIDATE_PENALTY)]


def _parts(logs: np.ndarray, bounds: Sequence[int]) -> list[np.ndarray]:
    return [logs[start:end] for start, end in zip(bounds, bounds[1:])]


def _t_of_changes(logs: np.ndarray, bounds: Sequence[int]) -> np.ndarray:
    parts = _parts(logs, bounds)
    within = sum(((part - part.mean()) ** 2).sum() for part in parts) / (
        len(logs) - len(parts)
    )
    spread = max(within**0.5, _LEAST_SERIES_NOISE)
    return np.array(
        [
            abs(after.mean() - before.mean())
            / (spread * (1 / len(before) + 1 / len(after)) ** 0.5)
            for before, after in zip(parts, parts[1:])
        ]
    )
