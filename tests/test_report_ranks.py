"""The mean gradient over ranks in the report of a run: read beside it, laid out, drawn;
and how `batchline all-reduce --to` puts it there. No rank is started here.
"""

import contextlib
import json
from dataclasses import replace

import pytest

from batchline.__main__ import main
from batchline.bench import publishing
from batchline.bench.errors import UsageError
from batchline.bench.measure.machine import environment
from batchline.bench.noise.experiments import mean_over_ranks
from batchline.bench.noise.rank_scaling import ScalingLaw, scaling_in
from batchline.bench.report import RunReport, draw_ranks, figures, page_plots
from batchline.bench.report.document import Figure, Place, walk
from batchline.bench.report.findings import Findings
from batchline.bench.report.render import markdown
from batchline.bench.store import files, journal, rank_times, run_json
from tests.pages import a_run
from tests.rank_evidence import BATCHES, measured, scaling_of, time_s, wrong_on

TITLE = "## The mean gradient over ranks"


def report(document):
    run = a_run()
    machine = {**run.machine, "device_name": "Some CPU"}
    run = replace(run, machine=machine)
    return RunReport(run, Findings(run, scaling=scaling_of(document)))


def readme(document, drawn=()):
    return markdown.render(report(document).document(Place.README), drawn)


def test_the_report_has_what_is_stored_beside_the_run():
    text = readme(measured(), {"ranks"})
    part = text.partition(TITLE)[2]
    assert "`batchline all-reduce` on Some CPU, 2026-11-30." in part
    assert "(ranks.png)" in part and "another machine" not in part
    for of_it in ("t(B, r)", "Weak scaling", "Strong scaling", "error against fp64"):
        assert of_it in part
    run = a_run()
    assert TITLE not in markdown.render(RunReport(run).document(Place.README))


def test_what_another_machine_has_measured_is_said_to_be_that():
    text = readme(measured(machine={"device_name": "Other"}))
    assert "**That is another machine than this run's, Some CPU.**" in text


def test_the_page_has_a_plot_of_each_count_of_ranks():
    parts = walk(report(measured(cores=2)).document(Place.PAGE).sections)
    plots = {
        part.title: part.plot
        for part in parts
        if isinstance(part, Figure) and str(part.key).startswith("ranks ")
    }
    (last,) = [plot for title, plot in plots.items() if "4 ranks on 2 cores" in title]
    assert len(plots) == 3
    one = last["series"][0]
    assert one["name"] == "torch_one_message float32"
    assert one["x"] == list(BATCHES)
    assert one["y"] == pytest.approx([time_s(4, batch) for batch in BATCHES])
    assert one["low"] == one["high"] == one["y"]
    json.dumps(plots, allow_nan=False)


def test_a_count_on_which_every_way_is_wrong_has_no_plot():
    document = wrong_on(4)
    document["rows"] = [row for row in document["rows"] if row["way"] == "own_bucketed"]
    assert list(page_plots.ranks(scaling_of(document))) == [1, 2]


def test_the_plot_is_drawn(tmp_path):
    if figures.why_no_plots():
        pytest.skip("matplotlib is not installed")
    assert draw_ranks(report(wrong_on(1)), tmp_path) == {"ranks"}
    drawn = (tmp_path / "ranks.svg").read_text(encoding="utf-8")
    assert "own_bucketed float32" in drawn and "4 ranks" in drawn
    assert draw_ranks(RunReport(a_run()), tmp_path) == set()


def test_it_is_read_where_it_lies_compressed_or_not(tmp_path):
    assert scaling_in(tmp_path) is None
    path = tmp_path / rank_times.FILE_NAME
    times = scaling_of(measured()).times
    rank_times.save(path, times)
    assert scaling_in(tmp_path).times == times
    files.compress(path)
    assert scaling_in(tmp_path).times == times


