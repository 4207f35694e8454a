"""`batchline noise`, `claims` and `advise`: what is stored, what is read back, and what bad
input is told.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from batchline.__main__ import main
from batchline.bench import study
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.store import formats, run_json
from batchline.bench.store.records import Noise, Study
from tests.claims_evidence import sweep
from tests.noise_evidence import noise
from tests.runs import save_document
from tests.test_records import document

STUDY = Study(
    machine={"device_name": "Some CPU"},
    started="2026-01-02T03:04:05+00:00",
    profile="quick",
    noise=Noise(**noise()),
    sweep=sweep(),
)
WITHOUT_SWEEP = replace(STUDY, sweep=None)


def as_json(study):
    return json.loads(json.dumps(formats.to_json(study)))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a study with its report, whose figures take a second to draw."""
    folder = tmp_path_factory.mktemp("written")
    study.write(STUDY, folder)
    return folder


def test_a_study_is_stored_whole_with_its_report(tmp_path, capsys):
    study.write(STUDY, tmp_path)
    assert as_json(run_json.load_study(tmp_path)) == as_json(STUDY)
    assert "## The four claims" in (tmp_path / "README.md").read_text()
    assert f"report: {tmp_path / 'README.md'}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "Train at batch 63"),
        (["--batch", "1000"], "A smaller batch than the current 1,000"),
        (["--cost-cap", "1.5"], "cost decides"),
    ],
)
def test_advice_comes_from_a_stored_study(written, capsys, options, words):
    assert main(["advise", "--run", str(written), *options]) == 0
    assert words in capsys.readouterr().out


def test_advice_comes_from_a_stored_run(tmp_path, capsys):
    stored = document()
    stored[formats.OURS] |= {"noise": noise(), "sweep": None}
    save_document(tmp_path, stored)
    assert main(["advise", "--run", str(tmp_path), "--workload", "digits"]) == 0
    assert "Train at batch 63" in capsys.readouterr().out


def test_steps_that_could_not_be_timed_give_no_advice_and_exit_3(tmp_path, capsys):
    busy = "the machine was busy: other processes took 43% of the cores, three times"
    untimed = noise()["workloads"]["digits"]
    untimed = untimed | {
        "why_not_timed": busy,
        "steps": [step | {"samples_s": []} for step in untimed["steps"]],
    }
    study.write(replace(STUDY, noise=Noise({"digits": untimed})), tmp_path)
    assert (
        f"No advice: its steps could not be timed: {busy}."
        in (tmp_path / "README.md").read_text()
    )
    capsys.readouterr()
    assert main(["advise", "--run", str(tmp_path)]) == 3
    printed = capsys.readouterr()
    assert busy in printed.err and "Train at" not in printed.out


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "no run in"),
        ("{", "study.json is damaged"),
        ("[]", "study.json is damaged"),
        (
            '{"machine": {}, "noise": {"workloads": {}}}',
            "no noise of any workload there",
        ),
    ],
)
def test_what_is_no_study_is_told_in_a_line(tmp_path, capsys, text, words):
    if text is not None:
        (tmp_path / run_json.STUDY_FILE_NAME).write_text(text)
    assert main(["advise", "--run", str(tmp_path)]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--workload", "nonsense"], "no noise of nonsense there: it has digits"),
        (["--cost-cap", "0.5"], "the cap must be 1 or more, and is 0.5"),
    ],
)
def test_bad_advice_options_are_told_in_a_line(written, capsys, arguments, words):
    assert main(["advise", "--run", str(written), *arguments]) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_run_without_noise_says_where_there_is_some(tmp_path):
    save_document(tmp_path, document())
    with pytest.raises(UsageError, match="no gradient noise in it"):
        study.stored_noise(tmp_path)


