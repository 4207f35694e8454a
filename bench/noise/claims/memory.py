"""Claim 3: memory grows with the batch, and can run out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batchline.bench import units
from batchline.bench.noise.claims import effects
from batchline.bench.noise.claims.verdict import (
    HOLDS,
    NOT_DECIDED,
    Finding,
    Table,
    Verdict,
    conclude,
    decide,
)
from batchline.bench.verdicts import memory_law

CLAIM = "memory grows with the batch and can run out"
HYPOTHESIS = "The peak memory of a training step is m(B) = m0 + m1·B with m1 above 0, and meets the device's limit."
SOURCES = ("the law is least squares over this run's peaks",)
_MISSING = "no peak memory at three batch sizes (`batchline noise` measures it)"
_PAGES_BYTES = 8192  # a growth of less than this up to the largest batch is a rounding of the resident set


def judge(noise: Mapping | None) -> Verdict:
    """From the peaks of the workloads' steps and the device's limit."""
    findings, tables = [], []
    for name, workload in (noise or {}).get("workloads", {}).items():
        peaks = {
            step["batch"]: step["peak_bytes"]
            for step in workload.get("steps", [])
            if step.get("peak_bytes") is not None
        }
        law = memory_law.fit(list(peaks), list(peaks.values()))
        if law is None:
            findings.append(
                Finding(
                    f"memory grows with the batch ({name})", NOT_DECIDED, "", _MISSING
                )
            )
            continue
        tables.append(_table(name, law, peaks))
        findings.append(_finding(name, law, peaks, workload.get("limit_bytes")))
    if not findings:
        findings.append(
            Finding("memory grows with the batch", NOT_DECIDED, "", _MISSING)
        )
    return conclude(CLAIM, HYPOTHESIS, findings, tables, SOURCES)


def _finding(
    name: str,
    law: memory_law.Law,
    peaks: Mapping[int, float],
    limit_bytes: float | None,
) -> Finding:
    a_sample = effects.slope(list(peaks), list(peaks.values()))
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
        memory_law.Law(law.fixed, slope, law.misfit).largest_batch(limit_bytes)
        for slope in (a_sample.value, a_sample.high, a_sample.low)
    )
    return Finding(
        part,
        HOLDS,
        f"{effect}; {_bytes(limit_bytes)} are full at B = {wall:,} ({least:,} to {most:,}), by "
        f"the law: B = {max(peaks):,} is the largest measured",
    )


def _table(name: str, law: memory_law.Law, peaks: Mapping[int, float]) -> Table:
    rows: Sequence = [
        (f"{batch:,}", _bytes(peaks[batch]), _bytes(law.bytes_at(batch)))
        for batch in sorted(peaks)
    ]
    return Table(
        f"Peak memory of a step, {name}", ("batch", "measured", "the law"), tuple(rows)
    )


def _bytes(count: float) -> str:
    return units.size(count) if count >= 0 else f"-{units.size(-count)}"
