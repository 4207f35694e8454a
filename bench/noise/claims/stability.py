"""Claim 2: small batches are stable and avoid local optima, and large ones overfit.

A seed fails where it diverges, or never reaches the target loss within the budget of
the sweep.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from batchline.bench.noise.claims.verdict import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_DECIDED,
    Finding,
    Table,
    Verdict,
    conclude,
    decide,
)
from batchline.bench.stats import fits, intervals
from batchline.bench.stats.intervals import Estimate

CLAIM = "small batches train more stably and avoid local optima; large ones may overfit"
HYPOTHESIS = (
    "At a smaller batch the loss varies less between steps, fewer seeds fail, the held-out accuracy is "
    "higher and the minimum is flatter."
)
SOURCES = (
    "Keskar et al. 2016, arXiv:1609.04836, support it: large batches end in sharper minima and test worse",
    "Shallue et al. 2019, arXiv:1811.03600, find no evidence for it once rate and budget are tuned a batch",
    "the literature disagrees; this adds one small workload with one held-out set, read at both budgets, at one "
    "rate for all and at tuned rates, with intervals over seeds",
)
_LEVEL = 0.05  # a factor of 1.05 a doubling of the batch is no difference that matters
_POINTS = 0.1  # nor are 0.1 points of accuracy a doubling
_WIDE = "its interval over the seeds is too wide (more seeds are needed)"


def judge(sweep: Mapping | None) -> Verdict:
    """From the training sweep: jitter of the loss, seeds that fail, held-out accuracy,
    sharpness.
    """
    if sweep is None:
        missing = Finding(
            "a smaller batch trains more stably",
            NOT_DECIDED,
            "",
            "no training sweep (`batchline claims` runs one)",
        )
        return conclude(CLAIM, HYPOTHESIS, [missing], [], SOURCES)
    target = sweep["grid"]["target_loss"]
    tuned = {
        batch: fits.runs(sweep, batch, fits.best_rate(sweep, batch, target))
        for batch in fits.batches(sweep)
    }
    parts = [
        _jitter(sweep, tuned),
        _failures(sweep),
        _accuracy(sweep),
        _sharpness(sweep, tuned),
    ]
    findings = [finding for of_part, _ in parts for finding in of_part]
    return conclude(CLAIM, HYPOTHESIS, findings, [table for _, table in parts], SOURCES)


def _at_target(key: str, target: float) -> Callable[[Mapping], float | None]:
    def read(run: Mapping) -> float | None:
        reach = fits.first_reach(run, target)
        return fits.value_at(run, reach[0], key) if reach else None

    return read


def _jitter(sweep: Mapping, tuned: Mapping[int, list]) -> tuple[list[Finding], Table]:
    """The loss' standard deviation between steps where each batch, at its best rate,
    reaches the target.

    The batch that takes all samples draws none: it is shown, and stays out of the
    slope.
    """
    target = sweep["grid"]["target_loss"]
    jitters = {
        batch: fits.by_seed(runs, _at_target("step_loss_std", target))
        for batch, runs in tuned.items()
    }
    rows = [
        (f"{batch:,}", intervals.geometric_mean(list(values.values())).text())
        for batch, values in jitters.items()
        if values
    ]
    drawn = {
        math.log2(batch): {seed: math.log2(value) for seed, value in values.items()}
        for batch, values in jitters.items()
        if batch < sweep["samples"]
    }
    slope = intervals.slope_by_seed(drawn)
    table = Table(
        f"Standard deviation of the loss between steps, at a training loss of {target:g}",
        ("batch", "standard deviation"),
        tuple(rows),
    )
    part = "the loss varies less between steps at a smaller batch"
    if slope is None:
        return [
            Finding(part, NOT_DECIDED, "", "the jitter was not seen at two batch sizes")
        ], table
    verdict = decide(slope, 1, math.log2(1 + _LEVEL))
    effect = (
        f"the loss' standard deviation between steps goes as B to the power {slope.text('{:.2f}')} "
        "(independent samples: -0.5)"
    )
    return [
        Finding(part, verdict, effect, _WIDE if verdict == NOT_DECIDED else "")
    ], table


def _accuracy(sweep: Mapping) -> tuple[list[Finding], Table]:
    """Held-out accuracy at equal updates and equal epochs, at one rate and tuned, and
    at equal training loss.

    A rate is tuned on the training loss at that budget, never on what is held out.
    """
    sizes = fits.batches(sweep)
    target = sweep["grid"]["target_loss"]
    one_rate = sweep["usual_rate"]
    readings: dict[str, dict[int, dict[int, float]]] = {}
    trained_to: dict[str, str] = {}
    for place, budget in enumerate(("equal updates", "equal epochs")):
        allowed = {batch: fits.budget_updates(sweep, batch)[place] for batch in sizes}
        rates = {
            f"one rate ({one_rate:.3g})": dict.fromkeys(sizes, one_rate),
            "tuned rates": {
                batch: fits.best_rate_for_budget(sweep, batch, allowed[batch])
                for batch in sizes
            },
        }
        for name, rate in rates.items():
            accuracy, loss = (
                {
                    batch: fits.by_seed(
                        fits.runs(sweep, batch, rate[batch]),
                        lambda run, batch=batch, key=key: fits.value_at(
                            run, allowed[batch], key
                        ),
                    )
                    for batch in sizes
                }
                for key in ("test_accuracy", "train_loss")
            )
            readings[f"{budget}, {name}"] = accuracy
            trained_to[f"{budget}, {name}"] = _trained_to(
                {batch: values for batch, values in loss.items() if values}
            )
    readings[f"at a training loss of {target:g}, tuned rates"] = {
        batch: fits.by_seed(
            fits.runs(sweep, batch, fits.best_rate(sweep, batch, target)),
            _at_target("test_accuracy", target),
        )
        for batch in sizes
    }
    rows = tuple(
        (f"{batch:,}", *(_percent(reading[batch]) for reading in readings.values()))
        for batch in sizes
    )
    table = Table(
        "Held-out accuracy in %, mean and interval over seeds",
        ("batch", *readings),
        rows,
    )
    return [
        _accuracy_finding(name, reading, trained_to.get(name, ""))
        for name, reading in readings.items()
    ], table


def _trained_to(losses: Mapping[int, Mapping[int, float]]) -> str:
    """What the budget trained to: a large batch that tests worse because it is less
    trained does not overfit.
    """
    if not losses:
        return ""
    ends = (
        f"{intervals.mean(list(losses[batch].values())).value:.2g} at B = {batch:,}"
        for batch in (min(losses), max(losses))
    )
    return f", the training loss then {' and '.join(ends)}"


def _accuracy_finding(
    name: str, reading: Mapping[int, Mapping[int, float]], trained_to: str
) -> Finding:
    part = f"a smaller batch tests better ({name})"
    slope = intervals.slope_by_seed(
        {math.log2(batch): values for batch, values in reading.items()}
    )
    if slope is None:
        return Finding(part, NOT_DECIDED, "", f"{name}: no accuracy at two batch sizes")
    points = slope.scaled(100)
    verdict = decide(points, -1, _POINTS)
    effect = f"{name}: {points.text('{:+.2f}')} points of accuracy a doubling of the batch{trained_to}"
    return Finding(
        part,
        verdict,
        effect,
        _WIDE if verdict == NOT_DECIDED else "",
        headline="equal" in name and "tuned" in name,
    )


def _percent(values: Mapping[int, float]) -> str:
    return (
        intervals.mean([100 * value for value in values.values()]).text("{:.1f}")
        if values
        else "none"
    )


def _sharpness(
    sweep: Mapping, tuned: Mapping[int, list]
) -> tuple[list[Finding], Table]:
    """At equal training loss: the curvature of a cross-entropy falls with the loss, so
    ends can't be compared.
    """
    target = sweep["grid"]["target_loss"]
    at_target = {
        batch: fits.by_seed(runs, lambda run: run["sharpness_at_target"])
        for batch, runs in tuned.items()
    }
    ends = {
        batch: fits.by_seed(runs, lambda run: run["sharpness"])
        for batch, runs in tuned.items()
    }
    rows = tuple(
        (
            f"{batch:,}",
            _sharp(at_target[batch]),
            f"{2 / runs[0]['learning_rate']:.3g}",
            _sharp(ends[batch]),
        )
        for batch, runs in tuned.items()
        if runs
    )
    table = Table(
        "Sharpness at each batch's best rate",
        ("batch", f"at a training loss of {target:g}", "2/learning rate", "at the end"),
        rows,
    )
    part = f"a smaller batch is at a flatter place, at a training loss of {target:g}"
    slope = intervals.slope_by_seed(
        {
            math.log2(batch): {
                seed: math.log2(value) for seed, value in values.items() if value > 0
            }
            for batch, values in at_target.items()
        }
    )
    if slope is None:
        return [
            Finding(
                part, NOT_DECIDED, "", "sharpness was not measured at two batch sizes"
            )
        ], table
    verdict = decide(slope, 1, math.log2(1 + _LEVEL))
    doubling = Estimate.of(
        *(2**value for value in (slope.value, slope.low, slope.high))
    )
    effect = f"the largest Hessian eigenvalue is {doubling.text(unit='x')} a doubling of the batch"
    return [
        Finding(part, verdict, effect, _WIDE if verdict == NOT_DECIDED else "")
    ], table


def _sharp(values: Mapping[int, float]) -> str:
    return intervals.mean(list(values.values())).text() if values else "none"


_FISHER_LEVEL = 0.05


def _largest_batchs_rate(sweep: Mapping) -> float | None:
    """The best rate of the largest batch, at which small ones may diverge."""
    return fits.best_rate(sweep, fits.batches(sweep)[-1], sweep["grid"]["target_loss"])


def _failures(sweep: Mapping) -> tuple[list[Finding], Table]:
    """Counted at one usual rate for all, at the largest batch's best rate for all, and
    at each batch's own best.
    """
    sizes = fits.batches(sweep)
    target = sweep["grid"]["target_loss"]
    usual = sweep["usual_rate"]
    large = _largest_batchs_rate(sweep)
    readings = {f"rate {usual:.3g} for all": dict.fromkeys(sizes, usual)}
    if large is not None:
        readings[f"rate {large:.3g} for all, the largest batch's best"] = dict.fromkeys(
            sizes, large
        )
    readings["tuned rates"] = {
        batch: fits.best_rate(sweep, batch, target) for batch in sizes
    }
    counted = {
        name: {
            batch: [
                _how_it_failed(run, target)
                for run in fits.runs(sweep, batch, rates[batch])
            ]
            for batch in sizes
        }
        for name, rates in readings.items()
    }
    rows = tuple(
        (
            f"{batch:,}",
            *(_count_failures(by_batch[batch]) for by_batch in counted.values()),
        )
        for batch in sizes
    )
    table = Table(
        f"Seeds that fail: diverge (d) or never reach a training loss of {target:g}",
        ("batch", *counted),
        rows,
    )
    return [
        replace(_failures_finding(name, by_batch), headline="largest" in name)
        for name, by_batch in counted.items()
    ], table


def _how_it_failed(run: Mapping, target: float) -> str:
    """ "diverged", "never there", or "" where the run reached the target."""
    if run["diverged"]:
        return "diverged"
    return "" if fits.first_reach(run, target) else "never there"


def _failures_finding(name: str, by_batch: Mapping[int, Sequence[str]]) -> Finding:
    """The smaller half of the batch sizes against the larger, a middle one left out, by
    Fisher's exact test.
    """
    part = f"fewer seeds fail at a smaller batch ({name})"
    sizes = [batch for batch, outcomes in by_batch.items() if outcomes]
    half = len(sizes) // 2
    if not half:
        return Finding(
            part, NOT_DECIDED, "", f"{name}: fewer than two batch sizes were trained"
        )
    small = sizes[:half]
    large = sizes[-half:]
    counts = [
        [sum(map(bool, by_batch[batch])) for batch in group] for group in (small, large)
    ]
    runs = [sum(len(by_batch[batch]) for batch in group) for group in (small, large)]
    few, many = map(sum, counts)
    few_runs, many_runs = runs
    p = intervals.fisher_exact(few, few_runs, many, many_runs)
    effect = (
        f"{name}: {_share(few, few_runs)} of the runs fail at B ≤ {small[-1]:,}, {_share(many, many_runs)} at "
        f"B ≥ {large[0]:,}"
    )
    if not few and not many or p < _FISHER_LEVEL and few > many:
        return Finding(part, DOES_NOT_HOLD, effect)
    if p < _FISHER_LEVEL:
        return Finding(part, HOLDS, effect)
    return Finding(
        part,
        NOT_DECIDED,
        effect,
        f"{name}: the counts differ no more than chance would have it",
    )


def _share(count: int, of: int) -> str:
    return intervals.share(count, of).text("{:.0%}")


def _count_failures(outcomes: Sequence[str]) -> str:
    if not outcomes:
        return "none trained"
    diverged = sum(outcome == "diverged" for outcome in outcomes)
    return f"{sum(map(bool, outcomes))} of {len(outcomes)}" + (
        f" ({diverged} d)" if diverged else ""
    )