@pytest.mark.parametrize(
    "changes",
    [
        {"cores": 0},
        {"batches": [0]},
        {"backend": 3},
        {"parameters": 10**400},
        {"rows": [{"way": "x", "wire": "float32", "ranks": 1, "batch": 8}]},
        {"unknown": 1},
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, changes):
    path = tmp_path / rank_times.FILE_NAME
    path.write_text(json.dumps(measured(**changes)))
    with pytest.raises(UsageError, match=f"^{path} is damaged, or of another version"):
        scaling_in(tmp_path)


@pytest.mark.parametrize("sample", [0, -1, float("nan"), float("inf")])
def test_what_is_no_time_is_damage(tmp_path, sample):
    document = measured()
    document["rows"][3]["samples_s"][1] = sample
    (tmp_path / rank_times.FILE_NAME).write_text(json.dumps(document))
    with pytest.raises(UsageError, match="a sample of 2 ranks is no time"):
        scaling_in(tmp_path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder of a run of this machine; the ranks' times are made up."""
    run = a_run()
    machine = {**run.machine, "device_name": environment.device_name("cpu")}
    run_json.save(tmp_path, replace(run, machine=machine))
    names = "backend", "cores", "parameters", "bucket_bytes", "batches", "rows"
    made_up = {name: measured()[name] for name in (*names, "all_reduce")}
    monkeypatch.setattr(mean_over_ranks, "measure", lambda *_: made_up)
    return tmp_path


def all_reduce(to):
    return main(["all-reduce", "--device", "cpu", "--to", str(to)])


def test_a_run_s_folder_gets_the_file_and_its_report_again(here, monkeypatch, capsys):
    written = []

    def write(run, folder, survived):
        written.append((run.started, folder))
        return len(written) == 1

    monkeypatch.setattr(publishing, "write_files", write)
    assert all_reduce(here) == 0
    times = rank_times.load(here)
    assert times.machine["device_name"] == environment.device_name("cpu")
    assert times.started.startswith("20")
    assert written == [(run_json.load(here).started, here)]
    assert f"written: {here / 'ranks.json'}" in capsys.readouterr().out
    (here / "ranks.json").unlink()
    assert all_reduce(here / "ranks.json") == 1  # a part of the report fails
    assert len(written) == 2


def test_a_file_elsewhere_is_no_part_of_a_report(here, monkeypatch):
    monkeypatch.setattr(publishing, "write_files", lambda *_: pytest.fail("written"))
    assert all_reduce(here / "mine.json") == 0
    assert rank_times.load(here / "mine.json").parameters == 262144


def refused(to, capsys):
    with pytest.raises(SystemExit) as end:
        all_reduce(to)
    assert end.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("name", ["", "ranks.json", "run.json"])
def test_nothing_of_a_run_is_written_over(here, capsys, name):
    (here / "ranks.json").write_text("mine")
    before = (here / "run.json").read_bytes()
    said = refused(here / name, capsys)
    assert f"{name or 'ranks.json'} is there already: remove it first" in said
    assert (here / "ranks.json").read_text() == "mine"
    assert (here / "run.json").read_bytes() == before


def test_what_was_measured_is_stored_before_it_is_judged(here, monkeypatch):
    def fails(*_):
        raise RuntimeError("no fit")

    monkeypatch.setattr(ScalingLaw, "of", fails)
    with contextlib.suppress(RuntimeError):
        all_reduce(here)
    assert rank_times.load(here).parameters == 262144


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert f"there is no run in {tmp_path}: name a file" in refused(tmp_path, capsys)


def test_a_run_of_another_machine_is_refused_before_anything_is_measured(
    here, monkeypatch, capsys
):
    run_json.save(here, a_run())
    monkeypatch.setattr(mean_over_ranks, "measure", lambda *_: pytest.fail("measured"))
    assert all_reduce(here) == 2
    assert "was measured on" in capsys.readouterr().err
    (here / run_json.FILE_NAME).write_text("{")
    assert all_reduce(here) == 2
    assert "run.json is damaged" in capsys.readouterr().err


def test_what_can_not_be_stored_there_is_stored_elsewhere(here, monkeypatch, capsys):
    save = rank_times.save

    def fails_here(path, times):
        if path.parent == here:
            raise OSError(28, "No space left on device")
        return save(path, times)

    monkeypatch.setattr(rank_times, "save", fails_here)
    monkeypatch.setattr(publishing, "write_files", lambda *_: pytest.fail("written"))
    assert all_reduce(here) == 0
    said = capsys.readouterr()
    assert "No space left on device" in said.err
    assert not (here / "ranks.json").exists()
    (line,) = [one for one in said.out.splitlines() if one.startswith("written: ")]
    assert rank_times.load(type(here)(line.removeprefix("written: "))).cores == 4


def test_a_journal_of_which_nothing_can_be_read_is_refused(here, monkeypatch, capsys):
    monkeypatch.setattr(mean_over_ranks, "measure", lambda *_: pytest.fail("measured"))
    (here / run_json.FILE_NAME).unlink()
    (here / journal.FILE_NAME).write_text("")
    assert all_reduce(here) == 2
    assert journal.FILE_NAME in capsys.readouterr().err
