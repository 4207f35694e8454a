"""The two claims that the survey of the workloads decides.

Claim 3: memory grows with the batch, and can run out. Claim 4: a smaller batch makes
the direction of the gradient more consistent; the law of the cosine says the opposite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from batchline.bench import units
from batchline.bench.noise import stored_survey
from batchline.bench.noise.claims.verdict import (
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
from batchline.bench.stats.noise_scale import NO_SIGNAL, NoiseEstimate, expected_cosine

MEMORY_CLAIM = "memory grows with the batch and can run out"
MEMORY_HYPOTHESIS = (
    "The peak memory of a training step is m(B) = m0 + m1·B with m1 above 0, and meets "
    "the device's limit."
)
MEMORY_SOURCES = ("the law is least squares over this run's peaks",)
_NO_PEAKS = "no peak memory at three batch sizes (`batchline noise` measures it)"
_PAGES_BYTES = 8192  # a growth of less than this up to the largest batch is a rounding of the resident set


def judge_memory(noise: Mapping | None) -> Verdict:
    """From the peaks of the workloads' steps and the device's limit."""
    findings = []
    tables = []
    for name, workload in (noise or {}).get("workloads", {}).items():
        peaks = {
            step["batch"]: step["peak_bytes"]
            for step in workload.get("steps", [])
            if step.get("peak_bytes") is not None
        }
        law = fits.fit_memory(list(peaks), list(peaks.values()))
        if law is None:
            findings.append(
                Finding(
                    f"memory grows with the batch ({name})", NOT_DECIDED, "", _NO_PEAKS
                )
            )
            continue
        tables.append(_memory_table(name, law, peaks))
        findings.append(_memory_finding(name, law, peaks, workload.get("limit_bytes")))
    if not findings:
        findings.append(
            Finding("memory grows with the batch", NOT_DECIDED, "", _NO_PEAKS)
        )
    return conclude(MEMORY_CLAIM, MEMORY_HYPOTHESIS, findings, tables, MEMORY_SOURCES)


def _memory_finding(
    name: str,
    law: fits.MemoryLaw,
    peaks: Mapping[int, float],
    limit_bytes: float | None,
) -> Finding:
    a_sample = intervals.slope(list(peaks), list(peaks.values()))
    verdict = decide(a_sample, 1, _PAGES_BYTES / max(peaks))
    effect = (
        f"{name}: {_bytes(law.fixed)} + {_bytes(a_sample.value)} a sample ({_bytes(a_sample.low)} to "
        f"{_bytes(a_sample.high)}; the worst batch is {law.misfit:.1%} off the line)"
    )
    if verdict != HOLDS:
        return Finding(
            f"memory grows with the batch ({name})",
            verdict,
            effect,
            (
                "the interval of the bytes a sample holds 0"
                if verdict == NOT_DECIDED
                else ""
            ),
        )
    part = f"memory grows with the batch and runs out ({name})"
    if limit_bytes is None:
        return Finding(
            part,
            NOT_DECIDED,
            effect,
            "memory grows, and the device's limit is not known",
        )
    wall, least, most = (
        fits.MemoryLaw(law.fixed, slope, law.misfit).largest_batch(limit_bytes)
        for slope in (a_sample.value, a_sample.high, a_sample.low)
    )
    return Finding(
        part,
        HOLDS,
        f"{effect}; {_bytes(limit_bytes)} are full at B = {wall:,} ({least:,} to {most:,}), by "
        f"the law: B = {max(peaks):,} is the largest measured",
    )


def _memory_table(name: str, law: fits.MemoryLaw, peaks: Mapping[int, float]) -> Table:
    rows: Sequence = [
        (f"{batch:,}", _bytes(peaks[batch]), _bytes(law.bytes_at(batch)))
        for batch in sorted(peaks)
    ]
    return Table(
        f"Peak memory of a step, {name}", ("batch", "measured", "the law"), tuple(rows)
    )


def _bytes(count: float) -> str:
    return units.size(count) if count >= 0 else f"-{units.size(-count)}"


DIRECTION_CLAIM = "a smaller batch makes the gradient's direction more consistent"
DIRECTION_HYPOTHESIS = "The cosine between the gradients of two independent batches falls as the batch grows."
DIRECTION_SOURCES = (
    "the expected cosine 1/(1 + B_simple/B) follows from the noise scale of McCandlish et al. 2018, "
    "arXiv:1812.06162",
)
_COSINE_MARGIN = (
    0.001  # a cosine that changes by less than this a doubling does not change
)
_NO_COSINES = "no cosines of independent batches at two batch sizes (`batchline noise` measures them)"


def judge_direction(noise: Mapping | None) -> Verdict:
    """From the cosines of pairs of independent batches, at every measured point of each
    workload's training.
    """
    findings = []
    tables = []
    for name, workload in (noise or {}).get("workloads", {}).items():
        by_updates = stored_survey.by_updates(workload)
        last = max(by_updates, default=None)
        for updates, points in by_updates.items():
            title = f"{name}, after {updates:,} updates"
            cosines = {
                batch: values
                for batch, values in stored_survey.cosines_of(points).items()
                if values
            }
            if len(cosines) < 2:
                findings.append(Finding(title, NOT_DECIDED, "", _NO_COSINES))
                continue
            findings.append(
                replace(_direction_finding(title, cosines), headline=updates == last)
            )
            tables.append(
                _cosine_table(
                    title,
                    cosines,
                    (
                        stored_survey.estimate_of(points)
                        if points[0]["estimate"]
                        else None
                    ),
                )
            )
    if not findings:
        findings.append(
            Finding("the cosine falls as the batch grows", NOT_DECIDED, "", _NO_COSINES)
        )
    return conclude(
        DIRECTION_CLAIM, DIRECTION_HYPOTHESIS, findings, tables, DIRECTION_SOURCES
    )


def _direction_finding(title: str, cosines: Mapping[int, Sequence[float]]) -> Finding:
    pairs = [
        (math.log2(batch), cosine)
        for batch, values in cosines.items()
        for cosine in values
    ]
    slope = intervals.slope(*map(list, zip(*pairs)))
    least = min(cosines)
    most = max(cosines)
    verdict = decide(slope, -1, _COSINE_MARGIN)
    effect = (
        f"{title}: the mean cosine is {intervals.mean(cosines[least]).text('{:.3f}')} at B = {least:,} and "
        f"{intervals.mean(cosines[most]).text('{:.3f}')} at B = {most:,}, {slope.text('{:+.3f}')} a doubling"
    )
    return Finding(
        f"the cosine falls as the batch grows ({title})",
        verdict,
        effect,
        "too few pairs to tell a rise from a fall" if verdict == NOT_DECIDED else "",
    )


def _cosine_table(
    title: str, cosines: Mapping[int, Sequence[float]], estimate: NoiseEstimate | None
) -> Table:
    rows = []
    for batch, values in cosines.items():
        measured = intervals.mean(values)
        predicted = _predicted(estimate, batch)
        rows.append(
            (
                f"{batch:,}",
                f"{len(values)}",
                measured.text("{:.3f}"),
                predicted.text("{:.3f}") if predicted else "none",
                _agree(measured, predicted),
            )
        )
    told = (
        f", B_simple = {estimate.text()}"
        if estimate
        else ", no noise scale was measured"
    )
    return Table(
        f"Cosine of two independent batches, {title}{told}",
        ("batch", "pairs", "mean cosine", "predicted", "intervals meet"),
        tuple(rows),
    )


def _predicted(estimate: NoiseEstimate | None, batch: int) -> Estimate | None:
    """1/(1 + B_simple/B) over the interval of B_simple; None where ‖G‖² can't be told
    from 0.
    """
    if estimate is None or estimate.answer == NO_SIGNAL or estimate.scale.square <= 0:
        return None
    simple = estimate.simple
    return Estimate.of(
        *(
            expected_cosine(scale, batch)
            for scale in (estimate.scale.simple, simple.high, simple.low)
        )
    )


def _agree(measured: Estimate, predicted: Estimate | None) -> str:
    if predicted is None:
        return ""
    if measured.interval.meets(predicted.interval):
        return "yes"
    return f"no, {measured.value - predicted.value:+.3f}"
