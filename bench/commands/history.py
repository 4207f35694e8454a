"""`batchline history`: every run on a machine: what changed, when, at which revision."""

from __future__ import annotations

import argparse
from pathlib import Path

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench import folders
from batchline.bench.folders import HISTORY
from batchline.bench.store import history
from batchline.bench.texts import did_you_mean

HELP = "every run on a machine: what changed, when, at which revision"
SAMPLE = """
amd-epyc, quick: 41 runs, 1 of 816 cases changed: bmm/torch_bmm/square_128/float32/B64
  -12.1% at 190033fcc (2026-11-20), improvement
plots and CSV: reports/history/amd-epyc
"""
EXITS = {
    ExitCode.CLEAN: "the history is above",
    ExitCode.USAGE: "no such machine, no case matches, or a file can't be read or "
    "written",
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


def run(options: argparse.Namespace) -> int:
    return print_histories(
        options.machine, options.k, options.into, options.history or folders.history()
    )


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

    paths = sorted(Path(folder).glob(f"*{history.ENDING}"))
    if not paths:
        print(f"no history in {folder}: every `make bench` adds its run")
        return ExitCode.NOT_MEASURED
    chosen = [path for path in paths if device in (None, "", path.stem)]
    if not chosen:
        raise UsageError(
            f"no history of {device!r} in {folder}: it has "
            f"{', '.join(path.stem for path in paths)}"
            f"{did_you_mean(device, [path.stem for path in paths])}"
        )
    runs = 0
    for path in chosen:
        if not path.is_file():
            raise UsageError(f"{path} is not an ordinary file")
        with blamed_on(path):
            runs += _show(
                path, k, Path(out) / path.stem if out else path.with_suffix("")
            )
    return ExitCode.CLEAN if runs else ExitCode.NOT_MEASURED


def _show(path: Path, k: str, out: Path) -> int:
    """Show one file's history; how many runs it has."""
    from batchline.bench.report import figures
    from batchline.bench.report import over_time as report
    from batchline.bench.report.document import unique
    from batchline.bench.selection import selected
    from batchline.bench.verdicts import across_runs

    entries, damaged = history.read(path)
    cases = unique(case for entry in entries for case in entry.cases)
    groups = across_runs.groups(
        entries, set(selected(cases, k, f"in {path}")) if k and cases else None
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
