"""`batchline explain`: one case of a stored run on one screen."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable
from pathlib import Path

from batchline.bench import records
from batchline.bench.errors import UsageError
from batchline.bench.records import NOT_REACHED, Run
from batchline.bench.report import explain as report
from batchline.bench.stored_files import blamed_on

RUNS = (
    Path("reports", "runs"),
    Path("reports", "evidence"),
)  # where it is looked for, in this order


def explain(case: str, run_folder: Path | None) -> str:
    """What the run has on the case; by default the newest run that has it.

    Raises:
        UsageError: for no case, or one that is in no stored run.
        ValueError: if `run_folder` is no run, or is damaged, or has no such case.
    """
    if not case:
        raise UsageError(
            "say which case: make explain CASE=bmm/torch_bmm/square_128/float32/B64"
        )
    if run_folder:
        return _screen(records.load(run_folder), case, run_folder)
    reached, ids = None, {}
    for folder in RUNS:
        for path in sorted(
            folder.glob(f"*/{records.FILE_NAME}"), reverse=True
        ):  # their names begin with their dates
            with contextlib.suppress(
                ValueError
            ):  # a damaged run is passed over: an older one may have the case
                if _has(run := records.load(path.parent), case, but=(NOT_REACHED,)):
                    return _screen(run, case, path.parent)
                if reached is None and _has(run, case):
                    reached = (
                        run,
                        path.parent,
                    )  # a run that was stopped before it: any other one says more
                ids |= dict.fromkeys(record.id for record in run.records)
    if reached:
        return _screen(reached[0], case, reached[1])
    raise UsageError(
        f"no stored run has the case {case!r}{_nearest(case, ids)}: `make bench K='…'` measures what "
        "`make list` shows"
    )


def _screen(run: Run, case: str, folder: Path) -> str:
    if not _has(run, case):
        near = _nearest(case, [record.id for record in run.records])
        raise UsageError(
            f"{folder} has no case {case!r}{near}: `make list` shows the ids of a profile, and "
            "`make bench` measures them"
        )
    with blamed_on(records.path_in(folder)):
        return report.screen(run, case, str(folder))


def _nearest(case: str, ids: Iterable[str]) -> str:
    """ ", but …": the id that is most like this one; nothing if none is."""
    return "".join(
        f", but {name}" for name in difflib.get_close_matches(case, ids, n=1)
    )


def _has(run: Run, case: str, but: tuple[str, ...] = ()) -> bool:
    """Whether the run has the case, with a status other than those."""
    return any(record.id == case and record.status not in but for record in run.records)
