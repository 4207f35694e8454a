"""`batchline compare`: two stored runs side by side. It never gates; `batchline regress` does."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from batchline.bench import records
from batchline.bench.errors import UsageError
from batchline.bench.records import Run
from batchline.bench.regress.base_tree import commit_of
from batchline.bench.report.comparison import terminal
from batchline.bench.stored_files import blamed_on
from batchline.bench.verdicts import comparison
from batchline.bench.verdicts.identity import machine_differences
from batchline.bench.verdicts.usable import why_made_up

SHOWN, NOTHING_TO_COMPARE = 0, 3
STORED = (Path("reports", "runs"), Path("reports", "evidence"))


def compare(
    a: Path | str, b: Path | str, force: bool = False, stored: Sequence[Path] = STORED
) -> int:
    """Print two runs beside each other; 0 whatever changed, 3 where no case is timed in
    both.

    Args:
        a, b: a run's folder, or a git revision: then the newest run under `stored` that
            was measured at it, on the machine of the other side if there is one.
        force: compare runs of different machines or toolchains, and say so in every
        line.

    Raises:
        UsageError: if a side is no run, or the machines differ and `force` is not
        given.
    """
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
    for name, run in zip((a, b), ours):
        if why := why_made_up(run.machine):
            raise UsageError(f"{name}: {why}, so there is nothing to compare")
    differ = machine_differences(*(run.machine for run in ours))
    if differ and not force:
        raise UsageError(
            f"the runs are of different machines or toolchains ({'; '.join(differ)}): their times can't "
            "be compared; measure both on one machine, or add FORCE=1 to see them all the same"
        )
    try:
        compared = comparison.compare(*ours)
        print(terminal(compared))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{a} or {b} is damaged ({error}): measure it again"
        ) from error
    return SHOWN if compared.pairs else NOTHING_TO_COMPARE


def _candidates(name: str, letter: str, stored: Sequence[Path]) -> list[Run]:
    """The run in this folder, or the runs of this revision, the newest first; there is
    at least one.
    """
    if not name:
        raise UsageError(
            "say which two: make compare A=<run's folder or revision> B=<the same>"
        )
    if Path(name).is_dir():
        return [_loaded(Path(name))]
    commit = _commit(name, letter)
    runs = [
        run
        for folder in stored
        for path in sorted(folder.glob(f"*/{records.FILE_NAME}"))
        if (run := _measured_at(commit, path))
    ]
    if not runs:
        raise UsageError(
            f"no run of {letter}={name} ({commit[:9]}) under {' or '.join(map(str, stored))}: "
            "name a run's folder, or measure it there first"
        )
    return sorted(runs, key=lambda run: str(run.about.get("started")), reverse=True)


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
        if commit not in path.read_text(
            encoding="utf-8"
        ):  # most are of another, and parsing takes the time
            return None
        run = _loaded(path.parent)
    except (OSError, ValueError) as error:
        print(f"passed over: {error}", file=sys.stderr)
        return None
    return run if run.machine["revision"]["commit"].startswith(commit) else None


def _loaded(folder: Path) -> Run:
    run = records.load(folder)
    with blamed_on(records.path_in(folder)):
        machine_differences(run.machine, run.machine)
        str.startswith(run.machine["revision"]["commit"], "")
    return run
