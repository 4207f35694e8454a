"""A run that is measured, made known: stored, reported, printed, added to the history,
told to the CI.

Each part is tried by itself. One that fails is a line on stderr; it costs no other part
and no measurement.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from batchline.bench import console, report, texts
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.noise.rank_scaling import scaling_in
from batchline.bench.report import RunReport, of_run
from batchline.bench.report.findings import Findings
from batchline.bench.report.render import github
from batchline.bench.store import run_json
from batchline.bench.store.records import Run

_Errors = tuple[type[Exception], ...]


class Parts:
    """Parts that are tried one after another; `complete` as long as each has come to
    its end.

    `survived`: the errors of one part that cost no other; another kind passes through.
    """

    def __init__(self, survived: _Errors = (Exception,)):
        self.complete = True
        self._survived = survived

    def attempt(self, what: str, action: Callable[[], object], otherwise=None):
        """What `action` returns, or `otherwise`, and a line on stderr that says why
        `what` failed.
        """
        try:
            return action()
        except UsageError as error:
            complain(texts.clean_line(error))
        except (
            self._survived
        ) as error:  # what was measured is stored, and the other parts can be had
            last = traceback.extract_tb(error.__traceback__)[-1]
            complain(
                f"{what} failed: {texts.error_line(error)} (at {Path(last.filename).name}:{last.lineno})"
            )
        self.complete = False
        return otherwise


def publish(run: Run, folder: Path, history_folder: Path) -> bool:
    """Report the run, add it to the history, tell the CI; whether all of it could be
    done.
    """
    from batchline.bench.store import history

    parts = Parts()
    made = _report_of(run, folder, parts)
    _write_report(made, folder, parts)
    parts.attempt(
        run_json.BENCHMARK_FILE_NAME,
        lambda: run_json.save_benchmark_json(folder, run),
    )
    parts.attempt("the history", lambda: history.append(run, history_folder))
    parts.attempt("the step's summary", lambda: report.write_ci_summary(made))
    parts.attempt(
        "the annotations",
        lambda: github.announce("error", list(of_run.problems(run))),
    )
    return parts.complete


def write_report(run: Run, folder: Path, survived: _Errors = (Exception,)) -> bool:
    """Write the report's files into `folder` and print the report; whether all of it
    could be done.

    `survived`: as Parts takes it.
    """
    parts = Parts(survived)
    _write_report(_report_of(run, folder, parts), folder, parts)
    return parts.complete


def write_files(run: Run, folder: Path, survived: _Errors = (Exception,)) -> bool:
    """The same without printing it."""
    parts = Parts(survived)
    made = _report_of(run, folder, parts)
    _say_where(report.write(made, folder, parts.attempt), folder)
    return parts.complete


def _report_of(run: Run, folder: Path, parts: Parts) -> RunReport:
    """The report of a run, and of what is stored of ranks beside it.

    Raises:
        UsageError: if that can't be read.
    """
    findings = Findings(run, scaling=scaling_in(folder))
    previous = parts.attempt("the run before", lambda: report.before(run, folder))
    return RunReport(run, findings, previous)


def _write_report(made: RunReport, folder: Path, parts: Parts) -> None:
    notes = report.write(made, folder, parts.attempt)
    in_colour = console.takes_colour(sys.stdout)
    parts.attempt(
        "the report on the terminal", lambda: print(report.terminal(made, in_colour))
    )
    _say_where(notes, folder)


def _say_where(notes: Sequence[str], folder: Path) -> None:
    print("\n".join([*notes, f"report: {folder / report.FILE_NAME}"]), flush=True)
