"""How a stored run is shown: tables, plots, the README that holds them, and the page. Imports nothing that measures."""
from __future__ import annotations

from pathlib import Path

from bench.records import Run
from bench.report import page, readme
from bench.report.readme import FILE_NAME, markdown, summary, terminal

__all__ = ["FILE_NAME", "markdown", "summary", "terminal", "write"]


def write(run: Run, folder: Path, previous: Run | None = None) -> list[str]:
    """Write README.md, the plots and index.html into `folder`; returns a line for each thing that could not be shown.

    `previous` is the run before on the same machine in the same profile, for what is new since.
    """
    notes = readme.write(run, folder)
    if why := page.why_no_page():
        return [*notes, f"no page: {why}"]
    page.write(run, folder, previous)
    return notes
