"""A run while it goes on, and its journal: a line for each thing that was measured,
written as it is measured; run.json is made from the same.

`journal.jsonl` holds a JSON object a line. The first has the "format" and the "run" as
far as it is known at the start, as fields of bench.store.records.Run. Any other has one
of
    "planned"    the ids of cases that will be measured, and "along" those of them that
                 are measured only because others are compared with them
    "case"       the id of one that is done, with its "status", "reason", "samples_s",
                 "iterations" and "facts", and in a run of several devices its "rank"
    "confirmed"  what bench.running.after_cases says of cases, by id
    "compiled_ahead"  what one of the run's passes has compiled before its first case
    "parts"      what replaces fields of the run
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

from batchline.bench import texts
from batchline.bench.console import complain
from batchline.bench.errors import UsageError
from batchline.bench.statuses import MEASURED, NOT_REACHED, parse_case_id
from batchline.bench.stopping import put_off
from batchline.bench.store import formats, run_json
from batchline.bench.store.files import DamagedFile, blamed_on, save_or_rescue
from batchline.bench.store.records import Record, Run

FILE_NAME = "journal.jsonl"
_SYNC_EVERY_S = 1.0  # a kill costs nothing that was written; only a machine that fails can take this much
_FIELDS = formats.field_types(Run)


class Journal:
    """A journal's file. What it does not take is kept, and tried again with the next
    line.
    """

    def __init__(self, folder: Path, now_s=time.monotonic):
        self.path = Path(folder) / FILE_NAME
        self._now_s = now_s
        self._synced_s = now_s()
        self._unwritten = b""
        self._has_failed = False
        self._file: int | None = None

    def write(self, line: str) -> None:
        """One more line. Never raises OSError."""
        self._unwritten += line.encode() + b"\n"
        try:
            self._write()
        except OSError as error:
            if not self._has_failed:
                complain(
                    f"can't write to {self.path} ({error.strerror}): what is measured from here on is kept in "
                    "memory, and stored at the end"
                )
            self._has_failed = True

    def _write(self) -> None:
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file = os.open(self.path, flags, 0o644)
        while self._unwritten:
            written = os.write(self._file, self._unwritten)
            self._unwritten = self._unwritten[written:]
        if self._now_s() - self._synced_s > _SYNC_EVERY_S:
            os.fdatasync(self._file)
            self._synced_s = self._now_s()

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


class RunBuilder:
    """A run while it goes on. All that is added goes to its journal at once, and comes
    from there as it will be read again.

    Without a `journal` it is in memory alone. `started` is as Run has it.
    """

    def __init__(
        self,
        journal: Journal | None = None,
        started: str = "",
        now_s=time.monotonic,
    ):
        self._journal = journal
        self._started = started
        self._now_s = now_s
        self._started_s = now_s()
        self._state = _State()

    @property
    def has_begun(self) -> bool:
        return self._state.has_begun

    @property
    def records(self) -> tuple[Record, ...]:
        """Every planned case, as far as it is."""
        return self._state.records

    def run(self) -> Run:
        """The run so far: partial until a part says that it is not."""
        return self._state.run()

    def begin(self, **parts) -> None:
        """What is known at the start, by the names of Run's fields."""
        parts = {"started": self._started, "partial": True, **parts}
        self._add(format=formats.JOURNAL.number, run=formats.to_json(parts))

    def add_plan(self, ids: Sequence[str], along: Sequence[str] = ()) -> None:
        """Cases that will be measured; `along` as Run has it."""
        self._add(planned=list(ids), along=list(along))

    def add_outcome(
        self,
        case: str,
        status: str,
        reason: str = "",
        samples_s: Sequence[float] = (),
        iterations: int = 1,
        facts: Mapping = {},
        rank: int | None = None,
    ) -> None:
        """What came of a case. Only one that was measured has samples and facts, only
        one of a run of several devices a rank.
        """
        outcome = {"case": case, "status": status, "reason": reason}
        if rank is not None:
            outcome["rank"] = rank
        if status == MEASURED:
            outcome["samples_s"] = list(samples_s)
            outcome["iterations"] = iterations
            outcome["facts"] = facts
        self._add(**outcome)

    def add_confirmations(self, results: Mapping[str, Mapping]) -> None:
        """What became of gains that were tried again, by case id (bench.running.after_cases)."""
        self._add(confirmed=results)

    def add_compiled_ahead(self, compiled: Mapping) -> None:
        """What a pass of the run has compiled before its first case."""
        self._add(compiled_ahead=compiled)

    def add(self, **parts) -> None:
        """What replaces fields of the run: records, or what JSON has of them."""
        self._add(parts=formats.to_json(parts))

    def close(self) -> None:
        if self._journal:
            self._journal.close()

    def discard(self) -> None:
        """Remove the journal, of a run that has measured nothing."""
        if self._journal:
            self._journal.discard()

    def _add(self, **entry) -> None:
        entry["at_s"] = round(self._now_s() - self._started_s, 3)
        line = json.dumps(
            texts.cleaned(entry),
            separators=(",", ":"),
            ensure_ascii=False,
            default=texts.clean_line,
        )
        with put_off():
            self._state.take(json.loads(line))
            if self._journal:
                self._journal.write(line)