def test_the_newest_readable_sweep_is_the_stored_one(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "_EVIDENCE", tmp_path / "reports" / "evidence")
    assert study.stored_sweep() is None
    for name, text in (
        ("2026-01-01-a", json.dumps(as_json(STUDY))),
        ("2026-01-02-b", json.dumps(as_json(WITHOUT_SWEEP))),
        ("2026-01-03-c", "{"),
    ):
        (tmp_path / "reports/evidence" / name).mkdir(parents=True)
        (tmp_path / "reports/evidence" / name / run_json.STUDY_FILE_NAME).write_text(
            text
        )
    assert study.stored_sweep() == json.loads(json.dumps(sweep()))


@pytest.mark.parametrize(
    "arguments", [["noise", "--profile", "nonsense"], ["claims", "--device", "tpu"]]
)
def test_an_unknown_profile_or_device_is_told_before_anything_is_measured(
    arguments, capsys
):
    assert main(arguments) == ExitCode.USAGE
    assert len(capsys.readouterr().err.splitlines()) == 1


def _stopped():
    raise KeyboardInterrupt


def test_a_sweep_that_is_stopped_keeps_the_survey(tmp_path, monkeypatch):
    monkeypatch.setattr(
        study,
        "measure_survey",
        lambda *_: WITHOUT_SWEEP,
    )
    monkeypatch.setattr(study, "_EVIDENCE", tmp_path / "reports" / "evidence")
    assert study.make_study("quick", "cpu", tmp_path / "runs", _stopped) == 130
    (stored,) = (tmp_path / "runs").glob(f"*/{run_json.STUDY_FILE_NAME}")
    kept = run_json.load_study(stored.parent)
    assert as_json(kept.noise) == as_json(STUDY.noise) and kept.partial


@pytest.mark.commands
def test_a_survey_that_is_stopped_keeps_the_workloads_that_are_done(
    tmp_path, monkeypatch
):
    (first,) = STUDY.noise.workloads.items()

    def one_and_stop(isolation, profile):
        yield {"workloads": dict([first]), "seconds": 1.0}
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "surveys", one_and_stop)
    assert study.make_study("smoke", "cpu", tmp_path, study.stored_sweep) == 130
    (stored,) = tmp_path.glob(f"*/{run_json.STUDY_FILE_NAME}")
    document = json.loads(stored.read_text())
    assert list(document["noise"]["workloads"]) == [first[0]] and document["partial"]
    assert "**Partial.**" in (stored.parent / "README.md").read_text()


@pytest.mark.commands
def test_a_survey_that_is_stopped_at_once_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "surveys", lambda *_: (_stopped() for _ in range(1)))
    with pytest.raises(KeyboardInterrupt):
        study.make_study("smoke", "cpu", tmp_path, study.stored_sweep)
    assert not list(tmp_path.iterdir())


def _full(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_folder_that_is_full_by_then_loses_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        study,
        "measure_survey",
        lambda *_: WITHOUT_SWEEP,
    )
    whole = run_json.save_study
    monkeypatch.setattr(
        run_json,
        "save_study",
        lambda place, one: (_full if "runs" in place.parts else whole)(place, one),
    )
    assert study.make_study("quick", "cpu", tmp_path / "runs", sweep) == 0
    line = capsys.readouterr().err.splitlines()[0]
    rescue = Path(
        re.search(
            r"No space left on device\): what was measured is in (\S+), and", line
        )[1]
    )
    assert json.loads((rescue / run_json.STUDY_FILE_NAME).read_text())["sweep"]
    shutil.rmtree(rescue)


def test_a_report_that_fails_costs_no_study(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        study,
        "measure_survey",
        lambda *_: WITHOUT_SWEEP,
    )
    monkeypatch.setattr(study.report, "draw_training", _full)
    assert study.make_study("quick", "cpu", tmp_path, sweep) == ExitCode.FAULT
    assert (
        "drawing the plots failed: OSError: [Errno 28] No space left on device"
        in capsys.readouterr().err
    )
    assert (
        len(list(tmp_path.glob(f"*/{run_json.STUDY_FILE_NAME}")))
        == len(list(tmp_path.glob("*/README.md")))
        == 1
    )
