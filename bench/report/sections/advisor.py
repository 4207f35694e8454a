"""The batch to train at, in two sentences, what it follows from, and its test by
training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.noise import advisor
from batchline.bench.noise.advice import CAVEAT, TRIED, Advice, Point, span
from batchline.bench.noise.advisor import Moment
from batchline.bench.noise.ranks import RankCount, Ranks
from batchline.bench.noise.schedule import schedule, why_none
from batchline.bench.noise.time_to_target import Prediction, Spread, TimeToTarget
from batchline.bench.report.document import (
    Cell,
    Marked,
    Part,
    Table,
    Text,
    spans,
    table,
)
from batchline.bench.report.findings import TrainingFindings
from batchline.bench.stats.noise_scale import BOUNDED, NO_SIGNAL


def advise_on(
    workload: Mapping, current_batch: int | None = None, cost_cap: float | None = None
) -> tuple[Part, ...]:
    """What follows from the noise of one workload, for a batch and a cost of the
    caller's own; for a training of the user's (bench.own_study) a schedule too, and what
    was assumed.

    Raises:
        ValueError: as bench.noise.advisor.advise.
    """
    advised = [
        (moment, advisor.advice(workload, moment, current_batch, cost_cap))
        for moment in advisor.moments(workload)
    ]
    notes = workload.get("notes")
    if notes is None:
        return tuple(parts(advised))
    largest = advised[len(advised) // 2][1].largest_that_fits
    return (*parts(advised), *growing(workload, largest), *map(Text, notes))


def parts(advised: Sequence[tuple[Moment, Advice]]) -> Iterator[Part]:
    """What follows from the noise in the middle of training, then at each of its
    points.
    """
    moment, advice = advised[len(advised) // 2]
    yield Text(
        f"For the noise after {moment.updates} updates, the middle of what was looked at:"
    )
    yield from at_moment(advice)
    yield Text(
        "The noise changes over training, and the batch that it asks for with it:"
    )
    yield over_training(advised)


def growing(workload: Mapping, largest: int | None) -> Iterator[Part]:
    """The batch that grows with the noise, and what that is predicted to save; why there
    is none.
    """
    if why := why_none(advisor.moments(workload)):
        yield Text(f"No schedule of batch sizes: {why}.")
        return
    result = schedule(workload, math.inf if largest is None else largest)
    if result is None:
        return
    yield Text(result.sentence)
    if not result.is_worth_it:
        return
    yield table(
        ["from loss", "noise scale", "batch", "updates", "examples", "time"],
        (
            [
                f"{one.loss:.3g}",
                f"{one.noise_scale:.3g}",
                f"{one.batch:,}",
                f"{one.updates:,.0f}",
                f"{one.examples:,.0f}",
                units.duration(one.time_s),
            ]
            for one in result.stretches
        ),
    )
    yield Text(
        "Nothing of this was trained. The noise scale of a stretch is the geometric mean of those at its ends; "
        "the learning rate must follow the batch (Merrill et al. 2025, arXiv:2505.23971, who grow the batch in "
        "doublings: with its square root, for Adam)."
    )


def ranks(result: Ranks) -> Iterator[Part]:
    """How many ranks are worth having, one row for each count that was looked at."""
    reduce = result.all_reduce
    yield Text(" ".join(result.sentences))
    yield table(
        [
            "ranks",
            "all-reduce",
            "batch of each",
            "batch",
            "an update",
            "speed",
            "of r ranks'",
        ],
        (
            [
                f"{one.ranks:,}",
                _reduce(one),
                f"{one.rank_batch:,}",
                f"{one.batch:,}",
                units.duration(one.step_s),
                units.ratio(one.speed),
                f"{one.efficiency:.0%}",
            ]
            for one in result.counts
        ),
    )
    shared = max(reduce.curves) > reduce.cores and reduce.backend == "gloo"
    cores = f", which share its {reduce.cores} cores" if shared else ""
    if reduce.why_busy:
        yield Text(
            f"The machine was busy while the all-reduce was timed ({reduce.why_busy}): it may be shorter."
        )
    yield Text(
        f"{_timed(result)} over {reduce.backend} "
        f"between processes of this machine{cores} ({'; '.join(reduce.laws)}). It is taken to begin when the "
        "backward pass has ended; each rank is taken for a device as fast as this one. The noise scale is "
        f"{result.noise_scale:.3g}. These are predictions of the model above: no rank was trained with."
    )


def _timed(result: Ranks) -> str:
    """Which all-reduces were timed: the gradient's, or smaller ones."""
    gradient, most = result.gradient_bytes, result.all_reduce.most_bytes
    if gradient <= most:
        return f"The all-reduce of the gradient's {units.size(gradient)} was timed"
    return (
        f"The gradient's {units.size(gradient)} were not sent, and the time of it is taken to grow as it did below: "
        f"`batchline all-reduce --parameters {gradient // 4}` would time it. All-reduces of up to {units.size(most)} "
        "were timed"
    )


