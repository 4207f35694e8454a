"""`batchline history`: every run on a machine: what changed, when, at which revision."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import getpass
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench import folders
from batchline.bench.folders import HISTORY
from batchline.bench.git import git
from batchline.bench.store import history
from batchline.bench.texts import clean_line, did_you_mean

if TYPE_CHECKING:
    from batchline.bench.store.accepted import AcceptedStep

HELP = "every run on a machine: what changed, when, at which revision"
SAMPLE = """
amd-epyc, quick: 41 runs, 1 of 816 cases changed: bmm/torch_bmm/square_128/float32/B64
  -12.1% at 190033fcc (2026-11-20), improvement
plots and CSV: reports/history/amd-epyc
"""
EXITS = {
    ExitCode.CLEAN: "what was asked for is above",
    ExitCode.USAGE: "no such machine, no case matches, there is no step to accept, or a "
    "file can't be read or written",
    ExitCode.NOT_MEASURED: "there is no run to show",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "machine",
        nargs="?",
        help="which machine's, as its file is called (default: all there are)",
    )
    _arguments.add_selection(parser)
    _arguments.add_into(
        parser, "where the plots and CSVs are written (default: beside the history)"
    )
    _arguments.add_history(parser, "where it is kept")
    steps = parser.add_mutually_exclusive_group()
    steps.add_argument(
        "--accept",
        metavar="CASE",
        help="mark the newest step of this case as meant: its series begins after it "
        "from now on; needs --why",
    )
    parser.add_argument("--why", metavar="TEXT", help="why the step was meant")
    steps.add_argument(
        "--accepted",
        action="store_true",
        help="list the accepted steps: who accepted each, when and why",
    )


def run(options: argparse.Namespace) -> int:
    folder = options.history or folders.history()
    if options.accept is not None:
        if options.k or options.into:
            raise UsageError("--accept is of one case: leave out -k and --into")
        return accept(options.accept, options.why, options.machine, folder)
    if options.why is not None:
        raise UsageError("--why says why a step is accepted: name its case by --accept")
    if options.accepted:
        return print_accepted(options.machine, folder)
    return print_histories(options.machine, options.k, options.into, folder)


def accept(
    case: str, why: str | None, device: str | None = None, folder: Path = HISTORY
) -> int:
    """Mark the newest step of a case as meant, in each series of it that has one.

    Args:
        case: the case's id.
        why: what is stored as the reason.
        device: only in this history; by default in all in `folder`.

    Raises:
        UsageError: if there is no reason, no such case or no step, or a file can't be
        read or written: nothing is accepted then.
    """
    from batchline.bench.report import over_time
    from batchline.bench.store import accepted

    why = clean_line(why or "")
    if not why:
        raise UsageError('say why the step was meant: --why "…"')
    paths = _chosen(device, folder)
    if not paths:
        return ExitCode.NOT_MEASURED
    steps_of = {path: _newest_steps(path, case, why) for path in paths}
    if not any(steps_of.values()):
        _require_case(case, steps_of)
        raise UsageError(
            f"{case} has no step to accept: `batchline history` names the changes"
        )
    for path, steps in steps_of.items():
        if steps:
            accepted.add(path, steps)
            print(over_time.accepted_lines(path.stem, steps))
    return ExitCode.CLEAN


def _newest_steps(path: Path, case: str, why: str) -> list[AcceptedStep]:
    """The newest change of each series of the case in one history, as accepted now."""
    from batchline.bench.store import accepted
    from batchline.bench.verdicts import across_runs

    entries, _ = history.read(path)
    who, when = _user(), datetime.datetime.now(datetime.timezone.utc)
    steps = []
    for group in across_runs.groups(entries, {case}, accepted.read(path)):
        for series in group.series:
            if series.changes:
                change = series.changes[-1]
                first = series.entries[change.index]
                steps.append(
                    accepted.AcceptedStep(
                        case,
                        series.clock,
                        group.profile,
                        group.machine,
                        first.when,
                        first.commit,
                        change.effect,
                        who,
                        when.isoformat(timespec="seconds"),
                        why,
                    )
                )
    return steps


def _require_case(case: str, paths: Iterable[Path]) -> None:
    """Raise UsageError if no history has the case."""
    known = {
        name
        for path in paths
        for entry in history.read(path)[0]
        for name in entry.cases
    }
    if case not in known:
        raise UsageError(
            f"no history has the case {case!r}{did_you_mean(case, known)}: an id is "
            "op/variant/scenario/dtype/B…"
        )


def _user() -> str:
    """The name that git writes into commits here, else the account's."""
    with contextlib.suppress(OSError):
        named = git(Path.cwd(), "config", "user.name")
        if named.returncode == 0 and named.stdout.strip():
            return clean_line(named.stdout)
    with contextlib.suppress(OSError, KeyError):
        return clean_line(getpass.getuser())
    return "unknown"


