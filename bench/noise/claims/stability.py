"""Claim 2: small batches are stable and avoid local optima, and large ones overfit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from batchline.bench.noise.claims import curves, effects, failures
from batchline.bench.noise.claims.verdict import (
    NOT_DECIDED,
    Finding,
    Table,
    Verdict,
    conclude,
    decide,
)

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
        batch: curves.runs(sweep, batch, curves.best_rate(sweep, batch, target))
        for batch in curves.batches(sweep)
    }
    parts = [
        _jitter(sweep, tuned),
        failures.judge(sweep),
        _accuracy(sweep),
        _sharpness(sweep, tuned),
    ]
    findings = [finding for found, _ in parts for finding in found]
    return conclude(CLAIM, HYPOTHESIS, findings, [table for _, table in parts], SOURCES)


def _at_target(key: str, target: float) -> Callable[[Mapping], float | None]:
    def read(run: Mapping) -> float | None:
        reach = curves.first_reach(run, target)
        return curves.value_at(run, reach[0], key) if reach else None

    return read


def _jitter(sweep: Mapping, tuned: Mapping[int, list]) -> tuple[list[Finding], Table]:
    """The loss' standard deviation between steps where each batch, at its best rate,
    reaches the target.

    The batch that takes all samples draws none: it is shown, and stays out of the
    slope.
    """
    target = sweep["grid"]["target_loss"]
    found = {
        batch: curves.by_seed(runs, _at_target("step_loss_std", target))
        for batch, runs in tuned.items()
    }
    rows = [
        (f"{batch:,}", effects.geometric_mean(list(values.values())).words())
        for batch, values in found.items()
        if values
    ]
    drawn = {
        math.log2(batch): {seed: math.log2(value) for seed, value in values.items()}
        for batch, values in found.items()
        if batch < sweep["samples"]
    }
    slope = effects.slope_by_seed(drawn)
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
        f"the loss' standard deviation between steps goes as B to the power {slope.words('{:.2f}')} "
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
    sizes, target = curves.batches(sweep), sweep["grid"]["target_loss"]
    one_rate = sweep["usual_rate"]
    readings: dict[str, dict[int, dict[int, float]]] = {}
    trained_to: dict[str, str] = {}
    for place, budget in enumerate(("equal updates", "equal epochs")):
        allowed = {batch: curves.budget_updates(sweep, batch)[place] for batch in sizes}
        rates = {
            f"one rate ({one_rate:.3g})": dict.fromkeys(sizes, one_rate),
            "tuned rates": {
                batch: curves.best_rate_for_budget(sweep, batch, allowed[batch])
                for batch in sizes
            },
        }
        for name, rate in rates.items():
            accuracy, loss = (
                {
                    batch: curves.by_seed(
                        curves.runs(sweep, batch, rate[batch]),
                        lambda run, batch=batch, key=key: curves.value_at(
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
        batch: curves.by_seed(
            curves.runs(sweep, batch, curves.best_rate(sweep, batch, target)),
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
        f"{effects.mean(list(losses[batch].values())).value:.2g} at B = {batch:,}"
        for batch in (min(losses), max(losses))
    )
    return f", the training loss then {' and '.join(ends)}"


def _accuracy_finding(
    name: str, reading: Mapping[int, Mapping[int, float]], trained_to: str
) -> Finding:
    part = f"a smaller batch tests better ({name})"
    slope = effects.slope_by_seed(
        {math.log2(batch): values for batch, values in reading.items()}
    )
    if slope is None:
        return Finding(part, NOT_DECIDED, "", f"{name}: no accuracy at two batch sizes")
    points = slope.scaled(100)
    verdict = decide(points, -1, _POINTS)
    effect = f"{name}: {points.words('{:+.2f}')} points of accuracy a doubling of the batch{trained_to}"
    return Finding(
        part,
        verdict,
        effect,
        _WIDE if verdict == NOT_DECIDED else "",
        headline="equal" in name and "tuned" in name,
    )


def _percent(values: Mapping[int, float]) -> str:
    return (
        effects.mean([100 * value for value in values.values()]).words("{:.1f}")
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
    found = {
        batch: curves.by_seed(runs, lambda run: run["sharpness_at_target"])
        for batch, runs in tuned.items()
    }
    ends = {
        batch: curves.by_seed(runs, lambda run: run["sharpness"])
        for batch, runs in tuned.items()
    }
    rows = tuple(
        (
            f"{batch:,}",
            _sharp(found[batch]),
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
    slope = effects.slope_by_seed(
        {
            math.log2(batch): {
                seed: math.log2(value) for seed, value in values.items() if value > 0
            }
            for batch, values in found.items()
        }
    )
    if slope is None:
        return [
            Finding(
                part, NOT_DECIDED, "", "sharpness was not measured at two batch sizes"
            )
        ], table
    verdict = decide(slope, 1, math.log2(1 + _LEVEL))
    doubling = effects.Effect(
        *(2**value for value in (slope.value, slope.low, slope.high))
    )
    effect = f"the largest Hessian eigenvalue is {doubling.words(unit='x')} a doubling of the batch"
    return [
        Finding(part, verdict, effect, _WIDE if verdict == NOT_DECIDED else "")
    ], table


def _sharp(values: Mapping[int, float]) -> str:
    return effects.mean(list(values.values())).words() if values else "none"
