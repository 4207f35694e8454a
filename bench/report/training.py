"""What the batch size does to training, as a part of the report: noise, the advisor's
batch, the four claims.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from batchline.bench.noise import claims, stored_survey, time_to_target
from batchline.bench.report import (
    advisor,
    advisor_plot,
    claims as claims_report,
    noise as noise_report,
    noise_plot,
)
from batchline.bench.report.tables import MARKDOWN, Style

Figures = Mapping[str, str]


def draw(
    noise: Mapping, sweep: Mapping | None, machine: Mapping, folder: Path
) -> dict[str, str]:
    """Draw the part's figures; returns each one's file name without its ending, by what
    it shows.
    """
    found, workloads, on = (
        {},
        surveyed_workloads(noise),
        f"\non {machine['device_name']}",
    )
    if workloads and noise_plot.draw(workloads, on, folder / "noise") is None:
        found["noise"] = "noise"
    for name, workload in workloads.items():
        middle = stored_survey.middle(workload)
        title = f"{name}: a step, memory and the time to a loss, by the noise after {middle.updates} updates{on}"
        with contextlib.suppress(ValueError):  # the section says why there is no advice
            if (
                advisor_plot.draw_advice(
                    stored_survey.advice(workload, middle),
                    title,
                    folder / f"advice-{name}",
                )
                is None
            ):
                found[name] = f"advice-{name}"
    result = judged_sweep(noise, sweep)
    if not isinstance(result, str):
        title = (
            f"{result.workload}: time to a training loss of {result.target_loss:g}{on}"
        )
        if (
            advisor_plot.draw_comparison(result, title, folder / "time-to-target")
            is None
        ):
            found["time to target"] = "time-to-target"
    return found


def markdown(
    noise: Mapping, sweep: Mapping | None, machine: Mapping, figures: Figures
) -> Iterator[str]:
    """The paragraphs, headings from the second level on."""
    yield f"## Gradient noise\n\n{noise_report.EXPLAINED}"
    if "noise" in figures:
        yield _image("the gradient noise scale over training", figures["noise"])
    for name, workload in surveyed_workloads(noise).items():
        yield f"### The noise of {name}\n\n{noise_report.section(workload, MARKDOWN)}"
    for name, why in failed(noise).items():
        yield f"### The noise of {name}\n\nNot measured: {why}."
    yield "## What batch size?"
    for name, workload in surveyed_workloads(noise).items():
        yield f"### The batch size of {name}\n\n{_or_why_not(lambda: advice(workload, MARKDOWN))}"
        if name in figures:
            yield _image(
                f"step time, memory and time to a loss of {name} over the batch",
                figures[name],
            )
    yield "### Predicted and measured: the time to a loss"
    result = judged_sweep(noise, sweep)
    if isinstance(result, str):
        yield result
    else:
        yield f"{claims_report.provenance(sweep, machine)}\n\n{advisor.comparison(result, MARKDOWN)}"
    if "time to target" in figures:
        yield _image(
            "predicted and measured time to the target loss over the batch",
            figures["time to target"],
        )
    yield f"## The four claims\n\n{claims_report.section(claims.judge(sweep, noise), sweep, machine)}"


def terminal(noise: Mapping, sweep: Mapping | None, machine: Mapping) -> Iterator[str]:
    """The same in a few lines each."""
    for name, workload in surveyed_workloads(noise).items():
        middle = stored_survey.middle(workload)
        yield (
            f"{name}: {noise_report.summary(workload)}. For the noise after {middle.updates} updates: "
            + _or_why_not(
                lambda: advisor.summary(stored_survey.advice(workload, middle))
            )
        )
    for name, why in failed(noise).items():
        yield f"{name}: the noise was not measured: {why}"
    yield f"The four claims\n{claims_report.terminal(claims.judge(sweep, noise), sweep, machine)}"


def advice(
    workload: Mapping,
    style: Style,
    current_batch: int | None = None,
    cost_cap: float | None = None,
) -> str:
    """The advisor on one workload: what follows from the noise in the middle of
    training, and at its other points.

    Raises:
        ValueError: as bench.noise.advisor.advise.
    """
    middle = stored_survey.middle(workload)
    chosen = stored_survey.advice(workload, middle, current_batch, cost_cap)
    rows = [
        (moment, stored_survey.advice(workload, moment, current_batch, cost_cap))
        for moment in stored_survey.moments(workload)
    ]
    return "\n\n".join(
        [
            f"For the noise after {middle.updates} updates, the middle of what was looked at:",
            advisor.section(chosen, style),
            advisor.over_training(rows, style),
        ]
    )


def _or_why_not(advised: Callable[[], str]) -> str:
    try:
        return advised()
    except ValueError as error:
        return f"No advice: {error}."


def surveyed_workloads(noise: Mapping) -> dict[str, Mapping]:
    return {
        name: workload
        for name, workload in noise["workloads"].items()
        if "failed" not in workload
    }


def failed(noise: Mapping) -> dict[str, str]:
    return {
        name: workload["failed"]
        for name, workload in noise["workloads"].items()
        if "failed" in workload
    }


def judged_sweep(
    noise: Mapping, sweep: Mapping | None
) -> time_to_target.TimeToTarget | str:
    """The comparison by the sweep's own step times and the noise at each point of
    training, or why there is none.
    """
    if sweep is None:
        return (
            "There is no training sweep to compare with: `batchline claims` runs one."
        )
    workload = surveyed_workloads(noise).get(sweep["workload"])
    measured = stored_survey.moments(workload) if workload else []
    estimates = {
        f"after {moment.updates} updates": moment.estimate.to_json()
        for moment in measured
    }
    try:
        return time_to_target.compare(sweep, time_to_target.steps_of(sweep), estimates)
    except ValueError as error:
        return f"No comparison: {error}."


def _image(what: str, name: str) -> str:
    return f"![{what}]({name}.png)\n\n[as SVG]({name}.svg)"
