"""A run as pytest-benchmark's own document, which `pytest-benchmark compare` and all
that reads its format take.

Its raw data are the run's samples, and its statistics are pytest-benchmark's of them.
"""

from __future__ import annotations

from pathlib import Path

from batchline.bench.statuses import MEASURED
from batchline.bench.store.files import write_json
from batchline.bench.store.formats import OURS
from batchline.bench.store.records import Record, Run

FILE_NAME = "benchmark.json"
_FILE, _FUNCTION = "bench/bench_kernels.py", "test_kernel"


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


def save(folder: Path, run: Run) -> Path:
    """Write the document as `folder`/benchmark.json."""
    return write_json(Path(folder) / FILE_NAME, document_of(run))
