"""The advisor's result, and the sentences that say it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from batchline.bench import units
from batchline.bench.stats.noise_scale import NO_SIGNAL, NO_UPPER_BOUND

NOISE = "noise"
MEMORY = "memory"
COST = "cost"
STEP_TIME = "step time"
NOTHING = "nothing"
TRIED = "a larger one was tried and did not fit"
CAVEAT = (
    "These are predictions of a model: an update is worth 1/(1 + φ/B) of one without noise, at a learning rate "
    "tuned for its batch (McCandlish et al. 2018, arXiv:1812.06162). φ grows during training and is no sure "
    "proxy for the critical batch size (Merrill et al. 2025, arXiv:2505.23971); under warmup-stable-decay "
    "schedules another law holds (arXiv:2601.05034). Train at two batch sizes before you trust it."
)


@dataclass(frozen=True)
class StepLaw:
    """t(B) = alpha_s + beta_s·B; `worst_residual` is the median that misses it most, as
    a share of its time.
    """

    alpha_s: float
    beta_s: float
    worst_residual: float


@dataclass(frozen=True)
class Accumulation:
    """An update from `count` micro-batches, in `step_s`; `time_relative` is its T over
    that of the best batch alone.
    """

    micro_batch: int
    count: int
    step_s: float
    time_relative: float


@dataclass(frozen=True)
class Regret:
    """Extra time as a share of the least, where the true φ is `factor` times more, or
    less, than was believed.

    `bound` is (2 + √r + 1/√r)/4 − 1, which no t = α + βB exceeds while nothing else
    limits the batch.
    """

    factor: float
    if_more: float
    if_less: float
    bound: float


@dataclass(frozen=True)
class Point:
    """One batch: its step time (interpolated or the law's where not `measured`), and
    what the model makes of it.

    `time_relative` is T over that of the best batch, and `time_band` the same with φ at
    either end of its interval. `examples_relative` is E = 1 + B/φ, with φ's low end
    where φ is unbounded: then E is at most that. None of the three is known where there
    is no signal. `peak_bytes` and `fits` are None where memory is not known.
    """

    batch: int
    step_s: float
    measured: bool
    time_relative: float | None
    time_band: tuple[float, float] | None
    examples_relative: float | None
    peak_bytes: float | None
    fits: bool | None


@dataclass(frozen=True)
class Advice:
    """The batch to train at, and all that it follows from.

    `best_batch` is None where nothing decides. `interval` is its 95% interval and
    `within_5_percent` the batches around it whose T is at most 1.05 times its, None
    where φ is unbounded; a high end of None has no end. `unlimited_batch` is the
    fastest without memory and cost. `largest_that_fits` is None where memory sets no
    limit, and `memory` then says why; it is TRIED where no law but a trial has set it.
    """

    best_batch: int | None
    decided_by: str
    interval: tuple[int, int | None] | None
    within_5_percent: tuple[int, int | None] | None
    unlimited_batch: int | None
    largest_that_fits: int | None
    memory: str
    accumulation: Accumulation | None
    noise_answer: str
    noise_scale: float | None
    noise_interval: tuple[float, float | None]
    law: StepLaw
    regret: tuple[Regret, ...]
    curve: tuple[Point, ...]
    largest_measured: int
    current_batch: int | None
    cost_cap: float | None
    limit_bytes: float | None
    headroom: float

    def at(self, batch: int | None) -> Point | None:
        return next((point for point in self.curve if point.batch == batch), None)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Two to five sentences: the batch, what decided it, and what it means for the
        current one.
        """
        sentences = (
            self._best(),
            self._reason(),
            self._current(),
            self._accumulate(),
            self._extrapolated(),
        )
        return tuple(sentence for sentence in sentences if sentence)

    def __str__(self) -> str:
        return " ".join((*self.sentences, CAVEAT))

    def to_json(self) -> dict:
        return asdict(self) | {"words": list(self.sentences), "caveat": CAVEAT}

    def _best(self) -> str:
        if self.noise_answer == NO_SIGNAL:
            return (
                "No batch size can be advised: the gradient's signal is not distinguishable from zero. Measure "
                "later in training, or over more batches."
            )
        if self.best_batch is None:
            return "No batch size can be advised: the time to a loss falls as far as the batch grows."
        best = (
            f"Train at batch {self.best_batch:,} (95% interval {span(self.interval)})"
        )
        if self.noise_answer == NO_UPPER_BOUND:
            return f"{best}."
        return f"{best}: any batch from {span(self.within_5_percent)} is within 5% of its time."

    def _reason(self) -> str:
        if self.noise_answer == NO_SIGNAL:
            return ""
        if self.decided_by == NOISE:
            return f"The gradient noise decides, with a noise scale of {_digits(self.noise_scale)}."
        unbounded = self.noise_answer == NO_UPPER_BOUND
        least = _digits(self.noise_interval[0])
        why = (
            f"The noise scale cannot be bounded above (it is at least {least})"
            if unbounded
            else ("A step takes no longer with a larger batch")
        )
        if self.decided_by == NOTHING:
            return f"{why}, and neither memory ({self.memory}) nor a cost cap limits the batch."
        if not unbounded:
            why = f"The noise alone would have {f'{self.unlimited_batch:,}' if self.unlimited_batch else 'ever more'}"
        risk = f"; if it is {least}, that takes {units.ratio(self.at(self.best_batch).time_band[0])} the least time"
        what = {
            MEMORY: f"memory decides: {self.largest_that_fits} is the largest batch that fits",
            COST: f"cost decides: a larger batch may take over {self.cost_cap}x the least examples",
            STEP_TIME: "the step time decides: a sample takes the least of it there",
        }[self.decided_by]
        return (
            f"{why}, {'so' if unbounded else 'but'} {what}{risk if unbounded else ''}."
        )

    def _current(self) -> str:
        now = self.at(self.current_batch)
        best = self.at(self.best_batch)
        if now is None or best is None:
            return ""
        if now.fits is False:
            return f"The current {now.batch:,} does not fit."
        if now.batch == best.batch:
            return "It is the current one."
        cost = now.examples_relative / best.examples_relative
        return (
            f"A {'smaller' if best.batch < now.batch else 'larger'} batch than the current {now.batch:,}, which "
            f"takes {units.ratio(now.time_relative)} its time and {units.ratio(cost)} its examples."
        )

    def _accumulate(self) -> str:
        if self.accumulation is None:
            return (
                "Accumulating gradients past it would not save time: it repeats all of a step but the optimiser's "
                "part."
                if self.decided_by == MEMORY
                else ""
            )
        saved = 1 - self.accumulation.time_relative
        return (
            f"Accumulating {self.accumulation.count} micro-batches of {self.accumulation.micro_batch:,} saves "
            f"another {saved:.1%}."
        )

    def _extrapolated(self) -> str:
        if self.best_batch is None or self.best_batch <= self.largest_measured:
            return ""
        return f"It is beyond the largest batch measured ({self.largest_measured:,}): its step time is extrapolated."


def span(ends: tuple[int, int | None]) -> str:
    return f"{ends[0]:,} " + (f"to {ends[1]:,}" if ends[1] is not None else "upwards")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"