def _reduce(one: RankCount) -> str:
    if one.ranks == 1:
        return "none"
    return units.duration(one.all_reduce_s) + (
        " (modelled)" if not one.is_timed else ""
    )


def at_moment(advice: Advice) -> Iterator[Part]:
    """The advice at one point of training, and what it follows from."""
    yield Text(" ".join(advice.sentences))
    yield curve(advice)
    yield Text(_law(advice))
    if advice.regret:
        yield Text(
            f"Time lost at batch {advice.best_batch:,} if the noise scale is not what "
            "was measured:"
        )
        yield regret(advice)
    yield Text(CAVEAT)


def summary(advice: Advice) -> str:
    """The two sentences of a terminal."""
    return " ".join(advice.sentences[:2])


def summary_or_why_not(findings: TrainingFindings, name: str) -> str:
    """The two sentences for the middle of a workload's training, or why there are
    none.
    """
    try:
        return summary(findings.middle_advice(name))
    except ValueError as error:
        return f"No advice: {error}."


def over_training(advised: Sequence[tuple[Moment, Advice]]) -> Table:
    """The best batch by the noise at each point of training: it follows the noise
    scale.
    """
    columns = [
        "updates",
        "loss",
        "noise scale",
        "best batch",
        "within 5%",
        "decided by",
    ]
    return table(columns, (_at_moment(*row) for row in advised))


def _at_moment(moment: Moment, advice: Advice) -> list[str]:
    best = "none"
    if advice.best_batch is not None:
        best = f"{advice.best_batch:,} ({span(advice.interval)})"
    within = advice.within_5_percent
    return [
        f"{moment.updates:,}",
        f"{moment.loss:.3g}",
        _noise(advice),
        best,
        "" if within is None else span(within),
        advice.decided_by,
    ]


def curve(advice: Advice) -> Table:
    """One row per batch: its step, memory, time to the loss and examples."""
    columns = [
        "batch",
        "step",
        "a sample",
        "peak memory",
        "time to a loss",
        "with φ at its ends",
        "examples",
    ]
    return table(columns, [_row(advice, point) for point in advice.curve])


def _row(advice: Advice, point: Point) -> list[Cell]:
    batch: Cell = f"{point.batch:,}"
    if point.batch == advice.best_batch:
        batch = Marked(batch)
    if point.batch == advice.current_batch:
        batch = (*spans(batch), " (current)")
    memory = "n/a" if point.peak_bytes is None else units.size(point.peak_bytes)
    band = (
        ""
        if point.time_band is None
        else " to ".join(units.ratio(value) for value in sorted(point.time_band))
    )
    return [
        batch,
        units.duration(point.step_s) + ("" if point.measured else " (not measured)"),
        units.duration(point.step_s / point.batch),
        f"{memory}: does not fit" if point.fits is False else memory,
        _ratio(point.time_relative),
        band,
        _ratio(point.examples_relative),
    ]


def regret(advice: Advice) -> Table:
    """What a wrong φ costs, one row per factor."""
    columns = [
        "φ is off by",
        "φ was believed too small",
        "φ was believed too large",
        "bound for a line",
    ]
    rows = (
        [
            f"{row.factor:g}x",
            f"{row.if_more:.1%}",
            f"{row.if_less:.1%}",
            f"{row.bound:.1%}",
        ]
        for row in advice.regret
    )
    return table(columns, rows)


