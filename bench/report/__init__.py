"""How a stored run is shown: README.md, figures and a page beside it, a terminal, GitHub
and a CI's test results. Imports nothing that measures.

A report is a document (bench.report.document) of sections (bench.report.sections) in
one order (bench.report.of_run), laid out by bench.report.render.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from batchline.bench.report import figures, map_figure, of_run
from batchline.bench.report.document import Place
from batchline.bench.report.findings import TrainingFindings
from batchline.bench.report.of_run import RunReport, summary
from batchline.bench.report.render import github, html, junit, markdown
from batchline.bench.report.render import terminal as on_terminal
from batchline.bench.report.render.markdown import README as FILE_NAME
from batchline.bench.store import run_json
from batchline.bench.store.files import stored_below
from batchline.bench.store.records import Run
from batchline.bench.verdicts.across_runs import are_comparable

_MOST_LOOKED_AT = 12

__all__ = [
    "FILE_NAME",
    "RunReport",
    "before",
    "draw_training",
    "summary",
    "terminal",
    "training_on_terminal",
    "training_readme",
    "whole_readme",
    "write",
    "write_ci_summary",
]


def _call(what: str, action: Callable[[], object], otherwise=None):
    return action()


def write(report: RunReport, folder: Path, attempt: Callable = _call) -> list[str]:
    """Write README.md, the figures, index.html and junit.xml into `folder`; returns a
    line for each thing that could not be shown.

    Each part is made by `attempt(what it is, the function that makes it, what to go on
    with if it fails)`, which by default lets errors through.
    """
    drawn, missing = attempt(
        "drawing the plots",
        lambda: draw(report, folder),
        (set(), "drawing them failed"),
    )
    attempt(FILE_NAME, lambda: write_readme(report, folder, drawn, missing))
    no_page = html.why_no_page()
    if not no_page:
        attempt("the page", lambda: html.write(report, folder))
    attempt(junit.FILE_NAME, lambda: junit.write(report.run, folder))
    return [
        *([f"no plots: {missing}"] if missing else []),
        *([f"no page: {no_page}"] if no_page else []),
    ]


def draw(report: RunReport, folder: Path) -> tuple[set[str], str | None]:
    """Draw the figures into `folder`; returns their names without the ending, and None
    or why there can be none here.
    """
    if missing := figures.why_no_plots():
        return set(), missing
    names = figures.draw_problems(report.run, folder) | draw_map(report, folder)
    training = report.findings.training
    if training:
        names |= figures.draw_training(training, report.run.machine, folder)
    return names | draw_ranks(report, folder), None


def draw_ranks(report: RunReport, folder: Path) -> set[str]:
    """Draw the mean gradient over ranks into `folder`; returns its name without the
    ending, none where nothing is stored of it.
    """
    result = report.findings.scaling
    if not (result and result.medians_s):
        return set()
    figures.draw_ranks(result, result.times.machine, folder / figures.RANKS)
    return {figures.RANKS}


def draw_map(report: RunReport, folder: Path) -> set[str]:
    """Draw who wins where into `folder`; returns its name without the ending, none
    where nothing was timed.
    """
    winners = report.findings.winners
    if not winners.rows:
        return set()
    run = report.run
    partial = " (partial run)" if run.partial else ""
    title = (
        "Who wins at which batch size, and its speed-up over PyTorch's fastest: "
        f"{run.machine['device_name']}, {run.started[:10]}{partial}"
    )
    map_figure.draw_map(winners, title, folder / map_figure.NAME)
    return {map_figure.NAME}


def write_readme(
    report: RunReport, folder: Path, drawn: set[str], missing: str | None
) -> None:
    """Write README.md into `folder`, with the figures that were drawn, or with why
    there are none; of a large run also the files that it links to.
    """
    document = report.document(Place.README, missing)
    for name, text in markdown.files(document, drawn).items():
        (folder / name).write_text(text, encoding="utf-8")


def whole_readme(report: RunReport, why_no_figures: str) -> str:
    """README.md without figures, in one text however large it is."""
    return markdown.render(report.document(Place.README, why_no_figures))


def terminal(report: RunReport, in_colour: bool = False) -> str:
    """The map and the answer, then every table as plain text; * marks the fastest at a
    batch.
    """
    return on_terminal.render(report.document(Place.TERMINAL), in_colour=in_colour)


def write_ci_summary(report: RunReport) -> None:
    """Add the run to GitHub's summary of the step, where there is one."""
    github.step_summary(github.render(report.document(Place.CI)))


def draw_training(
    noise: Mapping, sweep: Mapping | None, machine: Mapping, folder: Path
) -> set[str]:
    """Draw the figures of a study; returns their names without the ending."""
    return figures.draw_training(TrainingFindings(noise, sweep), machine, folder)


def training_readme(
    noise: Mapping, sweep: Mapping | None, machine: Mapping, drawn: set[str]
) -> str:
    """The sections of a study in Markdown, headings from the second level on."""
    sections = of_run.sections_of_training(noise, sweep, machine, Place.README)
    return "\n\n".join(markdown.render_parts(sections, drawn))


def training_on_terminal(
    noise: Mapping, sweep: Mapping | None, machine: Mapping
) -> str:
    """The same in a few lines each."""
    sections = of_run.sections_of_training(noise, sweep, machine, Place.TERMINAL)
    return on_terminal.render_parts(sections)


def before(run: Run, folder: Path) -> Run | None:
    """The run before `run` among the folders beside its own, on the same machine in the
    same profile; None without one.

    A folder that holds no run, or a damaged one, is passed over.
    """
    own = Path(folder).resolve()
    beside = sorted(
        (path.parent for path in stored_below(own.parent, run_json.FILE_NAME)),
        reverse=True,
    )
    candidates = (
        other for other in beside[:_MOST_LOOKED_AT] if other != own
    )  # their names begin with their dates
    return next(
        (one for other in candidates if (one := _loaded_if_before(other, run))),
        None,
    )


def _loaded_if_before(folder: Path, run: Run) -> Run | None:
    try:
        one = run_json.load(folder)
        is_before = one.started < run.started
        same = one.plan.selection == run.plan.selection and are_comparable(one, run)
    except (
        Exception
    ):  # a neighbour may be damaged in any way, and this run is not the worse for it
        return None
    return one if is_before and same else None
