"""A step that was meant: its series begins after it, and who said so, when and why is
kept beside the history.
"""

import argparse
import json
from dataclasses import replace

import pytest

from batchline.bench.commands import history as command
from batchline.bench.errors import ExitCode, UsageError
from batchline.bench.report import figures, over_time
from batchline.bench.store import accepted, history
from batchline.bench.verdicts import across_runs
from tests.test_history import CASE, filled, run


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """A history of 30 runs, which gets 20% slower at the 16th."""
    return filled(tmp_path_factory.mktemp("history"))


@pytest.fixture
def path(stepped, tmp_path):
    """The same, of this test's own."""
    mine = tmp_path / stepped.name
    mine.write_bytes(stepped.read_bytes())
    return mine


def the_series(path):
    entries, _ = history.read(path)
    ((series,),) = (
        group.series
        for group in across_runs.groups(entries, accepted=accepted.read(path))
    )
    return series


def test_a_series_begins_after_its_accepted_step(path, capsys):
    assert the_series(path).changes[-1].index == 15
    assert command.accept(CASE, "  exact sums\ncost it ", folder=path.parent) == 0
    assert "accepted by" in capsys.readouterr().out
    series = the_series(path)
    assert len(series.entries) == 15 and series.changes == ()
    history.append(run(30, 1.2), path.parent)
    assert len(the_series(path).entries) == 16

    entries, _ = history.read(path)
    groups = across_runs.groups(entries, accepted=accepted.read(path))
    shown = " ".join(over_time.terminal("some-cpu", groups).split())
    assert "no change in 1 case" in shown
    assert f"{CASE}: begins at 00000000f (2026-01-16), +20." in shown
    assert shown.count(": exact sums cost it") == 1


def test_who_accepted_when_and_why_is_stored_and_listed(path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_user", lambda: "Ada")
    command.accept(CASE, "exact sums", folder=path.parent)
    document = json.loads(accepted.path_beside(path).read_text())
    (step,) = document["steps"]
    assert document["format"] == 1 and step["case"] == CASE
    assert (step["who"], step["why"]) == ("Ada", "exact sums")
    assert step["since"].startswith("2026-01-16") and step["when"].endswith("+00:00")
    capsys.readouterr()
    assert command.print_accepted(folder=path.parent) == ExitCode.CLEAN
    shown = " ".join(capsys.readouterr().out.split())
    assert shown.startswith(f"some-cpu: 1 accepted step {CASE} host, smoke: 00000000f")
    assert "accepted by Ada on" in shown and shown.endswith(": exact sums")


def test_only_the_series_of_the_step_begins_after_it(path):
    command.accept(CASE, "meant", folder=path.parent)
    (step,) = accepted.read(path)
    other = history.entry_of(run(0, cpu="Other"))
    full = history.entry_of(run(0, profile="full"))
    groups = across_runs.groups([other, full], accepted=[step])
    assert [len(group.series[0].entries) for group in groups] == [1, 1]


@pytest.mark.parametrize(
    "case, why, words",
    [
        (CASE, None, 'say why the step was meant: --why "…"'),
        (CASE, " \n", "say why the step was meant"),
        (CASE[:-1], "meant", rf"no history has the case .* \(did you mean {CASE}\?\)"),
    ],
)
def test_what_cant_be_accepted_is_a_line_and_nothing_is_stored(path, case, why, words):
    with pytest.raises(UsageError, match=words):
        command.accept(case, why, folder=path.parent)
    assert not accepted.path_beside(path).exists()


@pytest.mark.parametrize(
    "words, why",
    [
        (["--why", "meant"], "name its case by --accept"),
        (["--accept", CASE], "say why the step was meant"),
        (["--accept", CASE, "--why", "meant", "-k", "bmm"], "leave out -k"),
    ],
)
def test_options_that_belong_together_are_given_together(path, words, why):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args([*words, "--history", str(path.parent)])
    with pytest.raises(UsageError, match=why):
        command.run(options)


def test_the_command_shows_what_was_accepted(path, monkeypatch, capsys):
    monkeypatch.setattr(figures, "why_no_plots", lambda: "not now")
    command.accept(CASE, "meant", folder=path.parent)
    command.print_histories(folder=path.parent)
    assert "no change in 1 case" in capsys.readouterr().out


def test_a_further_step_is_stored_beside_the_first(path):
    command.accept(CASE, "meant", folder=path.parent)
    (first,) = accepted.read(path)
    later = replace(first, since="2026-02-01", why="meant, too")
    accepted.add(path, [later])
    assert accepted.read(path) == (first, later)
    assert the_series(path).accepted == later  # the newest of them counts


def test_a_step_is_accepted_once(path):
    command.accept(CASE, "meant", folder=path.parent)
    with pytest.raises(UsageError, match="has no step to accept"):
        command.accept(CASE, "meant", folder=path.parent)
    assert len(accepted.read(path)) == 1


def test_without_a_history_it_is_3(tmp_path, capsys):
    assert command.accept(CASE, "meant", folder=tmp_path) == ExitCode.NOT_MEASURED
    assert command.print_accepted(folder=tmp_path) == ExitCode.NOT_MEASURED
    assert capsys.readouterr().out.count("no history in") == 2


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "is damaged"),
        ('{"format": 1, "steps": [{"case": 3}]}', "is damaged"),
        ('{"format": 2, "steps": []}', "is of format 2, .* use a newer one"),
    ],
)
def test_a_damaged_file_or_one_of_a_newer_format_is_a_line(path, text, words):
    accepted.path_beside(path).write_text(text)
    with pytest.raises(UsageError, match=words):
        command.print_accepted(folder=path.parent)
    with pytest.raises(UsageError, match=words):
        command.accept(CASE, "meant", folder=path.parent)
    assert accepted.path_beside(path).read_text() == text
