"""Stored runs as files for others: each is read back by what it is made for, and equals
the run.
"""

import csv
import dataclasses
import json
import sqlite3
import statistics

import pytest
from jsonschema import validate

import batchline
from batchline.bench.commands import export as command
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.folders import EVIDENCE
from batchline.bench.statuses import FAILED, MEASURED
from batchline.bench.store import rows, run_json
from batchline.bench.store.records import Record, Run
from batchline.places import CODE

STORED = CODE / EVIDENCE / "2026-11-29-100746-amd-epyc-25-17-avx-512"
CASE = "bmm/torch_bmm/tiny_16/float32/B4"
# https://bencher.dev/bmf.json
BENCHER = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "additionalProperties": {
            "type": "object",
            "properties": {
                name: {"type": "number"}
                for name in ("value", "lower_value", "upper_value")
            },
            "required": ["value"],
        },
    },
}


def a_run(**changes):
    facts = {
        "clock": "host",
        "backend": "torch",
        "is_baseline": True,
        "peak_bytes": 4096,
        "flops": 32768,
        "config": {"b": 2, "a": 1},
        "clocks": {
            "host": {
                "median_s": 2.5e-6,
                "precision": 0.02,
                "samples": 8,
                "iterations": 7,
            },
            "host_cold": {"median_s": 9e-6, "precision": 0.1, "samples": 4},
            "graph": {"error": "no"},
        },
    }
    samples = (1e-6, 2e-6, 2e-6, 2e-6, 3e-6, 3e-6, 3e-6, 4e-6)
    records = (
        Record(
            "bmm", "torch_bmm", "tiny_16", "float32", 4, MEASURED, "", samples, 7, facts
        ),
        Record(
            "bmm",
            "mine",
            "tiny_16",
            "float32",
            4,
            FAILED,
            "no /home/me/secret/a.py, at ~/x/y.py:3, 3/4 of bmm/mine",
        ),
    )
    made = {
        "records": records,
        "started": "2026-01-02T03:04:05+00:00",
        "machine": {
            "device": "cpu",
            "device_name": "Some CPU",
            "versions": {"torch": "2.13.0"},
            "revision": {"commit": "ab" * 20, "dirty": True},
        },
        "benchmark_header": {"machine_info": {"node": "my-laptop"}},
    }
    return Run(**made | changes)


@pytest.fixture
def folder(tmp_path):
    stored = tmp_path / "the-run"
    stored.mkdir()
    run_json.save(stored, a_run())
    return stored


def export(*words):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(list(map(str, words))))


def test_a_row_for_each_clock_and_one_for_a_case_without_a_time():
    host, cold, failed = rows.case_rows(a_run(), "the-run")
    assert (host["case"], host["clock"], host["ranks"]) == (CASE, "host", True)
    assert host["median_s"] == 2.5e-6
    assert host["low_s"] == pytest.approx(1e-6) and host["high_s"] == pytest.approx(
        4e-6
    )
    assert (host["samples"], host["iterations"]) == (8, 7)
    assert host["config"] == '{"a": 1, "b": 2}'
    assert (cold["clock"], cold["ranks"], cold["median_s"]) == (
        "host_cold",
        False,
        9e-6,
    )
    assert cold["low_s"] == pytest.approx(8.1e-6)
    assert failed["clock"] is None and failed["status"] == FAILED
    assert {row["commit"] for row in (host, failed)} == {"ab" * 20}


def test_names_of_hosts_and_paths_stay_here_unless_asked_for():
    *_, failed = rows.case_rows(a_run(), "the-run")
    assert failed["host"] is None
    assert failed["reason"] == "no …/a.py, at …/y.py:3, 3/4 of bmm/mine"
    *_, failed = rows.case_rows(a_run(), "the-run", with_host=True)
    assert failed["host"] == "my-laptop" and "/home/me/secret" in failed["reason"]


def test_each_row_has_every_column_and_no_other():
    names = [column.name for column in rows.CASES]
    assert all(list(row) == names for row in rows.case_rows(a_run(), "x"))
    names = [column.name for column in rows.SAMPLES]
    assert all(list(row) == names for row in rows.sample_rows(a_run(), "x"))


def test_csv_is_read_back(folder, tmp_path, capsys):
    assert export(folder, "--to", tmp_path / "runs.csv") == ExitCode.CLEAN
    assert "1 cases by 2.0 clocks, 8 samples, of 1 run" in capsys.readouterr().out
    with (tmp_path / "runs.csv").open() as file:
        host, cold, failed = csv.DictReader(file)
    assert float(host["median_s"]) == 2.5e-6 and host["dirty"] == "True"
    assert failed["median_s"] == "" and failed["variant"] == "mine"
    with (tmp_path / "runs-samples.csv").open() as file:
        times = [float(row["time_s"]) for row in csv.DictReader(file)]
    assert times == list(a_run().records[0].samples_s)


