"""Claim 2's seeds that fail: those that diverge, or never reach the target loss within
the budget of the sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from batchline.bench.noise.claims import curves, effects
from batchline.bench.noise.claims.verdict import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_DECIDED,
    Finding,
    Table,
)

_LEVEL = 0.05


def _largest_batchs_rate(sweep: Mapping) -> float | None:
    """The best rate of the largest batch, which small ones may not bear."""
    return curves.best_rate(
        sweep, curves.batches(sweep)[-1], sweep["grid"]["target_loss"]
    )


def judge(sweep: Mapping) -> tuple[list[Finding], Table]:
    """Counted at one usual rate for all, at the largest batch's best rate for all, and
    at each batch's own best.
    """
    sizes, target = curves.batches(sweep), sweep["grid"]["target_loss"]
    usual, large = sweep["usual_rate"], _largest_batchs_rate(sweep)
    readings = {f"rate {usual:.3g} for all": dict.fromkeys(sizes, usual)}
    if large is not None:
        readings[f"rate {large:.3g} for all, the largest batch's best"] = dict.fromkeys(
            sizes, large
        )
    readings["tuned rates"] = {
        batch: curves.best_rate(sweep, batch, target) for batch in sizes
    }
    counted = {
        name: {
            batch: [
                _failed(run, target) for run in curves.runs(sweep, batch, rates[batch])
            ]
            for batch in sizes
        }
        for name, rates in readings.items()
    }
    rows = tuple(
        (f"{batch:,}", *(_words(by_batch[batch]) for by_batch in counted.values()))
        for batch in sizes
    )
    table = Table(
        f"Seeds that fail: diverge (d) or never reach a training loss of {target:g}",
        ("batch", *counted),
        rows,
    )
    return [
        replace(_finding(name, by_batch), headline="largest" in name)
        for name, by_batch in counted.items()
    ], table


def _failed(run: Mapping, target: float) -> str:
    """ "diverged", "never there", or "" where the run reached the target."""
    if run["diverged"]:
        return "diverged"
    return "" if curves.first_reach(run, target) else "never there"


def _finding(name: str, by_batch: Mapping[int, Sequence[str]]) -> Finding:
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
    small, large = sizes[:half], sizes[-half:]
    counts = [
        [sum(map(bool, by_batch[batch])) for batch in group] for group in (small, large)
    ]
    runs = [sum(len(by_batch[batch]) for batch in group) for group in (small, large)]
    (few, many), (few_runs, many_runs) = map(sum, counts), runs
    p = effects.fisher_exact(few, few_runs, many, many_runs)
    effect = (
        f"{name}: {_share(few, few_runs)} of the runs fail at B ≤ {small[-1]:,}, {_share(many, many_runs)} at "
        f"B ≥ {large[0]:,}"
    )
    if not few and not many or p < _LEVEL and few > many:
        return Finding(part, DOES_NOT_HOLD, effect)
    if p < _LEVEL:
        return Finding(part, HOLDS, effect)
    return Finding(
        part,
        NOT_DECIDED,
        effect,
        f"{name}: the counts differ no more than chance would have it",
    )


def _share(count: int, of: int) -> str:
    return effects.share(count, of).words("{:.0%}")


def _words(outcomes: Sequence[str]) -> str:
    if not outcomes:
        return "none trained"
    diverged = sum(outcome == "diverged" for outcome in outcomes)
    return f"{sum(map(bool, outcomes))} of {len(outcomes)}" + (
        f" ({diverged} d)" if diverged else ""
    )
