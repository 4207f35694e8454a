"""The claims that times and the survey of the workloads decide.

Claim 1: larger batches finish an epoch sooner, and smaller ones need more iterations.
Claim 3: memory grows with the batch, and can run out. Claim 4: a smaller batch makes
the direction of the gradient more consistent; the law of the cosine says the opposite.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from batchline.bench import units
from batchline.bench.noise import advisor
from batchline.bench.noise.claims.verdict import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_DECIDED,
    ONLY_WHERE,
    Finding,
    Table,
    Verdict,
    conclude,
    decide,
)
from batchline.bench.stats import fits, intervals
from batchline.bench.stats.intervals import Estimate
from batchline.bench.stats.noise_scale import NO_SIGNAL, NoiseEstimate, expected_cosine

CLAIM = "larger batches finish an epoch sooner; smaller ones need more iterations"
HYPOTHESIS = (
    "The time of an epoch falls with each doubling of the batch, and so does the number of updates to a "
    "target training loss, each batch at its best learning rate."
)
SOURCES = (
    "McCandlish et al. 2018, arXiv:1812.06162 (updates and examples to a target)",
    "Shallue et al. 2019, arXiv:1811.03600 (perfect scaling, then diminishing returns)",
)
_PAYS = 1.05  # a doubling that buys less than this factor buys nothing that matters
MEMORY_CLAIM = "memory grows with the batch and can run out"
MEMORY_HYPOTHESIS = (
    "The peak memory of a training step is m(B) = m0 + m1·B with m1 above 0, and meets "
    "the device's limit."
)
MEMORY_SOURCES = ("the law is least squares over this run's peaks",)
_NO_PEAKS = "no peak memory at three batch sizes (`batchline noise` measures it)"
_PAGES_BYTES = 8192  # a growth of less than this up to the largest batch is a rounding of the resident set
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


def judge(sweep: Mapping | None, noise: Mapping | None) -> Verdict:
    """From the step times of the workloads (without any, of the sweep's own training)
    and the sweep.
    """
    timed = _step_times(sweep, noise)
    findings = []
    tables = []
    for title, steps in timed.items():
        finding, table = _epoch(title, steps)
        findings.append(finding)
        tables.append(table)
    if not timed:
        findings.append(
            Finding(
                "an epoch is sooner done at a larger batch",
                NOT_DECIDED,
                "",
                "no step times at two batch sizes (`batchline noise` measures them)",
            )
        )
    if sweep is None:
        findings.append(
            Finding(
                "a larger batch needs fewer updates",
                NOT_DECIDED,
                "",
                "no training sweep (`batchline claims` runs one)",
            )
        )
    else:
        finding, table = _updates(sweep)
        findings.append(finding)
        tables.append(table)
    return conclude(CLAIM, HYPOTHESIS, findings, tables, SOURCES)


def _step_times(
    sweep: Mapping | None, noise: Mapping | None
) -> dict[str, dict[int, Sequence[float]]]:
    """{title: {batch: seconds of a step, repeated}} of what has at least two batch
    sizes.
    """
    titled = {}
    for name, workload in (noise or {}).get("workloads", {}).items():
        titled[name] = {
            step["batch"]: step.get("samples_s") for step in workload.get("steps", [])
        }
    if not titled and sweep is not None and not sweep.get("why_busy"):
        titled[f"{sweep['workload']}, as trained in the sweep"] = {
            batch: [
                run["curve"]["train_s"][-1] / run["curve"]["updates"][-1]
                for run in sweep["runs"]
                if run["batch"] == batch
                and run["curve"]["updates"]
                and run["curve"]["updates"][-1]
            ]
            for batch in fits.batches(sweep)
        }
    timed = {
        title: {batch: steps[batch] for batch in sorted(steps) if steps[batch]}
        for title, steps in titled.items()
    }
    return {title: steps for title, steps in timed.items() if len(steps) > 1}


def _epoch(title: str, steps: Mapping[int, Sequence[float]]) -> tuple[Finding, Table]:
    a_sample = {
        batch: [seconds / batch for seconds in samples]
        for batch, samples in steps.items()
    }
    sizes = list(a_sample)
    pairs = [
        (
            small,
            large,
            intervals.median_ratio(a_sample[small], a_sample[large]).inverse(),
        )
        for small, large in pairwise(sizes)
    ]
    whole = intervals.median_ratio(a_sample[sizes[0]], a_sample[sizes[-1]]).inverse()
    gains = {large: gain for _, large, gain in pairs}
    rows = tuple(
        (
            f"{batch:,}",
            *(
                units.duration(statistics.median(times[batch]))
                for times in (steps, a_sample)
            ),
            gains[batch].text(unit="x") if batch in gains else "",
        )
        for batch in sizes
    )
    verdict, where = _down_to(pairs)
    effect = f"{title}: an epoch at B = {sizes[-1]:,} is {whole.text(unit='x')} as fast as at B = {sizes[0]:,}"
    return (
        Finding(
            f"an epoch is sooner done at a larger batch ({title})",
            verdict,
            effect,
            where,
        ),
        Table(
            f"Time of a step, {title}",
            ("batch", "step", "a sample", "gain over the batch above"),
            rows,
        ),
    )


def _updates(sweep: Mapping) -> tuple[Finding, Table]:
    target = sweep["grid"]["target_loss"]
    reached = {}
    rows = []
    for batch in fits.batches(sweep):
        rate = fits.best_rate(sweep, batch, target)
        runs = fits.runs(sweep, batch, rate)
        reaches = {
            run["seed"]: reach
            for run in runs
            if (reach := fits.first_reach(run, target))
        }
        if not reaches:
            rows.append((f"{batch:,}", "none", "0", "never", "", ""))
            continue
        reached[batch] = {seed: updates for seed, (updates, _) in reaches.items()}
        edge = " (on the grid's edge)" if fits.on_edge(sweep, batch, rate) else ""
        updates = intervals.geometric_mean(list(reached[batch].values()))
        rows.append(
            (
                f"{batch:,}",
                f"{rate:.3g}{edge}",
                f"{len(reaches)} of {len(runs)}",
                updates.text("{:,.0f}"),
                updates.scaled(batch).text("{:,.0f}"),
                units.duration(
                    statistics.median(seconds for _, seconds in reaches.values())
                ),
            )
        )
    return _updates_finding(reached, target), Table(
        f"To a training loss of {target:g}, each batch at its best rate",
        (
            "batch",
            "learning rate",
            "seeds there",
            "updates",
            "examples",
            "training time",
        ),
        tuple(rows),
    )


def _updates_finding(
    reached: Mapping[int, Mapping[int, float]], target: float
) -> Finding:
    """From the updates to the target by batch and seed."""
    part = f"a larger batch needs fewer updates to a training loss of {target:g}"
    pairs = [
        (small, large, intervals.paired_ratio(reached[small], reached[large]).inverse())
        for small, large in pairwise(reached)
        if set(reached[small]) & set(reached[large])
    ]
    if not pairs:
        return Finding(
            part,
            NOT_DECIDED,
            "",
            "no two batch sizes reached the target with the same seeds",
        )
    least = min(reached)
    most = max(reached)
    whole = intervals.paired_ratio(reached[least], reached[most])
    effect = (
        ""
        if whole is None
        else (
            f"from B = {least:,} to {most:,} the updates to a loss of {target:g} fall by "
            f"{whole.inverse().text(unit='x')} "
            f"and the examples rise by {whole.scaled(most / least).text(unit='x')}"
        )
    )
    verdict, where = _down_to(pairs)
    return Finding(part, verdict, effect, where)


def _down_to(pairs: Sequence[tuple[int, int, Estimate]]) -> tuple[str, str]:
    """The verdict on "each larger batch gains", and up to which batch it does.

    A pair gains where the factor is at least 1.05 a doubling and its interval lies
    above 1; it is flat where all of the interval is below 1.05 a doubling; else its
    interval is too wide to say.
    """
    least = [_PAYS ** math.log2(large / small) for small, large, _ in pairs]
    gains = [
        gain.low > 1 and gain.value >= enough
        for (_, _, gain), enough in zip(pairs, least)
    ]
    unclear = [
        not pays and gain.high >= enough
        for (_, _, gain), enough, pays in zip(pairs, least, gains)
    ]
    too_wide = (
        f"the interval is too wide from B = {_spans(pairs, unclear)}"
        if any(unclear)
        else ""
    )
    if all(gains):
        return HOLDS, ""
    if not any(gains):
        return (NOT_DECIDED, too_wide) if too_wide else (DOES_NOT_HOLD, "")
    first_not = gains.index(False)
    where = (
        f"B from {_spans(pairs, gains)}"
        if any(gains[first_not:])
        else f"B ≤ {pairs[first_not][0]:,}"
    )
    return ONLY_WHERE, f"{where} ({too_wide})" if too_wide else where


def _spans(pairs: Sequence[tuple[int, int, Estimate]], chosen: Sequence[bool]) -> str:
    """ "4 to 32, 128 to 256": the chosen pairs, those that follow on each other as one."""
    spans: list[list[int]] = []
    for (small, large, _), is_chosen in zip(pairs, chosen):
        if is_chosen and spans and spans[-1][1] == small:
            spans[-1][1] = large
        elif is_chosen:
            spans.append([small, large])
    return ", ".join(f"{start:,} to {end:,}" for start, end in spans)


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


def judge_direction(noise: Mapping | None) -> Verdict:
    """From the cosines of pairs of independent batches, at every measured point of each
    workload's training.
    """
    findings = []
    tables = []
    for name, workload in (noise or {}).get("workloads", {}).items():
        by_updates = advisor.by_updates(workload)
        last = max(by_updates, default=None)
        for updates, points in by_updates.items():
            title = f"{name}, after {updates:,} updates"
            cosines = {
                batch: values
                for batch, values in advisor.cosines_of(points).items()
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
                    (advisor.estimate_of(points) if points[0]["estimate"] else None),
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
