"""The history of a machine's runs as it is stored: one file per device, one line per
run.

`<device>.jsonl` holds a JSON object a line, with the fields of
Entry and a "format".
"""

from __future__ import annotations

import datetime
import json
import math
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.folders import HISTORY
from batchline.bench.statuses import MEASURED, is_machines_fault, parse_case_id
from batchline.bench.store.records import Record, Run

TOOLCHAIN = ("torch", "triton", "numba", "numba-cuda")
_UNKNOWN = "unknown"
# Of the cases: where the machine was at fault so often, it was not itself for the others
# either.
_MOST_DISTURBED = 0.1
FORMAT = 1
ENDING = ".jsonl"


def identity(machine: Mapping) -> dict[str, str]:
    """The hardware and driver of a run's machine, name → value; the threads of torch
    count where a CPU is timed.
    """
    gpu = machine.get("gpu")
    facts = {
        "CPU": str(machine.get("cpu", _UNKNOWN)),
        "timed on": str(machine.get("device_name", _UNKNOWN)),
    }
    if gpu:
        facts |= {
            "GPU": str(gpu.get("name", _UNKNOWN)),
            "GPU memory": _gibibytes(gpu.get("memory_bytes")),
            "driver": str(gpu.get("driver", _UNKNOWN)).partition(".")[0],
        }
    if machine.get("device") != "cuda":
        facts["threads"] = str(machine.get("cpu_threads_of_torch", _UNKNOWN))
    return facts


def toolchain(machine: Mapping) -> dict[str, str]:
    """The versions of what compiles the kernels, package → version."""
    versions = machine.get("versions", {})
    return {name: str(versions.get(name, _UNKNOWN)) for name in TOOLCHAIN}


def method(machine: Mapping) -> dict[str, str]:
    """How a run's times were taken, besides its clock: the digest of the harness
    (bench.measure.method), and the Python that it ran in.
    """
    python = str(machine.get("python", _UNKNOWN))
    return {
        "harness": str(machine.get("harness", _UNKNOWN)),
        "Python": ".".join(python.split(".")[:2]),
    }


def sm_mhz(facts: Mapping) -> float | None:
    """The middle of the SM clocks seen while a case's problem was timed; None on a CPU
    and where it is unknown.

    A CPU's clock is not used: the mean over its cores counts those that idle.
    """
    after = (facts.get("state") or {}).get("after") or {}
    seen = after.get("sm_mhz_seen")
    return statistics.mean(seen) if seen else None


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Each fact that is not the same on both sides: "torch 2.12.0 → 2.13.0"."""
    return [
        f"{name} {a.get(name, 'none')} → {b.get(name, 'none')}"
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    ]


def machine_differences(a: Mapping, b: Mapping) -> list[str]:
    """The differences of two runs' machines, hardware and toolchain."""
    return [
        *differences(identity(a), identity(b)),
        *differences(toolchain(a), toolchain(b)),
    ]


def _gibibytes(size_bytes: float | None) -> str:
    """To whole GiB: the driver keeps some, and not always as much."""
    return f"{size_bytes / 2 ** 30:.0f} GiB" if size_bytes else _UNKNOWN


def why_made_up(machine: Mapping) -> str | None:
    """Why times of this machine (bench.measure.machine.environment) mean nothing, or
    None: it was the stand-in for a GPU.
    """
    return machine.get("stand_in")


def why_unusable(run: Run, made_up_too: bool = False) -> str | None:
    """Why the run's times may not be built upon, or None: its GPU was a stand-in, it
    was stopped, or the machine was busy or throttled in many of its cases. With
    `made_up_too` the times of a stand-in are accepted.
    """
    if not made_up_too and (why := why_made_up(run.machine)):
        return why
    if run.partial:
        return "it was stopped before its end"
    disturbed = sum(
        is_machines_fault(record.status, record.reason) for record in run.records
    )
    timed = disturbed + sum(record.status == MEASURED for record in run.records)
    if disturbed > _MOST_DISTURBED * timed:
        return f"the machine was busy or throttled during {disturbed} of {timed} cases"
    return None


@dataclass(frozen=True)
class Entry:
    """One run in a history.

    `when` is ISO 8601; `dirty` whether the sources differed from `commit` (None: not
    known). `machine`, `toolchain` and `method` are as `identity`, `toolchain` and
    `method` give them; entries of before have no method. `cases` is case id → {"clock",
    "median_s", "first_quartile_s", "third_quartile_s", "peak_bytes", "error",
    "error_of_tolerance", "sm_mhz"}; what was not counted is None, and entries of before
    have no "sm_mhz".
    """

    when: str
    commit: str
    dirty: bool | None
    profile: str
    machine: Mapping[str, str]
    toolchain: Mapping[str, str]
    cases: Mapping[str, Mapping]
    method: Mapping[str, str] = field(default_factory=dict)


def append(run: Run, folder: Path = HISTORY) -> Path | None:
    """Add a run to its device's history; returns the file, or None where nothing was
    timed or it can't be built upon.

    One write at the end of the file, so that two runs that end together keep both their
    lines. A line that a killed writer has left torn is closed first: it spoils itself
    and no other.

    Raises:
        UsageError: if the file can't be written.
    """
    from batchline.kernels.device_names import (
        slug,  # imports torch, which reading a history does without
    )

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
        run.started,
        revision["commit"],
        revision["dirty"],
        run.plan.profile,
        identity(run.machine),
        toolchain(run.machine),
        {
            record.id: _facts(record)
            for record in run.records
            if record.status == MEASURED and 0 < record.median_s < math.inf
        },
        method(run.machine),
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
        "sm_mhz": sm_mhz(record.facts),
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
    document = {"method": {}, **document}
    entry = Entry(**{one.name: document[one.name] for one in fields(Entry)})
    if not all(
        isinstance(text, str)
        for text in (
            entry.when,
            entry.commit,
            entry.profile,
            *entry.machine.values(),
            *entry.toolchain.values(),
            *entry.method.values(),
        )
    ):
        raise TypeError("not all text is text")
    datetime.datetime.fromisoformat(entry.when)
    for case, facts in entry.cases.items():
        parse_case_id(case)
        if not (isinstance(facts["clock"], str) and 0 < facts["median_s"] < math.inf):
            raise ValueError("no time")
        if not (facts.get("sm_mhz") is None or 0 < facts["sm_mhz"] < math.inf):
            raise ValueError("no clock")
    return entry
