"""Stored runs and studies: run.json and study.json, read in any of their formats and
written in the present one.

A run is also written as pytest-benchmark's own document, which `pytest-benchmark
compare` and all that reads its format take. Its raw data are the run's samples, and its
statistics are pytest-benchmark's of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.statuses import MEASURED
from batchline.bench.store import formats
from batchline.bench.store.files import (
    blamed_on,
    read_json,
    stored_path,
    write_json,
)
from batchline.bench.store.formats import OURS
from batchline.bench.store.records import Record, Run, Study

FILE_NAME, STUDY_FILE_NAME = "run.json", "study.json"
BENCHMARK_FILE_NAME = "benchmark.json"
_FILE, _FUNCTION = "bench/bench_kernels.py", "test_kernel"


def path_in(folder: Path) -> Path:
    """Where a run's folder has the run, which may be compressed."""
    return stored_path(Path(folder) / FILE_NAME)


def study_path_in(folder: Path) -> Path:
    """Where a study's folder has the study, which may be compressed."""
    return stored_path(Path(folder) / STUDY_FILE_NAME)


def _what_is_there(folder: Path) -> str:
    """What a folder without a run has instead, and what reads it; "" for nothing."""
    if study_path_in(folder).exists():
        return " (it is a study: `batchline advise --run` reads it)"
    if (folder / "regress.json").exists():
        return (
            " (it is a session of `batchline regress`: its report is README.md there)"
        )
    return ""


def load(folder: Path) -> Run:
    """The run stored in `folder`. Whoever works on it does so inside
    `blamed_on(path_in(folder))`.

    Raises:
        UsageError: if there is no run.json, or it is not one of ours.
    """
    path = path_in(folder)
    try:
        document = read_json(path)
    except OSError as error:
        raise UsageError(
            f"no run in {folder}: {path.name}: {error.strerror or error}"
            f"{_what_is_there(Path(folder))}"
        ) from error
    with blamed_on(path):
        return parse(document, path)


def parse(document: Mapping, name: object = "the run") -> Run:
    """The run in a document of any of our formats; `name` is what errors call it.

    Raises:
        UsageError: if it is of a newer format.
        ValueError, KeyError, TypeError, AttributeError: if it is not as Batchline
        writes it.
    """
    return _parsed(Run, formats.RUN, document, name)


def save(folder: Path, run: Run) -> Path:
    """Write the run as `folder`/run.json, which appears whole or not at all."""
    return _write(Path(folder) / FILE_NAME, formats.RUN, run)


def load_study(folder: Path) -> Study:
    """The study stored in `folder`, as `load` has a run.

    Raises:
        UsageError: if there is no study.json, or it is not one of ours.
    """
    path = study_path_in(folder)
    try:
        document = read_json(path)
    except OSError as error:
        raise UsageError(f"can't read {path} ({error.strerror})") from error
    with blamed_on(path):
        return _parsed(Study, formats.STUDY, document, path)


def save_study(folder: Path, study: Study) -> Path:
    """Write the study as `folder`/study.json, which appears whole or not at all."""
    return _write(Path(folder) / STUDY_FILE_NAME, formats.STUDY, study)


def rewrite(folder: Path) -> Path:
    """Store what a folder has, a run or a study, in the present format; a compressed
    file stays compressed.

    Raises:
        UsageError: if there is neither, or it can't be read.
        OSError: if it can't be written.
    """
    if study_path_in(folder).exists():
        return _write(study_path_in(folder), formats.STUDY, load_study(folder))
    return _write(path_in(folder), formats.RUN, load(folder))


def _parsed(kind, format_of_kind: formats.Format, document: Mapping, name: object):
    present = format_of_kind.upgrade(document, name)
    present.pop("format", None)
    return formats.from_json(kind, present)


def _write(path: Path, format_of_kind: formats.Format, value: Run | Study) -> Path:
    document = {"format": format_of_kind.number, **formats.to_json(value)}
    return write_json(path, document)


def document_of(run: Run) -> dict:
    """pytest-benchmark's document of the run: a benchmark for each measured case.

    Raises:
        ImportError: if pytest-benchmark is missing.
    """
    header = run.benchmark_header
    return {
        "machine_info": {**header.get("machine_info", {}), OURS: dict(run.machine)},
        "commit_info": header.get("commit_info", {}),
        "benchmarks": [
            _benchmark(record) for record in run.records if record.status == MEASURED
        ],
        "datetime": header.get("datetime", run.started),
        "version": header.get("version", ""),
    }


def _benchmark(record: Record) -> dict:
    from pytest_benchmark.stats import Stats

    stats = Stats()
    for sample in record.samples_s:
        stats.update(sample)
    name = f"{_FUNCTION}[{record.id}]"
    return {
        "group": None,
        "name": name,
        "fullname": f"{_FILE}::{name}",
        "params": {"case_id": record.id},
        "param": record.id,
        "extra_info": dict(record.facts),
        "options": {},
        "stats": {
            **stats.as_dict(),
            "data": list(record.samples_s),
            "iterations": record.iterations,
        },
    }


def save_benchmark_json(folder: Path, run: Run) -> Path:
    """Write the document as `folder`/benchmark.json."""
    return write_json(Path(folder) / BENCHMARK_FILE_NAME, document_of(run))
