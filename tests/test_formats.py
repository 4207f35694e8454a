"""The formats of stored documents: older ones are taken on, newer ones are told in a
line.
"""

import json
from pathlib import Path

import pytest

from batchline.bench.errors import UsageError
from batchline.bench.statuses import INVALID, MEASURED
from batchline.bench.store import files, formats, load, run_json
from batchline.bench.store.formats import Format
from batchline.bench.store.records import Run, Study
from tests.about import about_of
from tests.runs import save_document
from tests.test_records import document

EVIDENCE = Path(__file__).resolve().parents[1] / "reports" / "evidence"
STORED = sorted(
    {
        path.parent
        for name in (run_json.FILE_NAME, run_json.STUDY_FILE_NAME)
        for path in EVIDENCE.glob(f"*/{name}*")
    }
)


def test_a_document_goes_through_all_steps_from_its_own_format_on():
    kind = Format(
        3,
        {
            1: lambda old: {"format": 2, "steps": [*old.get("steps", ()), 1]},
            2: lambda old: {"format": 3, "steps": [*old["steps"], 2]},
        },
    )
    assert kind.upgrade({}, "it")["steps"] == [1, 2]
    assert kind.upgrade({"format": 1}, "it")["steps"] == [1, 2]
    assert kind.upgrade({"format": 2, "steps": []}, "it")["steps"] == [2]
    newest = {"format": 3, "steps": []}
    assert kind.upgrade(newest, "it") == newest
    with pytest.raises(UsageError, match="^it is of format 4, and this Batchline"):
        kind.upgrade({"format": 4}, "it")


@pytest.mark.parametrize("number", [0, -1, "1", None, 1.5, []])
def test_a_format_that_is_no_number_is_refused(number):
    with pytest.raises(ValueError, match="its format is"):
        formats.RUN.upgrade({"format": number}, "it")


@pytest.mark.parametrize(
    "kind", [formats.RUN, formats.STUDY, formats.REGRESSION, formats.JOURNAL]
)
def test_every_older_format_has_its_step(kind):
    if kind is not formats.JOURNAL:  # an older journal is refused
        assert sorted(kind.steps) == list(range(1, kind.number))


@pytest.mark.parametrize("name", [run_json.FILE_NAME, run_json.STUDY_FILE_NAME])
def test_a_file_of_a_newer_format_is_told_in_one_line(tmp_path, name):
    (tmp_path / name).write_text('{"format": 99}')
    with pytest.raises(
        UsageError, match=f"{name} is of format 99, .*: use a newer one"
    ):
        load(tmp_path)


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_what_is_kept_as_evidence_is_the_same_in_the_present_format(folder, tmp_path):
    stored = load(folder)
    assert isinstance(stored, Run) and stored.records or isinstance(stored, Study)
    save = run_json.save if isinstance(stored, Run) else run_json.save_study
    save(tmp_path, stored)
    assert load(tmp_path) == stored


@pytest.mark.parametrize("folder", STORED, ids=lambda folder: folder.name)
def test_what_is_kept_as_evidence_is_stored_in_the_present_format(folder):
    for path, kind in (
        (run_json.path_in(folder), formats.RUN),
        (run_json.study_path_in(folder), formats.STUDY),
    ):
        if path.exists():
            assert files.read_json(path)["format"] == kind.number


def test_rewriting_brings_a_folder_to_the_present_format(tmp_path):
    save_document(tmp_path, document())
    before = load(tmp_path)
    path = run_json.rewrite(tmp_path)
    assert json.loads(path.read_text())["format"] == 2 and load(tmp_path) == before


def test_a_run_of_before_that_lacks_parts_is_read():
    bare = {
        "machine_info": {"batchline": {"device_name": "Some CPU"}},
        "benchmarks": [],
        "batchline": {"cases": [], "baselines": {"bmm": "torch_bmm"}},
    }
    run = run_json.parse(bare)
    assert run.seconds is None and run.sweep is None and run.audit == ()
    assert run.baselines == {"bmm": "torch_bmm"} and run.machine["device_name"]


def test_what_was_confirmed_is_in_the_record_and_what_was_refuted_keeps_its_rounds():
    old = document()
    name = old["batchline"]["cases"][0]["id"]
    old["batchline"]["confirmed"] = {name: {"published": 2.0, "again": 1.9, "sank": 1}}
    record = run_json.parse(old).records[0]
    assert record.facts["confirmed"] == {"published": 2.0, "again": 1.9}
    assert record.status == MEASURED
    old["batchline"]["confirmed"] = {name: {"status": INVALID, "reason": "gone"}}
    record = run_json.parse(old).records[0]
    assert (record.status, record.reason, record.samples_s) == (INVALID, "gone", ())
    assert record.refuted_samples_s == (4e-6, 2e-6, 3e-6, 1e-6)


def test_the_keys_of_format_1_are_still_read():
    old = document()["batchline"]
    about = about_of(run_json.parse(document()))
    for name, value in old.items():
        if name == "variants":
            value = {key: {**entry, "gives": None} for key, entry in value.items()}
        if name == "ceilings":
            value = {**value, "quiet": True}
        if name == "compiled":
            value = [{**row, "warp_fault": None} for row in value]
        if name != "cases":
            assert about[name] == value, name
