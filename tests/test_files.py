"""Stored files that may be compressed, and the size of those that are committed."""

import gzip
from pathlib import Path

import pytest

from batchline.bench.errors import UsageError
from batchline.bench.store import files, run_json
from tests.runs import save_document
from tests.test_records import document

EVIDENCE = Path(__file__).resolve().parents[1] / "reports" / "evidence"
MOST_COMMITTED = 6_000_000  # bytes


def test_a_compressed_run_is_read_as_it_was(tmp_path):
    plain = save_document(tmp_path, document())
    run, text = run_json.load(tmp_path), files.read_text(plain)
    compressed = files.compress(plain)
    assert compressed.name == "run.json.gz" and not plain.exists()
    assert run_json.path_in(tmp_path) == compressed
    assert run_json.load(tmp_path) == run and files.read_text(compressed) == text


def test_the_plain_file_goes_first(tmp_path):
    path = tmp_path / "run.json"
    path.write_text("old")
    files.compress(path)
    assert files.stored_path(path).name == "run.json.gz"
    path.write_text("new")
    assert files.stored_path(path) == path


def test_the_folders_below_come_once_each_in_order(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text("{}")
    files.compress(tmp_path / "a" / "run.json")
    (tmp_path / "b" / "run.json.gz").write_bytes(gzip.compress(b"{}"))
    assert files.stored_below(tmp_path, "run.json") == [
        tmp_path / "a" / "run.json.gz",
        tmp_path / "b" / "run.json",
        tmp_path / "c" / "run.json",
    ]


@pytest.mark.parametrize("cut", [1, 12, -9])
def test_a_damaged_compressed_run_is_named(tmp_path, cut):
    path = files.compress(save_document(tmp_path, document()))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UsageError, match="run.json.gz is damaged"):
        run_json.load(tmp_path)


def test_compressing_gives_the_same_bytes_each_time(tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).write_text("the same")
        contents.append(files.compress(tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


def test_every_committed_run_loads():
    paths = files.stored_below(EVIDENCE, run_json.FILE_NAME)
    assert len(paths) >= 2
    for path in paths:
        assert path.suffix == files.COMPRESSED
        assert run_json.load(path.parent).records


def test_what_is_committed_is_small():
    committed = [path for path in EVIDENCE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in committed) <= MOST_COMMITTED
    assert not [path for path in committed if path.suffix == ".svg"]  # PNGs alone
