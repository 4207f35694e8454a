"""The journal: what is written is what is read, whatever end it came to."""

import os

import pytest

from batchline.bench.errors import UsageError
from batchline.bench.statuses import FAILED, INVALID, MEASURED, NOT_REACHED
from batchline.bench.store import formats, journal, run_json
from batchline.bench.store.files import DamagedFile
from batchline.bench.store.journal import Journal, RunBuilder
from batchline.bench.store.records import RunPlan
from tests.test_records import document

WHOLE = run_json.parse(document())
IDS = [record.id for record in WHOLE.records]


@pytest.fixture
def begun(tmp_path):
    made = RunBuilder(Journal(tmp_path), WHOLE.started)
    made.begin(machine=WHOLE.machine, plan=WHOLE.plan, ops=WHOLE.ops)
    made.add_plan(IDS)
    yield made
    made.close()


def _measure_first(begun):
    first = WHOLE.records[0]
    begun.add_outcome(
        IDS[0], MEASURED, "", first.samples_s, first.iterations, first.facts
    )


def test_what_was_measured_when_it_was_killed_is_a_run_and_the_rest_was_not_reached(
    begun, tmp_path
):
    _measure_first(begun)
    run_json.save(tmp_path, journal.read(tmp_path))
    run = run_json.load(tmp_path)
    assert [(record.id, record.status) for record in run.records] == [
        (IDS[0], MEASURED),
        (IDS[1], NOT_REACHED),
    ]
    assert (
        run.records[0] == WHOLE.records[0]
        and run.records[1].reason == "the run ended before it"
    )
    assert run.partial and run.audit == () and run.started == WHOLE.started
    assert run.plan == WHOLE.plan and run.ops == WHOLE.ops


def test_a_damaged_run_beside_its_journal_says_how_it_is_made_anew(begun, tmp_path):
    _measure_first(begun)
    path = run_json.path_in(tmp_path)
    path.write_text("{")
    with pytest.raises(
        DamagedFile,
        match="run.json is damaged: .*; its journal.jsonl has all .*: remove run.json, ",
    ):
        journal.recover(tmp_path)
    path.unlink()
    assert journal.recover(tmp_path).records[0].id == IDS[0] and path.exists()


def test_the_run_is_the_same_from_its_journal_from_memory_and_from_its_file(
    begun, tmp_path
):
    _measure_first(begun)
    kernel = {"variant": "a", "dtype": "b", "scenario": "c", "batch": 1}
    begun.add(
        partial=False,
        compiled={"kernels": ({**kernel, "example": True, "architecture": 90},)},
    )
    begun.add(ceilings=document()["batchline"]["ceilings"], why_no_ceilings=None)
    begun.add_compiled_ahead({"compiled": float("inf")})
    run = begun.run()
    assert journal.read(tmp_path) == run
    assert run_json.load(journal.store(run, tmp_path)) == run
    assert run.compiled.kernels[0].architecture == 90 and not run.partial
    assert run.ceilings == WHOLE.ceilings
    assert run.compiled_ahead == ({"compiled": float("inf")},)


def test_a_builder_without_a_journal_is_in_memory():
    builder = RunBuilder()
    builder.begin(plan=RunPlan("smoke"))
    builder.add_plan(IDS, IDS[1:])
    builder.add_outcome(IDS[1], FAILED, "ValueError: no", (1.0,), 3, {"a": 1})
    assert [record.status for record in builder.records] == [NOT_REACHED, FAILED]
    assert not builder.records[1].samples_s and not builder.records[1].facts
    run = builder.run()
    assert run.along == (IDS[1],) and run.plan.profile == "smoke" and run.partial
    builder.close()
    builder.discard()


def test_a_part_that_a_run_has_not_is_refused_before_it_is_written(begun, tmp_path):
    before = (tmp_path / journal.FILE_NAME).read_bytes()
    with pytest.raises(TypeError, match="a run has no nonsense"):
        begun.add(nonsense=1)
    with pytest.raises(TypeError, match="AuditRow has no nonsense"):
        begun.add(audit=[{"nonsense": 1}])
    assert (tmp_path / journal.FILE_NAME).read_bytes() == before


