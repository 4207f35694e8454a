"""The export for pytest-benchmark: its own tool reads it, and its data are the samples."""

import json
import statistics
import subprocess
import sys

import pytest

from batchline.bench.store import run_json
from batchline.bench.store.records import Record
from tests.runs import run_of
from tests.test_records import document

SAMPLES_S = (4.123456789012345e-6, 0.1 + 0.2, 3e-6, 1 / 3)


def test_pytest_benchmark_compares_it(tmp_path):
    run = run_json.parse(document())
    path = run_json.save_benchmark_json(tmp_path, run)
    other = tmp_path / "other.json"
    other.write_bytes(path.read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pytest_benchmark", "compare", str(path), str(other)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "test_kernel[bmm/torch_bmm/tiny_16/float32/B4]" in done.stdout


def test_its_data_are_the_samples_and_its_statistics_are_of_them():
    record = Record("o", "v", "s", "d", 1, "measured", "", SAMPLES_S, 7, {"clock": "c"})
    refused = Record("o", "v", "s", "d", 2, "failed", "no")
    document_of_it = run_json.document_of(run_of(records=[record, refused]))
    (benchmark,) = document_of_it["benchmarks"]
    stats = benchmark["stats"]
    assert tuple(stats["data"]) == SAMPLES_S and stats["iterations"] == 7
    assert stats["median"] == statistics.median(SAMPLES_S)
    assert stats["rounds"] == 4 and stats["min"] == 3e-6
    assert stats["mean"] == pytest.approx(sum(SAMPLES_S) / 4)
    assert benchmark["param"] == record.id and benchmark["extra_info"] == {"clock": "c"}
    assert json.loads(json.dumps(document_of_it)) == document_of_it


def test_the_machine_is_described_in_its_words_and_ours():
    old = document()
    old["machine_info"]["cpu"] = {"brand_raw": "Some CPU"}
    made = run_json.document_of(run_json.parse(old))
    assert made["machine_info"] == old["machine_info"]
    assert made["commit_info"] == {} and made["version"] == "5.3.1"
    assert made["datetime"] == old["datetime"]
