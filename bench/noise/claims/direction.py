"""Claim 4: a smaller batch makes the direction of the gradient more consistent.

The law of the cosine says the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from batchline.bench.noise import surveyed
from batchline.bench.noise.claims import effects
from batchline.bench.noise.claims.effects import Effect
from batchline.bench.noise.claims.verdict import (
    NOT_DECIDED,
    Finding,
    Table,
    Verdict,
    conclude,
    decide,
)
from batchline.bench.noise.estimators import NO_SIGNAL, NoiseEstimate, expected_cosine

CLAIM = "a smaller batch makes the gradient's direction more consistent"
HYPOTHESIS = "The cosine between the gradients of two independent batches falls as the batch grows."
SOURCES = (
    "the expected cosine 1/(1 + B_simple/B) follows from the noise scale of McCandlish et al. 2018, "
    "arXiv:1812.06162",
)
_MARGIN = 0.001  # a cosine that changes by less than this a doubling does not change
_MISSING = "no cosines of independent batches at two batch sizes (`batchline noise` measures them)"


def judge(noise: Mapping | None) -> Verdict:
    """From the cosines of pairs of independent batches, at every measured point of each
    workload's training.
    """
    findings, tables = [], []
    for name, workload in (noise or {}).get("workloads", {}).items():
        by_updates = surveyed.by_updates(workload)
        last = max(by_updates, default=None)
        for updates, points in by_updates.items():
            title = f"{name}, after {updates:,} updates"
            cosines = {
                batch: found
                for batch, found in surveyed.cosines_of(points).items()
                if found
            }
            if len(cosines) < 2:
                findings.append(Finding(title, NOT_DECIDED, "", _MISSING))
                continue
            findings.append(replace(_finding(title, cosines), headline=updates == last))
            tables.append(
                _table(
                    title,
                    cosines,
                    surveyed.estimate_of(points) if points[0]["estimate"] else None,
                )
            )
    if not findings:
        findings.append(
            Finding("the cosine falls as the batch grows", NOT_DECIDED, "", _MISSING)
        )
    return conclude(CLAIM, HYPOTHESIS, findings, tables, SOURCES)


def _finding(title: str, cosines: Mapping[int, Sequence[float]]) -> Finding:
    pairs = [
        (math.log2(batch), cosine)
        for batch, values in cosines.items()
        for cosine in values
    ]
    slope = effects.slope(*map(list, zip(*pairs)))
    least, most = min(cosines), max(cosines)
    verdict = decide(slope, -1, _MARGIN)
    effect = (
        f"{title}: the mean cosine is {effects.mean(cosines[least]).words('{:.3f}')} at B = {least:,} and "
        f"{effects.mean(cosines[most]).words('{:.3f}')} at B = {most:,}, {slope.words('{:+.3f}')} a doubling"
    )
    return Finding(
        f"the cosine falls as the batch grows ({title})",
        verdict,
        effect,
        "too few pairs to tell a rise from a fall" if verdict == NOT_DECIDED else "",
    )


def _table(
    title: str, cosines: Mapping[int, Sequence[float]], estimate: NoiseEstimate | None
) -> Table:
    rows = []
    for batch, values in cosines.items():
        measured, predicted = effects.mean(values), _predicted(estimate, batch)
        rows.append(
            (
                f"{batch:,}",
                f"{len(values)}",
                measured.words("{:.3f}"),
                predicted.words("{:.3f}") if predicted else "none",
                _agree(measured, predicted),
            )
        )
    told = (
        f", B_simple = {estimate.words()}"
        if estimate
        else ", no noise scale was measured"
    )
    return Table(
        f"Cosine of two independent batches, {title}{told}",
        ("batch", "pairs", "mean cosine", "predicted", "intervals meet"),
        tuple(rows),
    )


def _predicted(estimate: NoiseEstimate | None, batch: int) -> Effect | None:
    """1/(1 + B_simple/B) over the interval of B_simple; None where ‖G‖² can't be told
    from 0.
    """
    if estimate is None or estimate.answer == NO_SIGNAL or estimate.scale.square <= 0:
        return None
    simple = estimate.simple
    return Effect(
        *(
            expected_cosine(scale, batch)
            for scale in (estimate.scale.simple, simple.high, simple.low)
        )
    )


def _agree(measured: Effect, predicted: Effect | None) -> str:
    if predicted is None:
        return ""
    meet = measured.low <= predicted.high and predicted.low <= measured.high
    return "yes" if meet else f"no, {measured.value - predicted.value:+.3f}"
