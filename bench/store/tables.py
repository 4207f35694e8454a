"""Rows of runs as files: CSV, SQLite, Parquet; and as what other tools for benchmarks
read: Bencher, github-action-benchmark, asv.
"""

from __future__ import annotations

import csv
import io
import re
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.store import files, rows
from batchline.bench.store.rows import Column

SAMPLES_SUFFIX = "-samples"  # of the second file, where a format has one table
_TYPES = {str: "TEXT", int: "INTEGER", bool: "INTEGER", float: "REAL"}
_PANDAS_TYPES = {str: "string", int: "Int64", bool: "boolean", float: "Float64"}
_ASV_VERSION = 2  # of its files of results, by their api_version
_WHY_NO_FRAME = (
    "pandas is missing, and Parquet's library pyarrow may be too: `pip install pandas "
    "pyarrow`, or write .csv or .db, which need neither"
)


def write_csv(path: Path, cases: Sequence[dict], samples: Sequence[dict]) -> list[Path]:
    """`path` with the cases, and a second file with the samples."""
    beside = path.with_name(f"{path.stem}{SAMPLES_SUFFIX}{path.suffix}")
    return [
        files.write_whole(path, _csv(rows.CASES, cases)),
        files.write_whole(beside, _csv(rows.SAMPLES, samples)),
    ]