def test_a_gain_that_was_refuted_loses_its_time_and_keeps_its_rounds(begun, tmp_path):
    _measure_first(begun)
    begun.add_confirmations({IDS[0]: {"published": 2.0, "again": 1.9}})
    confirmed = begun.records[0]
    assert confirmed.facts["confirmed"] == {"published": 2.0, "again": 1.9}
    assert confirmed.samples_s == WHOLE.records[0].samples_s
    begun.add_confirmations({IDS[0]: {"status": INVALID, "reason": "it is gone"}})
    for run in (begun.run(), run_json.load(journal.store(begun.run(), tmp_path))):
        refuted = run.records[0]
        assert (refuted.status, refuted.reason) == (INVALID, "it is gone")
        assert not refuted.samples_s and not refuted.facts
        assert refuted.refuted_samples_s == WHOLE.records[0].samples_s


def test_groups_come_as_planned_and_their_cases_by_ascending_batch():
    builder = RunBuilder()
    builder.begin()
    builder.add_plan(["b/v/s/d/B8", "a/v/s/d/B1", "b/v/s/d/B2"])
    builder.add_plan(["b/w/s/d/B4", "a/w/s/d/B1"])
    assert [record.id for record in builder.records] == [
        "b/v/s/d/B2",
        "b/w/s/d/B4",
        "b/v/s/d/B8",
        "a/v/s/d/B1",
        "a/w/s/d/B1",
    ]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_was_cut_costs_itself(begun, tmp_path, cut):
    _measure_first(begun)
    before = journal.read(tmp_path)
    begun.add(why_no_ceilings="µ" * 20)
    path = tmp_path / journal.FILE_NAME
    path.write_bytes(path.read_bytes()[:-cut])
    after = journal.read(tmp_path)
    assert (
        after == before or cut == 1 and after == begun.run()
    )  # its line break is no part of a line


def test_text_that_can_not_be_encoded_or_printed_is_cleaned_on_the_way(begun, tmp_path):
    begun.add_outcome(IDS[0], FAILED, "\ud800 ::error::x \x1b[31m")
    assert journal.read(tmp_path).records[0].reason == "\ufffd : :error::x "


def test_what_its_disk_does_not_take_is_kept_said_once_and_written_when_it_does(
    begun, tmp_path, monkeypatch, capsys
):
    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        _measure_first(begun)
        begun.add(why_no_ceilings="none")
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        "No space left on device): what is measured from here on is kept in memory"
        in line
    )
    assert not journal.read(tmp_path).records[0].samples_s
    assert begun.records[0].samples_s
    begun.add(partial=False)
    assert journal.read(tmp_path) == begun.run()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is damaged, or of another version"),
        ("nonsense\n", "is damaged, or of another version"),
        ("[1]\n{}\n", "is damaged, or of another version"),
        ('{"format": 99}\n', "is of format 99, and this Batchline reads 2"),
        ('{"format": 1, "run": {}, "about": {}}\n', "is of format 1, and this"),
        ('{"format": 2}\n', "is damaged, or of another version"),
        (
            '{"format": 2, "run": {}, "at_s": 0}\n{"parts": [1], "at_s": 1}\n',
            "is damaged, or of another version",
        ),
        (
            '{"format": 2, "run": {}, "at_s": 0}\n{"parts": {"audit": [1]}, "at_s": 1}\n',
            "is damaged, or of another version",
        ),
        (
            '{"format": 2, "run": {}, "at_s": 0}\n{"planned": ["a/b"], "at_s": 1}\n',
            "is damaged, or of another version",
        ),
    ],
)
def test_what_is_no_journal_is_refused_in_a_line(tmp_path, text, words):
    (tmp_path / journal.FILE_NAME).write_text(text)
    with pytest.raises(ValueError, match=words) as refused:
        journal.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_a_folder_without_a_journal_says_so(tmp_path):
    with pytest.raises(UsageError, match="no journal in"):
        journal.read(tmp_path)


def test_its_format_is_that_of_the_table(begun, tmp_path):
    first = (tmp_path / journal.FILE_NAME).read_text().splitlines()[0]
    assert first.startswith(f'{{"format":{formats.JOURNAL.number},"run":')
