"""How a stored run is shown: tables, plots, the README that holds them, and the page. Imports nothing that measures."""
from __future__ import annotations

import contextlib
from pathlib import Path

from bench import records
from bench.records import Run
from bench.report import page, readme
from bench.report.answer import is_comparable
from bench.report.readme import FILE_NAME, markdown, summary
from bench.report.terminal import terminal

_MOST_LOOKED_AT = 12

__all__ = ["FILE_NAME", "before", "markdown", "summary", "terminal", "write"]


def write(run: Run, folder: Path) -> list[str]:
    """Write README.md, the plots and index.html into `folder`; returns a line for each thing that could not be shown.

    What is new is said against the run before it in the folder beside it.
    """
    notes = readme.write(run, folder)
    if why := page.why_no_page():
        return [*notes, f"no page: {why}"]
    page.write(run, folder, before(run, folder))
    return notes


def before(run: Run, folder: Path) -> Run | None:
    """The run before `run` among the folders beside its own, on the same machine in the same profile; None without one.

    A folder that holds no run, or a damaged one, is passed over.
    """
    own = Path(folder).resolve()
    beside = sorted((path.parent for path in own.parent.glob(f"*/{records.FILE_NAME}")), reverse=True)
    for other in beside[:_MOST_LOOKED_AT]:  # their names begin with their dates
        with contextlib.suppress(ValueError):
            if other != own and _is_before(found := records.load(other), run):
                return found
    return None


def _is_before(one: Run, run: Run) -> bool:
    return (one.about["started"] < run.about["started"] and one.about.get("selection") == run.about.get("selection")
            and is_comparable(one, run))
