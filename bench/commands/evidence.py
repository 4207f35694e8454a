"""`batchline evidence`: what half an hour of a GPU is best spent on, in parts, in at most
eight files.

It takes the parts that are missing, each in its process and within its limit, and
writes the README. A part that fails, or is cut at its limit, is shown with what it had,
and the next one begins. What there is is on disk after each part, so that another call
with the same folder goes on.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from batchline.bench import texts, units
from batchline.bench.commands import _arguments
from batchline.bench.console import complain
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import EVIDENCE, RUNS, new_folder, remove_if_empty, runs
from batchline.bench.measure import stand_in
from batchline.bench.store.files import write_whole

if TYPE_CHECKING:
    from batchline.bench.commands._evidence_parts import Asked, Part, State, Taken

HELP = "what half an hour of a GPU is best spent on, in parts"
SAMPLE = """
evidence: reports/evidence/2026-11-29-100746-nvidia-h200/README.md
"""
EXITS = {
    ExitCode.CLEAN: "every part that was taken came to its end",
    ExitCode.FAULT: "a part failed or was cut short; the others are there",
    ExitCode.USAGE: "no such part or device, or the folder has other evidence",
    ExitCode.STOPPED: "stopped by Ctrl-C; what is done is kept, and another call with "
    "the same --into goes on",
}
MOST_BYTES = 16 * 2**20 - 1  # of a file, to come back from a machine that is lent
_MEASURED = ("run.json", "study.json")  # which are read compressed too
_README = "README.md"
_WORK = "unfinished"  # the folder of the part that is being taken
_TORN = "its process ended in the middle of it; what it had by then is below"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    _arguments.add_device(parser)
    _arguments.add_selection(
        parser,
        "only cases whose id matches, as in pytest -k, in the parts cases and dispatch",
    )
    parser.add_argument(
        "--part",
        default="",
        metavar="NAMES",
        help="only these parts, with commas between, and those again that are there: "
        "clocks, tests, sanitizer, cases, noise, dispatch (default: all that are "
        "missing)",
    )
    parser.add_argument(
        "--minutes",
        type=_arguments.positive,
        metavar="M",
        help="begin no part that might end later (each ends within 9)",
    )
    _arguments.add_into(
        parser,
        f"where to write, and to go on (default: a new folder in {RUNS}, which moves "
        f"to {EVIDENCE} when it is whole)",
    )


def run(options: argparse.Namespace) -> int:
    names = [name for name in options.part.split(",") if name]
    return collect(options.device, options.into, options.k, names, options.minutes)


def collect(
    device: str,
    out: Path | None,
    selection: str = "",
    names: Sequence[str] = (),
    minutes: float | None = None,
) -> int:
    """Take the parts that are missing in `out`, by default a new folder, which moves to
    reports/evidence/ when whole.

    Args:
        selection: only those cases, as pytest's -k, in the parts that have cases.
        names: only these parts, and also where they are there already.
        minutes: begin no part that might end later.

    Returns 0 if every part that was taken came to its end.

    Raises:
        UsageError: for an unknown device or part, or a folder that has other evidence
        or can't be written.
    """
    from batchline.bench.commands import _evidence_parts as parts
    from batchline.bench.measure.machine import environment

    try:
        device = environment.resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen = parts.named(names)
    machine = environment.machine(device)
    _refuse_made_up(out)
    folder = out or new_folder(runs(), f"evidence {machine['device_name']}")
    try:
        state = _recovered(parts.open_state(folder, device, machine), selection)
        return _collect(
            state,
            [part for part in chosen if names or state.is_missing(part.name)],
            selection,
            minutes,
        )
    finally:
        remove_if_empty(folder)


def _refuse_made_up(out: Path | None) -> None:
    if stand_in.is_on() and out and out.resolve().is_relative_to(EVIDENCE.resolve()):
        raise UsageError(
            f"{stand_in.WORDS}: it is no evidence, and {EVIDENCE} has none such: name another "
            "folder with --into"
        )


def _collect(
    state: State, to_take: Sequence[Part], selection: str, minutes: float | None
) -> int:
    ends_s = time.monotonic() + 60 * minutes if minutes else float("inf")
    print(_time_plan(to_take, state.device), file=sys.stderr)
    failed = False
    for part in to_take:
        limit_s = 0 if part.why_left_out(state.device) else part.limit_s[state.device]
        if time.monotonic() + limit_s > ends_s:
            print(
                f"evidence: {part.name} may take {limit_s / 60:.1f} min, and that is more than is left of "
                f"{minutes:g}",
                file=sys.stderr,
            )
            break
        print(f"evidence: {part.title}", file=sys.stderr)
        state = _take(state, part, selection)
        failed |= state.taken[part.name].ended is not None
        if state.taken[part.name].stopped:
            complain(f"stopped in the part {part.name}; {_how_to_go_on(state)}")
            return ExitCode.STOPPED
    _end(state)
    return ExitCode.FAULT if failed else ExitCode.CLEAN


def _time_plan(to_take: Sequence[Part], device: str) -> str:
    """What comes, and the most that each part and all of them take."""
    from batchline.bench.report.render.terminal import draw

    rows = [
        [
            part.name,
            part.title,
            (
                "left out"
                if part.why_left_out(device)
                else f"{part.limit_s[device] / 60:.1f} min"
            ),
        ]
        for part in to_take
    ]
    total_s = sum(
        part.limit_s[device] for part in to_take if not part.why_left_out(device)
    )
    return draw(
        ["part", "", "at most"], [*rows, ["in all", "", f"{total_s / 60:.1f} min"]]
    )


def _take(state: State, part: Part, selection: str) -> State:
    """The state with the part taken; its files moved to the folder, and the README
    written.
    """
    from batchline.bench.commands import _evidence_parts as parts

    if why := part.why_left_out(state.device):
        return _keep(state, part, parts.Taken(0.0, None, f"Left out: {why}"), None)
    asked = _asked(state, selection)
    shutil.rmtree(asked.work, ignore_errors=True)
    asked.work.mkdir()
    state = state.beginning(part.name)
    log = asked.work / part.log if part.log else None
    started_s = time.monotonic()
    ended = parts.run_part(part.command(asked), part.limit_s[state.device], log)
    return _ended(
        state,
        part,
        asked,
        parts.Taken(time.monotonic() - started_s, ended, "", ended == parts.STOPPED),
    )


def _asked(state: State, selection: str) -> Asked:
    from batchline.bench.commands._evidence_parts import Asked

    folder = state.folder.resolve()
    return Asked(folder, folder / _WORK, state.device, selection)


def _recovered(state: State, selection: str) -> State:
    """The state with what a part had whose process, and this one, ended in the middle
    of it.
    """
    from batchline.bench.commands import _evidence_parts as parts

    part = next((part for part in parts.PARTS if part.name == state.begun), None)
    return (
        _ended(state, part, _asked(state, selection), parts.Taken(0.0, _TORN, ""))
        if part
        else state
    )


def _ended(state: State, part: Part, asked: Asked, taken: Taken) -> State:
    from batchline.bench.commands._evidence_parts import PartSection

    try:
        section = part.show(asked)
    except (
        Exception
    ) as error:  # whatever a part has left unfinished: the others are shown
        section = PartSection(f"Nothing to show: {texts.error_line(error)}")
    return _keep(
        state, part, replace(taken, text=section.text, data=section.data), section.files
    )


def _keep(
    state: State, part: Part, taken: Taken, files: dict[str, Path] | None
) -> State:
    for name, path in (files or {}).items():
        path.replace(state.folder / name)
    smaller = list(shrink(state.folder))
    taken = replace(taken, text="\n\n".join([taken.text, *smaller]))
    state = state.ending(part.name, taken)
    shutil.rmtree(state.folder / _WORK, ignore_errors=True)
    _write(state)
    return state


def _write(state: State) -> None:
    from batchline.bench.commands import _evidence_parts as parts

    machine = state.machine
    revision = machine["revision"]
    changed = " with uncommitted changes" if revision["dirty"] else ""
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items()
    )
    driver = f", driver {machine['gpu']['driver']}" if machine.get("gpu") else ""
    head = (
        f"# Evidence from {machine['device_name']}\n\nMade by `batchline evidence` at revision "
        f"{revision['commit'][:12]}{changed}, Python {machine['python']}, {versions}{driver}."
    )
    made_up = [f"> **{machine['stand_in']}.**"] if machine.get("stand_in") else []
    missing = [part.name for part in parts.PARTS if state.is_missing(part.name)]
    partial = [
        f"> **Partial.** {len(missing)} of {len(parts.PARTS)} parts are missing: {', '.join(missing)}."
    ]
    sections = [
        _section(part, state.taken[part.name])
        for part in parts.PARTS
        if part.name in state.taken
    ]
    write_whole(
        state.folder / _README,
        "\n\n".join([head, *made_up, *(partial if missing else []), *sections]) + "\n",
    )


def _section(part: Part, taken: Taken) -> str:
    why = f"**Not to its end: {taken.ended}.**\n\n" if taken.ended else ""
    return f"## {part.title} ({taken.seconds:.0f} s)\n\n{why}{taken.text}"


def _end(state: State) -> None:
    """Say where it is, and how to go on; move what is whole, and of a GPU or a CPU, to
    where it is committed.
    """
    from batchline.bench.commands import _evidence_parts as parts

    folder = state.folder
    missing = any(state.is_missing(part.name) for part in parts.PARTS)
    if folder.parent == runs() and not missing and not stand_in.is_on():
        folder = _moved(folder)
    print(f"evidence: {folder / _README}")
    if stand_in.is_on():
        print(
            f"evidence: {stand_in.WORDS}: it is no evidence, and stays out of {EVIDENCE}"
        )
    if missing:
        print(f"evidence: {_how_to_go_on(state)}")
    cut = [
        part.name
        for part in parts.PARTS
        if part.name in state.taken and state.taken[part.name].ended
    ]
    if cut:
        print(
            f"evidence: {', '.join(cut)} came to no end: --into {folder} --part {','.join(cut)} takes them again"
        )


def _how_to_go_on(state: State) -> str:
    from batchline.bench.commands import _evidence_parts as parts

    return f"`batchline evidence --into {state.folder}` goes on ({parts.FILE_NAME} there says with what)"


def _moved(folder: Path) -> Path:
    """The folder, now that it is whole, among those that are committed; where that
    fails, it stays where it is.
    """
    place = EVIDENCE / folder.name.replace("-evidence-", "-", 1)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return folder.rename(place)
    except OSError as error:
        complain(f"can't move it to {place} ({error.strerror})")
        return folder


def shrink(folder: Path) -> Iterator[str]:
    """Compress what was measured, and each file of the folder that is too large; a line
    of each, for the README.
    """
    for path in sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and (path.name in _MEASURED or path.stat().st_size > MOST_BYTES)
    ):
        content, smaller = path.read_bytes(), path.with_name(f"{path.name}.gz")
        compressed, kept = gzip.compress(content, mtime=0), len(content)
        while len(compressed) > MOST_BYTES:
            kept //= 2
            compressed = gzip.compress(content[:kept])
        smaller.write_bytes(compressed)
        path.unlink()
        cut = (
            ""
            if kept == len(content)
            else f", and cut after its first {units.size(kept)}"
        )
        yield f"{path.name} had {units.size(len(content))}: it is compressed{cut} (`gunzip {smaller.name}`)."
