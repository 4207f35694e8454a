"""Claim 1: larger batches finish an epoch sooner, and smaller ones need more
iterations.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise

from batchline.bench import units
from batchline.bench.noise.claims.verdict import (
    DOES_NOT_HOLD,
    HOLDS,
    NOT_DECIDED,
    ONLY_WHERE,
    Finding,
    Table,
    Verdict,
    conclude,
)
from batchline.bench.stats import intervals, training_curves
from batchline.bench.stats.intervals import Estimate

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
            for batch in training_curves.batches(sweep)
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
    for batch in training_curves.batches(sweep):
        rate = training_curves.best_rate(sweep, batch, target)
        runs = training_curves.runs(sweep, batch, rate)
        reaches = {
            run["seed"]: reach
            for run in runs
            if (reach := training_curves.first_reach(run, target))
        }
        if not reaches:
            rows.append((f"{batch:,}", "none", "0", "never", "", ""))
            continue
        reached[batch] = {seed: updates for seed, (updates, _) in reaches.items()}
        edge = (
            " (on the grid's edge)"
            if training_curves.on_edge(sweep, batch, rate)
            else ""
        )
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