def _csv(columns: Sequence[Column], table: Iterable[dict]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, [one.name for one in columns], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()


def write_sqlite(
    path: Path, cases: Sequence[dict], samples: Sequence[dict]
) -> list[Path]:
    """A database with the tables `cases` and `samples`, which replaces the file."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    with sqlite3.connect(unfinished) as database:
        for name, columns, table in (
            ("cases", rows.CASES, cases),
            ("samples", rows.SAMPLES, samples),
        ):
            _fill(database, name, columns, table)
    database.close()
    unfinished.replace(path)
    return [path]


def _fill(database, name: str, columns: Sequence[Column], table: Sequence[dict]):
    declared = ", ".join(f'"{one.name}" {_TYPES[one.kind]}' for one in columns)
    marks = ", ".join("?" * len(columns))
    database.execute(f'CREATE TABLE "{name}" ({declared})')
    database.executemany(
        f'INSERT INTO "{name}" VALUES ({marks})', (tuple(row.values()) for row in table)
    )


def write_parquet(
    path: Path, cases: Sequence[dict], samples: Sequence[dict]
) -> list[Path]:
    """`path` with the cases, and a second file with the samples."""
    beside = path.with_name(f"{path.stem}{SAMPLES_SUFFIX}{path.suffix}")
    try:
        frame_of(rows.CASES, cases).to_parquet(path, index=False)
        frame_of(rows.SAMPLES, samples).to_parquet(beside, index=False)
    except ImportError as error:
        raise UsageError(_WHY_NO_FRAME) from error
    return [path, beside]


def frame_of(columns: Sequence[Column], table: Iterable[dict]):
    """A pandas.DataFrame, with types that know a missing value.

    Raises:
        UsageError: if pandas is missing.
    """
    try:
        import pandas
    except ImportError as error:
        raise UsageError(_WHY_NO_FRAME) from error
    frame = pandas.DataFrame(list(table), columns=[one.name for one in columns])
    return frame.astype({one.name: _PANDAS_TYPES[one.kind] for one in columns})


def _ranked(cases: Iterable[dict]) -> list[dict]:
    return [row for row in cases if row["ranks"]]


def write_bencher(path: Path, cases: Sequence[dict], samples) -> list[Path]:
    """Bencher's Metric Format, for `bencher run --adapter json`: latency in nanoseconds,
    and peak memory in bytes.

    Source of the format: https://bencher.dev/bmf.json.
    """
    document = {}
    for row in _ranked(cases):
        measures = {"latency": _metric(row)}
        if row["peak_bytes"] is not None:
            measures["memory"] = {"value": row["peak_bytes"]}
        document[row["case"]] = measures
    return [files.write_json(path, document)]


def _metric(row: Mapping) -> dict:
    ends = {"value": row["median_s"]}
    if row["low_s"] is not None:
        ends |= {"lower_value": row["low_s"], "upper_value": row["high_s"]}
    return {name: 1e9 * seconds for name, seconds in ends.items()}


def write_action(path: Path, cases: Sequence[dict], samples) -> list[Path]:
    """For github-action-benchmark with `tool: customSmallerIsBetter`: a list of
    {name, value, unit, range, extra}.
    """
    document = [
        {
            "name": row["case"],
            "value": 1e6 * row["median_s"],
            "unit": "µs",
            "extra": f"by {row['clock']} on {row['device_name']}",
        }
        | (
            {}
            if row["low_s"] is None
            else {"range": f"± {1e6 * (row['high_s'] - row['median_s']):.3g}"}
        )
        for row in _ranked(cases)
    ]
    return [files.write_json(path, document)]


def write_asv(path: Path, cases: Sequence[dict], samples) -> list[Path]:
    """asv's folder of results, as `asv publish` and `asv show` read it: benchmarks.json,
    and for each device machine.json and a file for each commit.

    A benchmark is an op, variant, scenario and dtype; its parameter is the batch.
    """
    ranked = _ranked(cases)
    by_name: dict[str, set[int]] = {}
    for row in ranked:
        by_name.setdefault(_asv_name(row), set()).add(row["batch"])
    batches = {name: sorted(some) for name, some in by_name.items()}
    written = [
        files.write_json(path / "benchmarks.json", _asv_benchmarks(batches)),
    ]
    for device in dict.fromkeys(row["device_name"] for row in ranked):
        own = [row for row in ranked if row["device_name"] == device]
        machine = _slug(device)
        (path / machine).mkdir(exist_ok=True)
        about = {"machine": machine, "version": 1, "cpu": device}
        written.append(files.write_json(path / machine / "machine.json", about))
        for commit in dict.fromkeys(row["commit"] for row in own):
            of_commit = [row for row in own if row["commit"] == commit]
            written.append(_write_asv_results(path, machine, of_commit, batches))
    return written


def _asv_name(row: Mapping) -> str:
    return ".".join(row[name] for name in ("op", "variant", "scenario", "dtype"))


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _asv_benchmarks(batches: Mapping[str, Sequence[int]]) -> dict:
    return {
        name: {
            "name": name,
            "type": "time",
            "unit": "seconds",
            "param_names": ["batch"],
            "params": [list(map(str, some))],
            "code": name,
            "version": "1",
            "timeout": 60.0,
        }
        for name, some in batches.items()
    } | {"version": _ASV_VERSION}


def _write_asv_results(
    path: Path,
    machine: str,
    own: Sequence[Mapping],
    batches: Mapping[str, Sequence[int]],
) -> Path:
    """The results of one commit on one machine."""
    first = own[0]
    began = datetime.fromisoformat(first["started"])
    began_ms = int(1000 * began.timestamp())
    medians = {(_asv_name(row), row["batch"]): row for row in own}
    columns = ["result", "params", "version", "started_at", "duration"]
    columns += ["stats_ci_99_a", "stats_ci_99_b"]
    results = {}
    for name in dict.fromkeys(_asv_name(row) for row in own):
        found = [medians.get((name, batch)) for batch in batches[name]]
        times = [row and row["median_s"] for row in found]
        params = [list(map(str, batches[name]))]
        results[name] = [times, params, "1", began_ms, 0.0, None, None]
    commit = first["commit"] or "0" * 40
    environment = f"torch-{first['torch']}"
    document = {
        "commit_hash": commit,
        "env_name": environment,
        "date": began_ms,
        "params": {"machine": machine, "cpu": first["device_name"]},
        "python": "",
        "requirements": {"torch": first["torch"] or ""},
        "env_vars": {},
        "result_columns": columns,
        "results": results,
        "durations": {},
        "version": _ASV_VERSION,
    }
    return files.write_json(
        path / machine / f"{commit[:8]}-{_slug(environment)}.json", document
    )


Writer = Callable[[Path, Sequence[dict], Sequence[dict]], list[Path]]
BY_SUFFIX: dict[str, Writer] = {
    ".csv": write_csv,
    ".db": write_sqlite,
    ".sqlite": write_sqlite,
    ".parquet": write_parquet,
}
FOR_TOOLS: dict[str, Writer] = {
    "bencher": write_bencher,
    "github-action-benchmark": write_action,
    "asv": write_asv,
}
