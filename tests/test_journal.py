"""The journal: what is written is what is read, whatever end it came to."""

import json
import os

import pytest

from batchline.bench import journal, publishing, records
from batchline.bench.journal import Journal
from batchline.bench.records import MEASURED, NOT_REACHED, OURS
from batchline.bench.stored_files import DamagedFile
from tests.test_records import document

WHOLE = document()
RUN = {name: part for name, part in WHOLE.items() if name not in ("benchmarks", OURS)}
ABOUT = {name: part for name, part in WHOLE[OURS].items() if name != "cases"}
IDS = [case["id"] for case in WHOLE[OURS]["cases"]]


@pytest.fixture
def begun(tmp_path):
    made = Journal(tmp_path, {"audit": [], "compiled": []})
    made.begin(RUN, ABOUT)
    made.add(planned=IDS)
    yield made
    made.close()


def _measure_first(begun):
    begun.add(case=IDS[0], status=MEASURED, reason="", benchmark=WHOLE["benchmarks"][0])


def test_what_was_measured_when_it_was_killed_is_a_run_and_the_rest_was_not_reached(
    begun, tmp_path
):
    _measure_first(begun)
    records.save(tmp_path, journal.read(tmp_path))
    run = records.load(tmp_path)
    assert [(record.id, record.status) for record in run.records] == [
        (IDS[0], MEASURED),
        (IDS[1], NOT_REACHED),
    ]
    assert (
        run.records[0].samples_s == (4e-6, 2e-6, 3e-6, 1e-6)
        and run.records[1].reason == "the run ended before it"
    )
    assert (
        run.about["partial"]
        and run.about["audit"] == []
        and run.about["format"] == records.FORMAT
    )


def test_a_damaged_run_beside_its_journal_says_how_it_is_made_anew(begun, tmp_path):
    _measure_first(begun)
    path = records.path_in(tmp_path)
    path.write_text("{")
    with pytest.raises(
        DamagedFile,
        match="run.json is damaged: .*; its journal.jsonl has all .*: remove run.json, ",
    ):
        publishing.recovered(tmp_path)
    path.unlink()
    assert publishing.recovered(tmp_path).records[0].id == IDS[0] and path.exists()


def test_the_run_of_a_journal_is_the_same_from_its_file_and_from_memory(
    begun, tmp_path
):
    _measure_first(begun)
    begun.add(about={"partial": False, "compiled": [{"variant": ("a", float("inf"))}]})
    assert journal.read(tmp_path) == begun.document()
    assert begun.document()[OURS]["compiled"] == [{"variant": ["a", float("inf")]}]
    assert not begun.document()[OURS]["partial"]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_costs_itself(begun, tmp_path, cut):
    _measure_first(begun)
    before = journal.read(tmp_path)
    begun.add(about={"audit": ["µ" * 20]})
    path = tmp_path / journal.FILE_NAME
    path.write_bytes(path.read_bytes()[:-cut])
    after = journal.read(tmp_path)
    assert (
        after == before or cut == 1 and after == begun.document()
    )  # its line break is no part of a line


def test_text_that_can_not_be_encoded_or_printed_is_cleaned_on_the_way(begun, tmp_path):
    begun.add(case=IDS[0], status="failed", reason="\ud800 ::error::x \x1b[31m")
    assert journal.read(tmp_path)[OURS]["cases"][0]["reason"] == "\ufffd : :error::x "


def test_what_its_disk_does_not_take_is_kept_said_once_and_written_when_it_does(
    begun, tmp_path, monkeypatch, capsys
):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        _measure_first(begun)
        begun.add(about={"audit": [1]})
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "No space left on device): what is measured from here on is kept in memory"
        in line
    )
    assert not journal.read(tmp_path)["benchmarks"] and begun.document()["benchmarks"]
    begun.add(about={"partial": False})
    assert journal.read(tmp_path) == begun.document()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is damaged, or of another version"),
        ("nonsense\n", "is damaged, or of another version"),
        ("[1]\n{}\n", "is damaged, or of another version"),
        ('{"format": 99}\n', "is of format 99, and this Batchline reads 1"),
        ('{"format": 1}\n', "is damaged, or of another version"),
        (
            '{"format": 1, "run": {}, "about": {}}\n{"about": [1]}\n',
            "is damaged, or of another version",
        ),
        (
            '{"format": 1, "run": {}, "about": {}}\n{"planned": ["a/b"], "at_s": 1}\n',
            "is damaged, or of another version",
        ),
    ],
)
def test_what_is_no_journal_is_refused_in_a_line(tmp_path, text, words):
    (tmp_path / journal.FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=words) as refused:
        journal.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_run_of_a_newer_format_is_refused(tmp_path):
    newer = document()
    newer[OURS]["format"] = records.FORMAT + 1
    (tmp_path / records.FILE_NAME).write_text(json.dumps(newer))
    with pytest.raises(ValueError, match="use a newer one"):
        records.load(tmp_path)