class _State:
    """What the entries of a journal come to."""

    def __init__(self):
        self._parts: dict = {}
        self._cases: dict[str, Record] = {}
        self._along: list[str] = []
        self._compiled_ahead: list[Mapping] = []
        self._seconds = 0.0

    @property
    def has_begun(self) -> bool:
        return bool(self._parts)

    @property
    def records(self) -> tuple[Record, ...]:
        return _in_order(list(self._cases.values()))

    def take(self, entry: Mapping) -> None:
        """One more entry.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: if it is none.
        """
        self._replace(entry.get("run", {}))
        self._replace(entry.get("parts", {}))
        for name in entry.get("planned", ()):
            self._cases[name] = Record(
                **parse_case_id(name),
                status=NOT_REACHED,
                reason="the run ended before it",
            )
        self._along += entry.get("along", ())
        if "compiled_ahead" in entry:
            self._compiled_ahead.append(entry["compiled_ahead"])
        if "case" in entry:
            case = entry["case"]
            self._cases[case] = Record.from_json({**entry, "id": case})
        for case, result in entry.get("confirmed", {}).items():
            self._cases[case] = self._cases[case].confirmed_by(result)
        self._seconds = entry["at_s"]

    def _replace(self, parts: Mapping) -> None:
        for name, value in parts.items():
            if name not in _FIELDS:
                raise TypeError(f"a run has no {name}")
            self._parts[name] = formats.from_json(_FIELDS[name], value)

    def run(self) -> Run:
        parts = {
            "along": tuple(self._along),
            "compiled_ahead": tuple(self._compiled_ahead),
            "seconds": self._seconds,
            **self._parts,
        }
        return Run(**{**parts, "records": self.records})


def read(folder: Path) -> Run:
    """The run whose journal is in `folder`, as far as it got.

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
        _require_format(entries[0], path)
        state = _State()
        for entry in entries:
            state.take(entry)
        return state.run()


def _require_format(first: Mapping, path: Path) -> None:
    """Raise unless a journal's first entry is of the present format. An older one is
    read by the Batchline that wrote it, which makes run.json of it.
    """
    number, present = first["format"], formats.JOURNAL.number
    if number != present:
        raise UsageError(
            f"{path} is of format {number}, and this Batchline reads {present}: "
            "use the one that wrote it"
        )
    if "run" not in first:
        raise KeyError("run")


def _entry(line: bytes) -> Mapping | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _in_order(records: Sequence[Record]) -> tuple[Record, ...]:
    """The groups as they first come, each by ascending batch."""
    places: dict[tuple[str, str, str], int] = {}
    for record in records:
        group = record.op, record.scenario, record.dtype
        places.setdefault(group, len(places))
    return tuple(
        sorted(
            records,
            key=lambda one: (places[one.op, one.scenario, one.dtype], one.batch),
        )
    )


def recover(folder: Path) -> Run:
    """The run in a folder. Where there is only a journal, as of a run that was killed,
    its run.json is made first.

    Raises:
        ValueError: if what there is can't be read.
        OSError: if run.json can't be written.
    """
    has_journal = (folder / FILE_NAME).exists()
    if has_journal and not run_json.path_in(folder).exists():
        store(read(folder), folder)
    try:
        return run_json.load(folder)
    except DamagedFile as damaged:
        if not has_journal:
            raise
        raise DamagedFile(
            f"{damaged}; its {FILE_NAME} has all that was measured: remove {run_json.FILE_NAME}, "
            "and it is made anew from that"
        ) from damaged


def store(run: Run, folder: Path) -> Path:
    """Write the run's run.json into `folder`, or elsewhere where that fails by now;
    returns the folder that has it.

    Raises:
        OSError: if it can be written nowhere.
    """
    return save_or_rescue(lambda place: run_json.save(place, run), folder, "report")
