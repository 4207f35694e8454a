"""The history of a machine's runs as it is stored: one file per device, one line per
run.

`<device>.jsonl` holds a JSON object a line, with the fields of
bench.verdicts.across_runs.Entry and a "format".
"""

from __future__ import annotations

import datetime
import json
import math
import os
from dataclasses import asdict, fields
from pathlib import Path

from batchline.bench.case_ids import parse_case_id
from batchline.bench.errors import UsageError
from batchline.bench.folders import HISTORY
from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts.across_runs import (
    Entry,
    identity,
    toolchain,
    why_unusable,
)

FORMAT = 1
ENDING = ".jsonl"


def append(run: Run, folder: Path = HISTORY) -> Path | None:
    """Add a run to its device's history; returns the file, or None where nothing was
    timed or it can't be built upon.

    One write at the end of the file, so that two runs that end together keep both their
    lines. A line that a killed writer has left torn is closed first: it spoils itself
    and no other.

    Raises:
        UsageError: if the file can't be written.
    """
    from batchline.kernels.device import (
        slug,
    )  # imports torch, which reading a history does without

    entry = entry_of(run)
    if not entry.cases or why_unusable(run):
        return None
    path = Path(folder) / f"{slug(run.machine['device_name'])}{ENDING}"
    line = (
        json.dumps(
            {"format": FORMAT, **asdict(entry)}, ensure_ascii=False, allow_nan=False
        )
        + "\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_line(path, line.encode())
    except OSError as error:
        raise UsageError(
            f"can't add the run to {path} ({error.strerror or error}); the run is stored"
        ) from error
    return path


def _write_line(path: Path, line: bytes) -> None:
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            line = b"\n" + line
        if os.write(file, line) != len(line):
            raise OSError("the disk took only a part of the line")
        os.fsync(file)
    finally:
        os.close(file)


def entry_of(run: Run) -> Entry:
    """What a history keeps of a run."""
    revision = run.machine["revision"]
    return Entry(
        run.about["started"],
        revision["commit"],
        revision["dirty"],
        run.about["profile"],
        identity(run.machine),
        toolchain(run.machine),
        {
            record.id: _facts(record)
            for record in run.records
            if record.status == MEASURED and 0 < record.median_s < math.inf
        },
    )


def _facts(record: Record) -> dict:
    first, third = record.quartiles_s
    return {
        "clock": record.facts.get("clock", ""),
        "median_s": record.median_s,
        "first_quartile_s": first,
        "third_quartile_s": third,
        **{
            name: _finite(record.facts.get(name))
            for name in ("peak_bytes", "error", "error_of_tolerance")
        },
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def read(path: Path) -> tuple[list[Entry], list[int]]:
    """The runs in a history, and the numbers of the lines that can't be read.

    Raises:
        UsageError: if the file can't be read at all.
    """
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(f"can't read {path} ({error.strerror})") from error
    entries, damaged = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                entries.append(_entry(json.loads(line)))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                damaged.append(number)
    return entries, damaged


def _entry(document: dict) -> Entry:
    if document["format"] != FORMAT:
        raise ValueError("of another version")
    entry = Entry(**{field.name: document[field.name] for field in fields(Entry)})
    if not all(
        isinstance(text, str)
        for text in (
            entry.when,
            entry.commit,
            entry.profile,
            *entry.machine.values(),
            *entry.toolchain.values(),
        )
    ):
        raise TypeError("not all text is text")
    datetime.datetime.fromisoformat(entry.when)
    for case, facts in entry.cases.items():
        parse_case_id(case)
        if not (isinstance(facts["clock"], str) and 0 < facts["median_s"] < math.inf):
            raise ValueError("no time")
    return entry
