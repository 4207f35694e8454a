"""evidence.json: which parts of an evidence there are, how each ended, and what it
shows; README.md is made from it.

{"format", "device", "machine", "parts": {name: {"seconds", "ended", "stopped", "text",
"data"}}}. A part that has begun and not ended has "begun" alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.store.files import write_whole
from batchline.bench.store.files import DamagedFile, blamed_on, read_json

FILE_NAME = "evidence.json"
_FORMAT = 1


@dataclass(frozen=True)
class Taken:
    """A part as it was taken. `ended` is why it did not come to its end, or None;
    `stopped`: that was Ctrl-C.

    `text` is its section of the README, in markdown, `data` what else is kept of it.
    """

    seconds: float
    ended: str | None
    text: str
    stopped: bool = False
    data: object = None


@dataclass(frozen=True)
class State:
    """What an evidence's folder has. `begun` is the part that was being taken when its
    process ended, or None.
    """

    folder: Path
    device: str
    machine: dict
    taken: dict[str, Taken] = field(default_factory=dict)
    begun: str | None = None

    def beginning(self, name: str) -> State:
        """With the part begun, and stored so."""
        return replace(self, begun=name)._stored()

    def ending(self, name: str, taken: Taken) -> State:
        """With the part taken, and stored so."""
        return replace(self, begun=None, taken={**self.taken, name: taken})._stored()

    def is_missing(self, name: str) -> bool:
        """Whether a part is still to be taken: it was not, or Ctrl-C stopped it."""
        return name not in self.taken or self.taken[name].stopped

    def _stored(self) -> State:
        parts = {name: asdict(taken) for name, taken in self.taken.items()}
        if self.begun:
            parts[self.begun] = {"begun": True}
        document = {
            "format": _FORMAT,
            "device": self.device,
            "machine": self.machine,
            "parts": parts,
        }
        write_whole(
            self.folder / FILE_NAME, json.dumps(document, indent=1, ensure_ascii=False)
        )
        return self


def opened(folder: Path, device: str, machine: dict) -> State:
    """The state of a folder, which is made where it is not there.

    Raises:
        UsageError: if it can't be written, or has evidence of another machine, device
        or revision.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"can't write to {folder} ({error.strerror}): name another folder with OUT="
        ) from error
    path = folder / FILE_NAME
    if not path.exists():
        if any(folder.iterdir()):
            raise UsageError(
                f"{folder} has files and no {FILE_NAME}: name another folder with OUT="
            )
        return State(folder, device, machine)
    document = _read(path)
    with blamed_on(path):
        state = _parsed(folder, document)
    if why := _why_another(state, device, machine):
        raise UsageError(
            f"{folder} has evidence of another {why}: name another folder with OUT="
        )
    return state


def _read(path: Path) -> dict:
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise DamagedFile(
            f"{path} is not of format {_FORMAT}: name another folder with OUT="
        )
    return document


def _parsed(folder: Path, document: dict) -> State:
    parts = document["parts"]
    begun = next((name for name, part in parts.items() if part.get("begun")), None)
    taken = {name: Taken(**part) for name, part in parts.items() if name != begun}
    return State(folder, document["device"], document["machine"], taken, begun)


def _why_another(state: State, device: str, machine: dict) -> str | None:
    """What of the state is of elsewhere, in words, or None."""
    for what, theirs, ours in (
        ("device", state.device, device),
        ("machine", state.machine["device_name"], machine["device_name"]),
        (
            "revision",
            state.machine["revision"]["commit"],
            machine["revision"]["commit"],
        ),
    ):
        if theirs != ours:
            return f"{what} ({theirs}, and this is {ours})"
    return None
