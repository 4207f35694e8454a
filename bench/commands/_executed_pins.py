"""The second half of `batchline codegen`: execute in emulation what has changed since its
verdicts and counts were pinned, and compare.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence

from batchline.bench import catalogue, console
from batchline.bench.errors import ExitCode
from batchline.bench.store.files import SealBroken


def execute_and_compare(pin: bool, everything: bool) -> int:
    """Execute what has changed since it was pinned, or everything; print what moved, or
    pin it; the exit code.
    """
    from batchline.bench.measure.compiled.compile_pool import Pool
    from batchline.bench.measure.emulated import pinned

    began_s = time.monotonic()
    try:
        known = pinned.load()
    except SealBroken as refusal:
        if not pin:
            return _not_compared(str(refusal))
        print(refusal)
        known = {}
    if not known and not pin:
        return _not_compared(pinned.why_none())
    wanted = pinned.jobs(catalogue.read().variants)
    changed = [job for job in wanted if everything or not pinned.is_current(job, known)]
    with Pool(os.cpu_count() or 1) as pool:
        fresh, problems = pinned.execute(pool, changed, _progress())
    before = {
        job: entry for job, entry in known.items() if job in fresh or job not in wanted
    }
    moved, changed_verdicts = _compare(before, fresh)
    entries = {job: known[job] for job in wanted if job in known} | fresh
    wrong = {
        f"{job[0]} {job[1]} {name}": line
        for job, entry in sorted(entries.items())
        for name, line in entry.wrong.items()
    }
    closing = _closing(entries, fresh, wrong, time.monotonic() - began_s)
    if problems:
        print("\n\n".join([*_told(moved, changed_verdicts), closing]))
        return _not_compared(f"not executed to the end: {'; '.join(problems)}")
    if pin:
        print("\n\n".join([*(_told(moved, {}) if known else []), closing]))
        file = pinned.save(entries)
        print(f"pinned in {file.relative_to(file.parents[2])}")
        return ExitCode.FAULT if wrong else ExitCode.CLEAN
    print("\n\n".join([*_told(moved, changed_verdicts), closing]))
    _annotate(moved, changed_verdicts)
    return ExitCode.FAULT if moved or changed_verdicts or wrong else ExitCode.CLEAN


def _progress():
    """What tells on a terminal how much is done."""

    def tell(done: int, count: int) -> None:
        if sys.stderr.isatty():
            line = f"{console.ERASED}[{done}/{count}] executed in emulation"
            ended = console.ERASED if done == count else ""
            print(end=line + ended, file=sys.stderr, flush=True)

    return tell


def _compare(before: Mapping, after: Mapping) -> tuple[Sequence, dict[str, str]]:
    """The launches that moved, and what is not right any more, by its subject."""
    from batchline.bench.verdicts import executed_changes as verdicts

    rows = [
        [row for entry in entries.values() for row in entry.launches]
        for entries in (before, after)
    ]
    changed = {
        f"{job[0]} {job[1]} {name}": line
        for job, entry in after.items()
        for name, line in verdicts.verdict_changes(
            before[job].wrong if job in before else {}, entry.wrong
        ).items()
    }
    return verdicts.moves(*rows), changed


def _told(moved: Sequence, changed_verdicts: Mapping[str, str]) -> list[str]:
    """What moved, for a terminal."""
    from batchline.bench.report import of_commands as report
    from batchline.bench.report.render.terminal import wrapped

    lines = [f"{name}: {line}" for name, line in changed_verdicts.items()]
    parts = ["\n".join(wrapped(line) for line in lines)] if lines else []
    if moved:
        parts += [
            f"In emulation: {report.moves_on_terminal(moved)}",
            "Where it is meant: `make codegen PIN=1`, and commit the file.",
        ]
    return parts or ["In emulation: nothing moved."]


def _closing(entries: Mapping, fresh: Mapping, wrong: Mapping, seconds: float) -> str:
    subjects = sum(len(entry.right) + len(entry.wrong) for entry in entries.values())
    not_right = f"; {len(wrong)} are not right" if wrong else ", all right"
    return (
        f"{len(fresh)} variants and dtypes executed in {seconds:.0f} s, {len(entries) - len(fresh)} "
        f"more have the sources that were pinned: {subjects} subjects{not_right}."
    )


def _annotate(moved: Sequence, changed_verdicts: Mapping[str, str]) -> None:
    from batchline.bench.report import of_commands as report
    from batchline.bench.report.render import github

    if moved:
        github.step_summary(
            f"## Executed in emulation\n\n{report.moves_on_github(moved)}"
        )
    lines = [(name, line) for name, line in changed_verdicts.items()]
    github.announce("error", [*report.move_annotations(moved), *lines])


def _not_compared(why: str) -> int:
    from batchline.bench.report.render import github

    console.complain(f"in emulation: {why}")
    github.announce("error", [("codegen, in emulation", why)])
    return ExitCode.NOT_MEASURED
