"""`batchline evidence`: takes the parts that are missing, each in its process and within
its limit, and writes the README.

A part that fails, or is cut at its limit, is shown with what it had, and the next one
begins. What there is is on disk after each part (bench.evidence.state), so that another
call with the same folder goes on.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tabulate import tabulate

from batchline.bench import report, texts
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.evidence import parts, process, sizes
from batchline.bench.evidence.parts import Asked, Part
from batchline.bench.evidence.shown import Shown
from batchline.bench.evidence.state import FILE_NAME, State, Taken, opened
from batchline.bench.files import write_whole
from batchline.bench.folders import new_folder, remove_if_empty
from batchline.bench.measure import environment, stand_in

INTERRUPTED = 130
DEFAULT_FOLDER = Path("reports", "evidence")
_UNFINISHED = Path(
    "reports", "runs"
)  # which git ignores; what is whole moves to DEFAULT_FOLDER
_WORK = "unfinished"  # the folder of the part that is being taken
_TORN = "its process ended in the middle of it; what it had by then is below"


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
    try:
        device = environment.resolve_device(device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    chosen = parts.named(names)
    machine = environment.machine(device)
    _refuse_made_up(out)
    folder = out or new_folder(_UNFINISHED, f"evidence {machine['device_name']}")
    try:
        state = _recovered(opened(folder, device, machine), selection)
        return _collect(
            state,
            [part for part in chosen if names or state.is_missing(part.name)],
            selection,
            minutes,
        )
    finally:
        remove_if_empty(folder)


def _refuse_made_up(out: Path | None) -> None:
    if (
        stand_in.is_on()
        and out
        and out.resolve().is_relative_to(DEFAULT_FOLDER.resolve())
    ):
        raise UsageError(
            f"{stand_in.WORDS}: it is no evidence, and {DEFAULT_FOLDER} has none such: name another "
            "folder with OUT="
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
            return INTERRUPTED
    _end(state)
    return 1 if failed else 0


def _time_plan(to_take: Sequence[Part], device: str) -> str:
    """What comes, and the most that each part and all of them take."""
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
    return tabulate(
        [*rows, ["in all", "", f"{total_s / 60:.1f} min"]],
        headers=["part", "", "at most"],
        disable_numparse=True,
    )


def _take(state: State, part: Part, selection: str) -> State:
    """The state with the part taken; its files moved to the folder, and the README
    written.
    """
    if why := part.why_left_out(state.device):
        return _kept(state, part, Taken(0.0, None, f"Left out: {why}"), None)
    asked = _asked(state, selection)
    shutil.rmtree(asked.work, ignore_errors=True)
    asked.work.mkdir()
    state = state.beginning(part.name)
    log = asked.work / part.log if part.log else None
    started_s = time.monotonic()
    ended = process.run(part.command(asked), part.limit_s[state.device], log)
    return _shown(
        state,
        part,
        asked,
        Taken(time.monotonic() - started_s, ended, "", ended == process.STOPPED),
    )


def _asked(state: State, selection: str) -> Asked:
    folder = state.folder.resolve()
    return Asked(folder, folder / _WORK, state.device, selection)


def _recovered(state: State, selection: str) -> State:
    """The state with what a part had whose process, and this one, ended in the middle
    of it.
    """
    part = next((part for part in parts.PARTS if part.name == state.begun), None)
    return (
        _shown(state, part, _asked(state, selection), Taken(0.0, _TORN, ""))
        if part
        else state
    )


def _shown(state: State, part: Part, asked: Asked, taken: Taken) -> State:
    try:
        shown = part.show(asked)
    except (
        Exception
    ) as error:  # whatever a part has left unfinished: the others are shown
        shown = Shown(f"Nothing to show: {texts.error_line(error)}")
    return _kept(
        state, part, replace(taken, text=shown.text, data=shown.data), shown.files
    )


def _kept(
    state: State, part: Part, taken: Taken, files: dict[str, Path] | None
) -> State:
    for name, path in (files or {}).items():
        path.replace(state.folder / name)
    smaller = list(sizes.shrink(state.folder))
    taken = replace(taken, text="\n\n".join([taken.text, *smaller]))
    state = state.ending(part.name, taken)
    shutil.rmtree(state.folder / _WORK, ignore_errors=True)
    _write(state)
    return state


def _write(state: State) -> None:
    machine = state.machine
    revision = machine["revision"]
    changed = " with uncommitted changes" if revision["dirty"] else ""
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items()
    )
    driver = f", driver {machine['gpu']['driver']}" if machine.get("gpu") else ""
    head = (
        f"# Evidence from {machine['device_name']}\n\nMade by `make evidence` at revision "
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
        state.folder / report.FILE_NAME,
        "\n\n".join([head, *made_up, *(partial if missing else []), *sections]) + "\n",
    )


def _section(part: Part, taken: Taken) -> str:
    why = f"**Not to its end: {taken.ended}.**\n\n" if taken.ended else ""
    return f"## {part.title} ({taken.seconds:.0f} s)\n\n{why}{taken.text}"


def _end(state: State) -> None:
    """Say where it is, and how to go on; move what is whole, and of a GPU or a CPU, to
    where it is committed.
    """
    folder = state.folder
    missing = any(state.is_missing(part.name) for part in parts.PARTS)
    if folder.parent == _UNFINISHED and not missing and not stand_in.is_on():
        folder = _moved(folder)
    print(f"evidence: {folder / report.FILE_NAME}")
    if stand_in.is_on():
        print(
            f"evidence: {stand_in.WORDS}: it is no evidence, and stays out of {DEFAULT_FOLDER}"
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
            f"evidence: {', '.join(cut)} came to no end: --out {folder} --part {','.join(cut)} takes them again"
        )


def _how_to_go_on(state: State) -> str:
    return (
        f"`make evidence OUT={state.folder}` goes on ({FILE_NAME} there says with what)"
    )


def _moved(folder: Path) -> Path:
    """The folder, now that it is whole, among those that are committed; where that
    fails, it stays where it is.
    """
    place = DEFAULT_FOLDER / folder.name.replace("-evidence-", "-", 1)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        return folder.rename(place)
    except OSError as error:
        complain(f"can't move it to {place} ({error.strerror})")
        return folder
