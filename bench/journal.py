"""The journal of a run: a line for each thing that was measured, written as it is
measured; run.json is made from it.

`journal.jsonl` holds a JSON object a line. The first is {"format", "run", "about"}:
pytest-benchmark's document without its benchmarks, and our part as far as it is known
at the start. Any other has one or more of
    "planned"   the ids of cases that will be measured
    "along"     those of them that are measured only because others are compared with
    them
    "case"      the id of one that is done, with its "status" and "reason", and the
    "benchmark" of one that was measured "about"     what replaces entries of our part
and "at_s", the seconds since the run's start. A line that is cut, as by a kill, is
passed over.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchline.bench import records, texts
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.records import NOT_REACHED, OURS, parse_case_id
from batchline.bench.stopping import put_off
from batchline.bench.stored_files import DamagedFile, blamed_on

FILE_NAME = "journal.jsonl"
FORMAT = 1
_SYNC_EVERY_S = 1.0  # a kill costs nothing that was written; only a machine that fails can take this much


class Journal:
    """Writes a run's journal. What its file does not take is kept, and tried again with
    the next entry.

    `about` are entries of our part that every run has from its beginning.
    """

    def __init__(self, folder: Path, about: Mapping, now=time.monotonic):
        self.path = Path(folder) / FILE_NAME
        self._about = about
        self._now = now
        self._started_s = self._synced_s = now()
        self._entries: list[Mapping] = []
        self._unwritten = b""
        self._has_failed = False
        self._file: int | None = None

    def begin(self, run: Mapping, about: Mapping) -> None:
        """The first entry: pytest-benchmark's document without its benchmarks, and our
        part as it begins.
        """
        self.add(
            format=FORMAT,
            run=run,
            about={**self._about, **about, "format": records.FORMAT, "partial": True},
        )

    def add(self, **entry) -> None:
        """One more entry; its texts are cleaned on the way. Never raises OSError."""
        entry["at_s"] = round(self._now() - self._started_s, 3)
        line = json.dumps(
            texts.cleaned(entry),
            separators=(",", ":"),
            ensure_ascii=False,
            default=texts.clean_line,
        )
        with put_off():
            self._entries.append(json.loads(line))
            self._unwritten += line.encode() + b"\n"
            self._write()

    def document(self) -> dict:
        """The run so far, as records.save stores it."""
        return document_of(self._entries)

    def has_begun(self) -> bool:
        return bool(self._entries)

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file)
            os.close(self._file)
            self._file = None

    def discard(self) -> None:
        """Remove it, of a run that has measured nothing."""
        self.close()
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        try:
            if self._file is None:
                self._file = os.open(
                    self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
                )
            while self._unwritten:
                self._unwritten = self._unwritten[
                    os.write(self._file, self._unwritten) :
                ]
            if self._now() - self._synced_s > _SYNC_EVERY_S:
                os.fdatasync(self._file)
                self._synced_s = self._now()
        except OSError as error:
            if not self._has_failed:
                complain(
                    f"can't write to {self.path} ({error.strerror}): what is measured from here on is kept in "
                    "memory, and stored at the end"
                )
            self._has_failed = True


def read(folder: Path) -> dict:
    """The document of the run whose journal is in `folder`, as far as it got.

    Raises:
        UsageError: if there is none, or its first line is not one that Batchline wrote.
    """
    path = Path(folder) / FILE_NAME
    if path.exists() and not path.is_file():
        raise DamagedFile(f"{path} is not an ordinary file")
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(
            f"no journal in {folder}: {error.strerror or error}"
        ) from error
    entries = [entry for entry in map(_entry, lines) if entry is not None]
    with blamed_on(path):
        version = entries[0].get("format")
        if isinstance(version, int) and version != FORMAT:
            raise UsageError(
                f"{path} is of format {version}, and this Batchline reads {FORMAT}"
            )
        return document_of(entries)


def _entry(line: bytes) -> Mapping | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def document_of(entries: Sequence[Mapping]) -> dict:
    """pytest-benchmark's document with our part in it, from a journal's entries."""
    first, *others = entries
    about, benchmarks, outcomes = (
        {**first["about"], "along": [], "compiled_ahead": []},
        [],
        {},
    )
    for entry in others:
        about |= entry.get("about", {})
        about["along"] += entry.get("along", ())
        outcomes |= {
            name: (NOT_REACHED, "the run ended before it")
            for name in entry.get("planned", ())
        }
        if "compiled_ahead" in entry:  # of each of a run's passes
            about["compiled_ahead"].append(entry["compiled_ahead"])
        if "case" in entry:
            outcomes[entry["case"]] = entry["status"], entry["reason"]
        if "benchmark" in entry:
            benchmarks.append(entry["benchmark"])
    about["seconds"] = entries[-1]["at_s"]
    about["cases"] = _in_order(
        [
            {"id": name, "status": status, "reason": reason}
            for name, (status, reason) in outcomes.items()
        ]
    )
    return {**first["run"], "benchmarks": benchmarks, OURS: about}


def _in_order(cases: Sequence[dict]) -> list[dict]:
    """The groups as they first come, each by ascending batch."""
    parts = [parse_case_id(case["id"]) for case in cases]
    groups = [(part["op"], part["scenario"], part["dtype"]) for part in parts]
    place = {group: number for number, group in reversed(list(enumerate(groups)))}
    order = sorted(
        range(len(cases)),
        key=lambda number: (place[groups[number]], parts[number]["batch"]),
    )
    return [cases[number] for number in order]
