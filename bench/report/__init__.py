"""How a stored run is shown: tables, plots, the README that holds them, and the page.
Imports nothing that measures.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from batchline.bench.store import run_json
from batchline.bench.store.files import stored_below
from batchline.bench.store.records import Run
from batchline.bench.report import page, readme
from batchline.bench.report.answer import is_comparable
from batchline.bench.report.readme import FILE_NAME, markdown, summary
from batchline.bench.report.terminal import terminal

_MOST_LOOKED_AT = 12

__all__ = ["FILE_NAME", "before", "markdown", "summary", "terminal", "write"]


def _call(what: str, action: Callable[[], object], otherwise=None):
    return action()


def write(run: Run, folder: Path, attempt: Callable = _call) -> list[str]:
    """Write README.md, the plots and index.html into `folder`; returns a line for each
    thing that could not be shown.

    What is new is said against the run before it in the folder beside it. Each part is
    made by `attempt(what it is, the function that makes it, what to go on with if it
    fails)`, which by default lets errors through.
    """
    figures, missing = attempt(
        "drawing the plots",
        lambda: readme.draw(run, folder),
        ({}, "drawing them failed"),
    )
    attempt(FILE_NAME, lambda: readme.write(run, folder, figures, missing))
    no_page = page.why_no_page()
    if not no_page:
        attempt("the page", lambda: page.write(run, folder, before(run, folder)))
    return [
        *([f"no plots: {missing}"] if missing else []),
        *([f"no page: {no_page}"] if no_page else []),
    ]


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
        (found for other in candidates if (found := _loaded_if_before(other, run))),
        None,
    )


def _loaded_if_before(folder: Path, run: Run) -> Run | None:
    try:
        one = run_json.load(folder)
        is_before = one.about["started"] < run.about["started"]
        same = one.about.get("selection") == run.about.get(
            "selection"
        ) and is_comparable(one, run)
    except (
        Exception
    ):  # a neighbour may be damaged in any way, and this run is not the worse for it
        return None
    return one if is_before and same else None