def print_accepted(device: str | None = None, folder: Path = HISTORY) -> int:
    """Print each accepted step; 3 where there is no history.

    Raises:
        UsageError: if there is no such device, or a file can't be read.
    """
    from batchline.bench.report import over_time
    from batchline.bench.store import accepted

    paths = _chosen(device, folder)
    for path in paths:
        print(over_time.accepted_lines(path.stem, accepted.read(path)))
    return ExitCode.CLEAN if paths else ExitCode.NOT_MEASURED


def print_histories(
    device: str | None = None,
    k: str = "",
    out: Path | None = None,
    folder: Path = HISTORY,
) -> int:
    """Print which cases changed when, write a plot a kernel, and CSV files with their
    configuration for Apache Otava.

    Args:
        device: the name of a history's file without its ending; by default all in
        `folder`.
        k: only cases that match (pytest's -k).
        out: where to write; by default a folder beside the history, named as it is.

    Returns:
        The exit code: NOT_MEASURED where there is no history, or no line in one that
        can be read.

    Raises:
        UsageError: if there is no such device, no case matches, or a file can't be read
        or written.
    """
    from batchline.bench.store.files import blamed_on

    runs = 0
    for path in _chosen(device, folder):
        with blamed_on(path):
            runs += _show(
                path, k, Path(out) / path.stem if out else path.with_suffix("")
            )
    return ExitCode.CLEAN if runs else ExitCode.NOT_MEASURED


def _chosen(device: str | None, folder: Path) -> list[Path]:
    """The histories in a folder, or that of one device; none, and a line that says so,
    where there is none.

    Raises:
        UsageError: if there is no such device, or one is no file.
    """
    paths = sorted(Path(folder).glob(f"*{history.ENDING}"))
    if not paths:
        print(f"no history in {folder}: every `make bench` adds its run")
    chosen = [path for path in paths if device in (None, "", path.stem)]
    if paths and not chosen:
        raise UsageError(
            f"no history of {device!r} in {folder}: it has "
            f"{', '.join(path.stem for path in paths)}"
            f"{did_you_mean(device, [path.stem for path in paths])}"
        )
    for path in chosen:
        if not path.is_file():
            raise UsageError(f"{path} is not an ordinary file")
    return chosen


def _show(path: Path, k: str, out: Path) -> int:
    """Show one file's history; how many runs it has."""
    from batchline.bench.report import figures
    from batchline.bench.report import over_time as report
    from batchline.bench.report.document import unique
    from batchline.bench.selection import selected
    from batchline.bench.store import accepted
    from batchline.bench.verdicts import across_runs

    entries, damaged = history.read(path)
    cases = unique(case for entry in entries for case in entry.cases)
    groups = across_runs.groups(
        entries,
        set(selected(cases, k, f"in {path}")) if k and cases else None,
        accepted.read(path),
    )
    print(report.terminal(path.stem, groups))
    if damaged:
        print(
            f"{path}: passed over what can't be read: line {', '.join(map(str, damaged))}"
        )
    if not entries:
        return 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        missing = figures.why_no_plots()
        for number, group in enumerate(groups, 1):
            place = out / report.folder_name(group, number, groups)
            place.mkdir(exist_ok=True)
            report.write_otava(group, place)
            if not missing:
                report.draw(path.stem, group, place)
    except OSError as error:
        raise UsageError(
            f"can't write to {out} ({error.strerror}): name another with --into"
        ) from error
    print(f"{f'no plots: {missing}; ' if missing else 'plots and '}CSV: {out}")
    return len(entries)