def _law(advice: Advice) -> str:
    law = advice.law
    if advice.largest_that_fits is None:
        memory = f"Memory sets no limit: {advice.memory}."
    elif advice.memory == TRIED:
        memory = (
            f"The largest batch that fits is {advice.largest_that_fits:,}: {TRIED}."
        )
    else:
        memory = (
            f"The largest batch that fits is {advice.largest_that_fits:,}, with {advice.headroom:.0%} of "
            f"{units.size(advice.limit_bytes)} kept free."
        )
    return (
        f"A step takes {units.duration(law.alpha_s)} + {units.duration(law.beta_s)}·B (a robust fit; its worst "
        f"batch is off by {law.worst_residual:+.1%}). Between measured batches the measured times are used, the "
        f"line beyond them only. The noise scale is {_noise(advice)}. {memory}"
    )


def _noise(advice: Advice) -> str:
    low, high = advice.noise_interval
    if advice.noise_answer == BOUNDED:
        return f"{advice.noise_scale:.3g} ({low:.3g} to {high:.3g})"
    if advice.noise_answer == NO_SIGNAL:
        return f"not known ({NO_SIGNAL})"
    return f"at least {low:.3g} ({advice.noise_answer})"


def comparison(result: TimeToTarget) -> Iterator[Part]:
    """Measured and predicted time to the target: the worst disagreement, then one row
    per batch.
    """
    edge = (
        " A rate marked (edge) is the least or the largest tried: a better one may lie outside."
        if any(batch.on_edge for batch in result.measured)
        else ""
    )
    yield Text(" ".join(result.sentences))
    yield Text(
        f"Training {result.workload} to a training loss of {result.target_loss:g}: the median over seeds at the "
        f"batch's best rate, with the least and the most (which hold it with {result.confidence:.0%} confidence). "
        f"Predicted are updates = S_min·(1 + φ/B) with {' and with '.join(map(_source, result.predictions))}; "
        f"S_min is fitted to the batches at which every seed got there.{edge}"
    )
    yield _by_batch(result)
    yield Text(CAVEAT)


def _by_batch(result: TimeToTarget) -> Table:
    columns = [
        "batch",
        "learning rate",
        "seeds",
        "updates",
        "examples",
        "time",
        *(
            f"{what}, {_short(prediction)}"
            for prediction in result.predictions
            for what in ("updates", "time")
        ),
    ]
    rows = []
    for place, batch in enumerate(result.measured):
        rate = (
            "none reached it"
            if batch.learning_rate is None
            else f"{batch.learning_rate:g}"
        )
        predicted = [prediction.batches[place] for prediction in result.predictions]
        rows.append(
            [
                f"{batch.batch:,}",
                rate + (" (edge)" if batch.on_edge else ""),
                f"{batch.reached}/{batch.seeds}",
                _spread(batch.updates, lambda value: f"{value:,.0f}"),
                _spread(batch.examples, lambda value: f"{value:,.0f}"),
                _spread(batch.time_s, units.duration),
                *(
                    cell
                    for one in predicted
                    for cell in (f"{one.updates:,.0f}", units.duration(one.time_s))
                ),
            ]
        )
    return table(columns, rows)


def _short(prediction: Prediction) -> str:
    """ "φ measured after 50 updates", "φ fitted"."""
    measured = prediction.source.removeprefix("the noise scale ")
    return f"φ {measured}" if measured != prediction.source else "φ fitted"


def _source(prediction: Prediction) -> str:
    if prediction.noise_scale is None:
        return f"{prediction.source} (unbounded, at least {prediction.interval[0]:.3g})"
    if prediction.interval is None:
        return f"{prediction.source} ({prediction.noise_scale:.3g})"
    low, high = prediction.interval
    return (
        f"{prediction.source} ({prediction.noise_scale:.3g}, {low:.3g} to {high:.3g})"
    )


def _spread(spread: Spread, format_value: Callable[[float], str]) -> str:
    if spread.median is None:
        return "not reached"
    low = "" if spread.low is None else format_value(spread.low)
    high = "not reached" if spread.high is None else format_value(spread.high)
    return f"{format_value(spread.median)} ({low} to {high})"


def _ratio(value: float | None) -> str:
    return "" if value is None else units.ratio(value)