def test_sqlite_answers_queries(folder, tmp_path):
    path = tmp_path / "runs.db"
    path.write_bytes(b"what was there before")
    assert export(folder, folder, "--to", path) == ExitCode.CLEAN
    with sqlite3.connect(path) as database:
        found = database.execute(
            "SELECT batch, median_s, typeof(median_s), dirty FROM cases "
            "WHERE ranks AND variant = 'torch_bmm'"
        ).fetchall()
        (count,) = database.execute("SELECT count(*) FROM samples").fetchone()
    assert found == [(4, 2.5e-6, "real", 1)] * 2 and count == 16


def test_bencher_takes_its_file(folder, tmp_path):
    path = tmp_path / "bencher.json"
    assert export(folder, "--to", path, "--for", "bencher") == ExitCode.CLEAN
    document = json.loads(path.read_text())
    validate(document, BENCHER)
    assert document[CASE]["latency"]["value"] == pytest.approx(2500)
    assert document[CASE]["memory"] == {"value": 4096}


def test_github_action_benchmark_takes_its_file(folder, tmp_path):
    """Its reader takes name, value, unit, range and extra of each entry of a list."""
    path = tmp_path / "action.json"
    assert (
        export(folder, "--to", path, "--for", "github-action-benchmark")
        == ExitCode.CLEAN
    )
    (entry,) = json.loads(path.read_text())
    assert (entry["name"], entry["unit"], entry["range"]) == (CASE, "µs", "± 1.5")
    assert entry["value"] == pytest.approx(2.5)
    assert entry["extra"] == "by host on Some CPU"


def test_asv_reads_its_folder(folder, tmp_path):
    results = pytest.importorskip("asv.results")
    into = tmp_path / "asv"
    assert export(folder, "--to", into, "--for", "asv") == ExitCode.CLEAN
    (read,) = results.iter_results(str(into))
    name = "bmm.torch_bmm.tiny_16.float32"
    assert read.commit_hash == "ab" * 20
    assert list(read.get_all_result_keys()) == [name]
    assert read.get_result_params(name) == [["4"]]
    assert read.get_result_value(name, [["4"]]) == [2.5e-6]


def test_the_files_for_asv_name_each_other(folder, tmp_path):
    into = tmp_path / "asv"
    export(folder, "--to", into, "--for", "asv")
    benchmarks = json.loads((into / "benchmarks.json").read_text())
    (machine,) = into.glob("*/machine.json")
    (results,) = into.glob("*/*-torch-2-13-0.json")
    document = json.loads(results.read_text())
    assert machine.parent == results.parent
    assert set(document["results"]) <= set(benchmarks)
    assert document["result_columns"][:2] == ["result", "params"]


def test_a_frame_has_the_run():
    pandas = pytest.importorskip("pandas")
    frame = a_run().frame("the-run")
    assert list(frame.columns) == [column.name for column in rows.CASES]
    assert frame["batch"].tolist() == [4, 4, 4]
    assert frame["median_s"].isna().tolist() == [False, False, True]
    assert isinstance(frame, pandas.DataFrame)


def test_parquet_is_read_back(folder, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    assert export(folder, "--to", tmp_path / "runs.parquet") == ExitCode.CLEAN
    frame = pandas.read_parquet(tmp_path / "runs.parquet")
    pandas.testing.assert_frame_equal(frame, a_run().frame("the-run"))


def test_without_pandas_a_line_says_what_to_do(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UsageError, match="pip install pandas"):
        a_run().frame()


def test_a_stored_run_comes_back_as_it_is(tmp_path):
    assert export(STORED, "--to", tmp_path / "runs.db") == ExitCode.CLEAN
    run = batchline.load(STORED)
    with sqlite3.connect(tmp_path / "runs.db") as database:
        medians = dict(
            database.execute('SELECT "case", median_s FROM cases WHERE ranks')
        )
        times = database.execute('SELECT "case", time_s FROM samples ORDER BY rowid')
        samples = {}
        for case, time_s in times:
            samples.setdefault(case, []).append(time_s)
    measured = {one.id: one for one in run.records if one.status == MEASURED}
    assert samples == {name: list(one.samples_s) for name, one in measured.items()}
    assert medians.keys() == measured.keys()
    for name, one in measured.items():
        assert medians[name] == pytest.approx(statistics.median(one.samples_s))


@pytest.mark.parametrize(
    "words, said",
    [
        (("--to", "x.xls"), "its ending says the format"),
        (("--to", "x.json", "--for", "bencer"), "did you mean bencher"),
    ],
)
def test_an_unknown_format_is_named(folder, words, said):
    with pytest.raises(UsageError, match=said):
        export(folder, *words)


def test_a_run_without_times_is_said(tmp_path, capsys):
    record = dataclasses.replace(a_run().records[1])
    run_json.save(tmp_path, a_run(records=(record,)))
    code = export(tmp_path, "--to", tmp_path / "x.csv")
    assert code == ExitCode.NOT_MEASURED
    assert "no case of these runs was timed" in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_the_columns_are_documented():
    text = (CODE / "reports/methodology/formats.md").read_text()
    for column in (*rows.CASES, *rows.SAMPLES):
        assert f"| `{column.name}` |" in text, column.name
        assert f"| {column.what} |" in text, column.what
