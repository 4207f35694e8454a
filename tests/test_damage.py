"""Stored files that are damaged: every command that reads them says so in one line, and
none prints a traceback.
"""

import json
import os
import threading
from pathlib import Path

import pytest

from batchline.__main__ import main
from batchline.bench.store.files import stored_below
from batchline.bench.store.run_json import FILE_NAME
from tests import damage

REPOSITORY = Path(__file__).resolve().parents[1]
TIMES = {
    "report": 2,
    "report of ranks": 10,
    "explain": 10,
    "advise": 4,
    "compare": 10,
    "history": 3,
    "dispatch": 10,
}  # `make test-slow` has six times as many of them


@pytest.mark.commands
@pytest.mark.parametrize("times", [1, pytest.param(6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("command", damage.SUBJECTS)
def test_no_damage_prints_a_traceback(command, times):
    outcome = damage.fuzz(command, range(times * TIMES[command]), seed=7)
    assert not outcome.failures, outcome.failures[0]
    assert outcome.shown  # some damage is harmless
    assert (
        outcome.codes[2] or command == "history"
    )  # which passes over a damaged line, and says so


def test_a_traceback_and_a_hang_would_be_seen(monkeypatch):
    def fails(arguments):
        raise KeyError("x")

    monkeypatch.setattr(damage, "main", fails)
    assert len(damage.fuzz("explain", range(3)).failures) == 3
    monkeypatch.setattr(damage, "LONGEST_S", 1)
    monkeypatch.setattr(damage, "main", lambda arguments: threading.Event().wait())
    assert "not done after 1 s" in damage.fuzz("explain", range(1)).failures[0]


@pytest.fixture
def whole(tmp_path):
    (tmp_path / FILE_NAME).write_text(json.dumps(damage.stored_run()))
    return tmp_path


@pytest.mark.parametrize("command", ["report", "explain", "advise"])
def test_a_pipe_in_the_place_of_a_run_is_not_waited_for(tmp_path, capsys, command):
    os.mkfifo(tmp_path / FILE_NAME)
    arguments = {
        "report": [tmp_path],
        "explain": ["bmm/torch_bmm/tiny_16/float32/B1", "--run", tmp_path],
        "advise": ["--run", tmp_path],
    }[command]
    assert main([command, *map(str, arguments)]) == 2
    assert (
        capsys.readouterr().err
        == f"batchline: {tmp_path / FILE_NAME} is not an ordinary file\n"
    )


def test_advice_from_every_committed_run_that_has_noise(capsys):
    evidence = REPOSITORY / "reports" / "evidence"
    for name in (FILE_NAME, "study.json"):
        for path in stored_below(evidence, name):
            code = main(["advise", "--run", str(path.parent)])
            assert code == 0 or "has no gradient noise in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--deadline", "nan"),
        ("run", "--deadline", "-1"),
        ("advise", "--cost-cap", "inf"),
        ("advise", "--batch", "0"),
        ("aa", "--seconds", "nan"),
        ("selftest", "--sessions", "0"),
        ("coverage", "--draws", "many"),
        ("tune", "--seconds", "inf"),
        ("noise-cost", "--seconds", "0"),
    ],
)
def test_a_number_that_can_be_none_is_refused_before_anything_starts(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert end.value.code == 2
    assert (
        f"argument {arguments[1]}: {arguments[2]!r} is not a "
        in capsys.readouterr().err
    )
