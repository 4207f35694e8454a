"""The second half of `batchline codegen`: execute in emulation what has changed since its
verdicts and counts were pinned, and compare.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from batchline.bench import catalogue, console
from batchline.bench.commands._progress import Progress
from batchline.bench.errors import ExitCode
from batchline.bench.store.files import SealBroken

if TYPE_CHECKING:
    from batchline.bench.verdicts.compiled_changes import Move

_SHOWN = 12  # subjects that are not right
_NOTHING = (
    "there is nothing to execute: no variant is a Triton or Numba CUDA kernel, or what "
    "compiles them is not installed"
)


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
    found = catalogue.read()
    wanted = pinned.jobs(found.variants)
    if not wanted:
        return _not_compared("; ".join(found.unread) or _NOTHING)
    changed = [job for job in wanted if everything or not pinned.is_current(job, known)]
    with Pool(os.cpu_count() or 1) as pool, Progress() as progress:
        fresh, problems = pinned.execute(pool, changed, found.variants, progress.tell)
    problems += found.unread
    moved = _moves(
        {
            job: entry
            for job, entry in known.items()
            # What can't be read may still have its variants: they are not gone.
            if job in fresh or job not in wanted and not found.unread
        },
        fresh,
    )
    entries = {job: known[job] for job in wanted if job in known} | fresh
    wrong = {
        f"{job[0]} {job[1]} {name}": line
        for job, entry in sorted(entries.items())
        for name, line in entry.wrong.items()
    }
    closing = _closing(entries, fresh, wrong, time.monotonic() - began_s)
    if pin and not problems:
        told = _told(moved if known else (), wrong) if known or wrong else []
        print("\n\n".join([*told, closing]))
        print(f"pinned in {os.path.relpath(pinned.save(entries))}")
        return ExitCode.FAULT if wrong else ExitCode.CLEAN
    print("\n\n".join([*_told(moved, wrong), closing]))
    _annotate(moved, wrong)
    if problems:
        return _not_compared(f"not executed to the end: {'; '.join(problems)}")
    return ExitCode.FAULT if moved or wrong else ExitCode.CLEAN


def _moves(before: Mapping, after: Mapping) -> Sequence[Move]:
    """The launches that moved."""
    from batchline.bench.verdicts import executed_changes

    return executed_changes.moves(
        *(
            [row for entry in entries.values() for row in entry.launches]
            for entries in (before, after)
        )
    )


def _told(moved: Sequence[Move], wrong: Mapping[str, str]) -> list[str]:
    """What is not right and what moved, for a terminal."""
    from batchline.bench.measure.compiled import pins
    from batchline.bench.report import of_commands as report
    from batchline.bench.report.render.terminal import wrapped

    lines = [f"{name}: {line}" for name, line in wrong.items()]
    shown = [wrapped(line) for line in lines[:_SHOWN]]
    if len(lines) > _SHOWN:
        shown.append(
            f"and {len(lines) - _SHOWN} more that are not right: `batchline emulate` names them"
        )
    parts = ["\n".join(shown)] if shown else []
    if moved:
        parts += [
            f"In emulation: {report.moves_on_terminal(moved)}",
            f"Where it is meant: {pins.command()}, and commit the file.",
        ]
    return parts or ["In emulation: nothing moved."]


def _closing(entries: Mapping, fresh: Mapping, wrong: Mapping, seconds: float) -> str:
    subjects = sum(len(entry.right) + len(entry.wrong) for entry in entries.values())
    not_right = f"; {len(wrong)} are not right" if wrong else ", all right"
    return (
        f"{len(fresh)} variants and dtypes executed in {seconds:.0f} s, {len(entries) - len(fresh)} "
        f"more have the sources that were pinned: {subjects} subjects{not_right}."
    )


def _annotate(moved: Sequence[Move], wrong: Mapping[str, str]) -> None:
    from batchline.bench.report import of_commands as report
    from batchline.bench.report.render import github

    if moved:
        github.step_summary(
            f"## Executed in emulation\n\n{report.moves_on_github(moved)}"
        )
    lines = list(wrong.items())[:_SHOWN]
    github.announce("error", [*report.move_annotations(moved), *lines])


def _not_compared(why: str) -> int:
    from batchline.bench.report.render import github

    console.complain(f"in emulation: {why}")
    github.announce("error", [("codegen, in emulation", why)])
    return ExitCode.NOT_MEASURED
