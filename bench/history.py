"""The history of a machine's runs: a file a device, a line a run, and what `bench
history` says of it.

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
from batchline.bench.report import figures
from batchline.bench.report import over_time as report
from batchline.bench.report.document import unique
from batchline.bench.selection import selected
from batchline.bench.statuses import MEASURED
from batchline.bench.store.files import blamed_on
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import across_runs
from batchline.bench.verdicts.across_runs import (
    Entry,
    identity,
    toolchain,
    why_unusable,
)

DEFAULT_FOLDER = Path("reports", "history")
NO_HISTORY = 3
FORMAT = 1
_ENDING = ".jsonl"


def append(run: Run, folder: Path = DEFAULT_FOLDER) -> Path | None:
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
    path = Path(folder) / f"{slug(run.machine['device_name'])}{_ENDING}"
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


def history(
    device: str | None = None,
    k: str = "",
    out: Path | None = None,
    folder: Path = DEFAULT_FOLDER,
) -> int:
    """Print which cases changed when, write a plot a kernel, and CSV files with their
    configuration for Apache Otava.

    Args:
        device: the name of a history's file without its ending; by default all in
        `folder`.
        k: only cases that match (pytest's -k).
        out: where to write; by default a folder beside the history, named as it is.

    Returns:
        0, or 3 where there is no history, or no line in one that can be read.

    Raises:
        UsageError: if there is no such device, no case matches, or a file can't be read
        or written.
    """
    paths = sorted(Path(folder).glob(f"*{_ENDING}"))
    if not paths:
        print(f"no history in {folder}: every `make bench` adds its run")
        return NO_HISTORY
    chosen = [path for path in paths if device in (None, "", path.stem)]
    if not chosen:
        raise UsageError(
            f"no history of {device!r} in {folder}: it has {', '.join(path.stem for path in paths)}"
        )
    shown_runs = 0
    for path in chosen:
        if not path.is_file():
            raise UsageError(f"{path} is not an ordinary file")
        with blamed_on(path):
            shown_runs += _show(
                path, k, Path(out) / path.stem if out else path.with_suffix("")
            )
    return 0 if shown_runs else NO_HISTORY


def _show(path: Path, k: str, out: Path) -> int:
    """Show one file's history; how many runs it has."""
    entries, damaged = read(path)
    cases = unique(case for entry in entries for case in entry.cases)
    groups = across_runs.groups(
        entries, set(selected(cases, k, f"in {path}")) if k and cases else None
    )
    print(report.terminal(path.stem, groups))
    if damaged:
        print(
            f"{path}: passed over what can't be read: line {', '.join(map(str, damaged))}"
        )
    if not entries:
        return 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        missing = figures.why_no_plots()
        for number, group in enumerate(groups, 1):
            place = out / report.folder_name(group, number, groups)
            place.mkdir(exist_ok=True)
            report.write_otava(group, place)
            if not missing:
                report.draw(path.stem, group, place)
    except OSError as error:
        raise UsageError(
            f"can't write to {out} ({error.strerror}): name another folder with OUT="
        ) from error
    print(f"{f'no plots: {missing}; ' if missing else 'plots and '}CSV: {out}")
    return len(entries)
