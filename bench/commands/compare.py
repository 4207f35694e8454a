"""`batchline compare`: two stored runs side by side, or those of several machines. It
never gates; `batchline regress` does.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING

from batchline.bench.commands import _arguments
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import EVIDENCE, runs
from batchline.bench.regress.base_tree import commit_of
from batchline.bench.store import run_json
from batchline.bench.store.files import blamed_on, read_text, stored_below, write_whole
from batchline.bench.store.records import Run

if TYPE_CHECKING:
    from batchline.bench.report.document import Document

HELP = "two stored runs side by side, or those of several machines"
SAMPLE = """
None of 816 cases differs by more than its interval and 1% or 1 µs

bmm/torch_bmm/attention_scores/float32
B    latency            change [95%], %      class    memory    error/tol.
---  -----------------  -------------------  -------  --------  ------------
1    206 µs → 206 µs    +0.0 [-5.9, +6.3]    noise    1.00 MiB  5.8%
"""
EXITS = {
    ExitCode.CLEAN: "the comparison is above, whatever has changed",
    ExitCode.USAGE: "a side is no run, or they are not of the same machine (with --by: "
    "of one)",
    ExitCode.NOT_MEASURED: "no case is timed in both (with --by: a run has timed none)",
    ExitCode.STOPPED: "stopped by Ctrl-C",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="A and B, each a run's folder, or a revision that a stored run is of",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="across machines, too: in ratios, with the map of each",
    )
    parser.add_argument(
        "--by",
        choices=("device",),
        help="runs of several machines, two or more: which variant wins on which",
    )
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=_arguments.new_file,
        help="write them in one page, of two runs with what changed first",
    )


def run(options: argparse.Namespace) -> int:
    if options.by:
        return compare_devices(options.runs, page=options.html)
    if len(options.runs) != 2:
        raise UsageError(
            f"say which two: batchline compare A B ({len(options.runs)} named; --by device takes more)"
        )
    return compare(*options.runs, options.force, page=options.html)


def compare(
    a: Path | str,
    b: Path | str,
    force: bool = False,
    stored: Sequence[Path] = (),
    page: Path | None = None,
) -> int:
    """Print two runs beside each other; 0 whatever changed, 3 where no case is timed in
    both.

    Args:
        a, b: a run's folder, or a git revision: then the newest run under `stored` that
            was measured at it, on the machine of the other side if there is one.
        force: compare runs of different machines or toolchains, in ratios.
        page: a file to write them into as a page.

    Raises:
        UsageError: if a side is no run, the machines differ and `force` is not given,
        or the page can't be written.
    """
    from batchline.bench.report import two_runs
    from batchline.bench.store.history import machine_differences
    from batchline.bench.verdicts import across_runs

    stored = stored or (runs(), EVIDENCE)
    sides = [
        _candidates(str(side), letter, stored) for side, letter in ((a, "A"), (b, "B"))
    ]
    ours = next(
        (
            pair
            for pair in ((one, other) for one in sides[0] for other in sides[1])
            if not machine_differences(*(run.machine for run in pair))
        ),
        (sides[0][0], sides[1][0]),
    )
    _refuse_made_up(dict(zip((a, b), ours)))
    differ = machine_differences(*(run.machine for run in ours))
    if differ and not force:
        raise UsageError(
            f"the runs are of different machines or toolchains ({'; '.join(differ)}): their times can't "
            "be compared; measure both on one machine, or add --force to see them all the same"
        )
    with blamed_on(f"{a} or {b}"):
        compared = across_runs.compare(*ours)
        print(two_runs.terminal(compared))
        if page is not None:
            _write_page(two_runs.document(compared), page)
    return ExitCode.CLEAN if compared.pairs else ExitCode.NOT_MEASURED


def compare_devices(
    names: Sequence[Path | str],
    stored: Sequence[Path] = (),
    page: Path | None = None,
) -> int:
    """Print runs of several machines side by side; 0, or 3 where one has timed nothing.

    Args:
        names: at least two, each a run's folder or a git revision, of which the newest
            run under `stored` is taken.
        page: a file to write them into as a page.

    Raises:
        UsageError: if there are too few or too many, one is no run, two are of one
        machine and toolchain, or the page can't be written.
    """
    from batchline.bench.report import by_device

    if not 2 <= len(names) <= by_device.MOST:
        raise UsageError(
            f"--by device takes from 2 to {by_device.MOST} runs, not {len(names)}"
        )
    stored = stored or (runs(), EVIDENCE)
    devices = {
        name: _candidates(str(name), letter, stored)[0]
        for letter, name in zip(ascii_uppercase, names)
    }
    if len(devices) < len(names):
        raise UsageError("a run is named twice: name one run of each machine")
    _refuse_made_up(devices)
    _refuse_alike(devices)
    with blamed_on(" or ".join(map(str, names))):
        ours = tuple(devices.values())
        print(by_device.terminal(ours))
        if page is not None:
            _write_page(by_device.document(ours), page)
    timed = (any(record.samples_s for record in run.records) for run in ours)
    return ExitCode.CLEAN if all(timed) else ExitCode.NOT_MEASURED


def _refuse_made_up(named: Mapping[Path | str, Run]) -> None:
    from batchline.bench.store.history import why_made_up

    for name, run in named.items():
        if why := why_made_up(run.machine):
            raise UsageError(f"{name}: {why}, so there is nothing to compare")


def _refuse_alike(named: Mapping[Path | str, Run]) -> None:
    from batchline.bench.store.history import machine_differences

    for (name, run), (other, its_run) in combinations(named.items(), 2):
        if not machine_differences(run.machine, its_run.machine):
            raise UsageError(
                f"{name} and {other} are of one machine and toolchain: name one of them "
                "(batchline compare A B shows how the two differ)"
            )


def _write_page(document: Document, path: Path) -> None:
    from batchline.bench.report.render import html

    try:
        text = html.render_plain(document)
        write_whole(path, text)
    except ImportError as error:
        raise UsageError(f"no page: {error.name} is not installed") from error
    except OSError as error:
        raise UsageError(f"can't write {path}: {error.strerror}") from error
    print(f"\npage: {path}")


def _candidates(name: str, letter: str, stored: Sequence[Path]) -> list[Run]:
    """The run in this folder, or the runs of this revision, the newest first; there is
    at least one.
    """
    if not name:
        raise UsageError(
            "say which two: batchline compare A B, each a run's folder or a revision"
        )
    if Path(name).is_dir():
        return [_loaded(Path(name))]
    commit = _commit(name, letter)
    runs = [
        run
        for folder in stored
        for path in stored_below(folder, run_json.FILE_NAME)
        if (run := _measured_at(commit, path))
    ]
    if not runs:
        raise UsageError(
            f"no run of {letter}={name} ({commit[:9]}) under {' or '.join(map(str, stored))}: "
            "name a run's folder, or measure it there first"
        )
    return sorted(runs, key=lambda run: run.started, reverse=True)


def _commit(name: str, letter: str) -> str:
    """The revision's hash; a hash that git does not know is kept as it is, for runs
    outlive rebases and clones.
    """
    try:
        return commit_of(name)
    except UsageError as error:
        if re.fullmatch("[0-9a-f]{7,40}", name):
            return name
        raise UsageError(
            f"{letter}={name} is neither a folder nor a revision: {error}"
        ) from None


def _measured_at(commit: str, path: Path) -> Run | None:
    """The run in this file if it was measured at that commit; one that can't be read is
    named and passed over.
    """
    try:
        if commit not in read_text(
            path
        ):  # most are of another, and parsing takes the time
            return None
        run = _loaded(path.parent)
    except (OSError, ValueError) as error:
        print(f"passed over: {error}", file=sys.stderr)
        return None
    return run if run.machine["revision"]["commit"].startswith(commit) else None


def _loaded(folder: Path) -> Run:
    from batchline.bench.store.history import machine_differences

    run = run_json.load(folder)
    with blamed_on(run_json.path_in(folder)):
        machine_differences(run.machine, run.machine)
        str.startswith(run.machine["revision"]["commit"], "")
    return run
