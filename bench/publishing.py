"""A run that is measured, made known: stored, reported, printed, added to the history,
told to the CI.

Each part is tried by itself. One that fails is a line on stderr; it costs no other part
and no measurement.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

from batchline.bench import report, texts
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.report import ci, junit, run_in_ci
from batchline.bench.store import benchmark_json
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
    from batchline.bench import history_file

    parts = Parts()
    parts.complete &= write_report(run, folder)
    parts.attempt(benchmark_json.FILE_NAME, lambda: benchmark_json.save(folder, run))
    parts.attempt("the history", lambda: history_file.append(run, history_folder))
    markdown, problems = parts.attempt(
        "the step's summary", lambda: run_in_ci.of_run(run), ("", [])
    )
    if markdown:
        parts.attempt("the step's summary", lambda: ci.step_summary(markdown))
    parts.attempt("the annotations", lambda: ci.announce("error", problems))
    return parts.complete


def write_report(run: Run, folder: Path, survived: _Errors = (Exception,)) -> bool:
    """Write the report's files into `folder` and print the report; whether all of it
    could be done.

    `survived`: as Parts takes it.
    """
    parts = Parts(survived)
    notes = report.write(run, folder, parts.attempt)
    parts.attempt(junit.FILE_NAME, lambda: _write_junit(run, folder))
    parts.attempt(
        "the report on the terminal",
        lambda: print(report.terminal(run, report.before(run, folder))),
    )
    print("\n".join([*notes, f"report: {folder / report.FILE_NAME}"]), flush=True)
    return parts.complete


def _write_junit(run: Run, folder: Path) -> None:
    (folder / junit.FILE_NAME).write_text(junit.junit_of_run(run), encoding="utf-8")
