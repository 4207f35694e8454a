"""Reports and their parts as text, for tests that look for words in them."""

from batchline.bench.report import RunReport
from batchline.bench.report.document import Place, select
from batchline.bench.report.findings import Findings
from batchline.bench.report.render import html, markdown, terminal


def in_markdown(*parts):
    """The parts as README.md has them, without figures."""
    return "\n\n".join(markdown.render_parts(select(parts, Place.README)))


def on_terminal(*parts):
    """The parts as a terminal has them."""
    return terminal.render_parts(select(parts, Place.TERMINAL))


def readme(run, drawn=(), missing=None):
    """README.md of a run, in one text."""
    return markdown.render(RunReport(run).document(Place.README, missing), drawn)


def page_of(run, previous=None):
    """The page of a run."""
    report = RunReport(run, previous=previous)
    return html.render(run, report.document(Place.PAGE))


def section(make, run):
    """What a function of bench.report.sections makes of a run."""
    return make(run, Findings(run))
