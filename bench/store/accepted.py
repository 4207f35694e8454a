"""The steps of a machine's history that were meant, as they are stored: one JSON file
beside the history, `<device>.accepted.json`, {"format", "steps"}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.store import formats
from batchline.bench.store.files import blamed_on, read_json, write_json

ENDING = ".accepted.json"


@dataclass(frozen=True)
class AcceptedStep:
    """A change of one series (a case by one clock, on one machine in one profile), of
    which `who` said `when` and `why` that it was meant.

    `since` is the start of the first run after it, as its entry has it, and `commit`
    that run's; `effect` is the change as a share. Both times are ISO 8601.
    """

    case: str
    clock: str
    profile: str
    machine: Mapping[str, str]
    since: str
    commit: str
    effect: float
    who: str
    when: str
    why: str


def path_beside(history: Path) -> Path:
    return history.with_suffix(ENDING)


def read(history: Path) -> tuple[AcceptedStep, ...]:
    """The accepted steps of the history in this file, in the order in which they were
    accepted.

    Raises:
        UsageError: if they can't be read.
    """
    path = path_beside(history)
    if not path.exists():
        return ()
    with blamed_on(path):
        try:
            document = formats.ACCEPTED.upgrade(read_json(path), path)
        except OSError as error:
            raise UsageError(f"can't read {path} ({error.strerror})") from error
        return formats.from_json(tuple[AcceptedStep, ...], document["steps"])


def add(history: Path, steps: Sequence[AcceptedStep]) -> Path:
    """Store further steps beside a history; returns the file.

    Raises:
        UsageError: if it can't be read or written.
    """
    path = path_beside(history)
    every = [formats.to_json(step) for step in (*read(history), *steps)]
    try:
        return write_json(path, {"format": formats.ACCEPTED.number, "steps": every})
    except OSError as error:
        raise UsageError(
            f"can't write {path} ({error.strerror}): no step of that history was accepted"
        ) from error
