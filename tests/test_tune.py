"""`batchline tune`: the fastest configuration wins, ties go to the rule, broken ones are
said, and the file is merged.
"""

import json
from dataclasses import replace

import pytest

from batchline.bench.commands import tune as command
from batchline.bench.errors import ExitCode
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.statuses import MEASURED, WRONG
from tests.plans import planned

HEADER = {
    "device": "Some GPU",
    "versions": {"torch": "2.13.0"},
    "revision": {"commit": "abc", "dirty": False},
    "clock": "host",
    "measured": "2026-01-02",
    "seconds": 12,
}


class FakeIsolation:
    """Gives each label the time, or the status, that its configuration has in
    `results`.
    """

    def __init__(self, results):
        self._results = results

    def measure(self, task):
        self.task = task
        return {
            label: self._outcome(task.configs[label]["BLOCK"]) for label in task.labels
        }

    def _outcome(self, block):
        result = self._results[block]
        return (
            Outcome(WRONG, result)
            if isinstance(result, str)
            else Outcome(MEASURED, "", (result,) * 3)
        )


@pytest.fixture
def case():
    return next(
        case
        for case in planned("smoke", "cpu").cases
        if case.id == "bmm/torch_bmm/tiny_16/float32/B16"
    )


@pytest.fixture
def op():
    """bmm, with three configurations of its baseline; the rule's is the first."""
    bmm = planned("smoke", "cpu").ops["bmm"]
    blocks = [{"BLOCK": 1}, {"BLOCK": 2}, {"BLOCK": 3}]
    return replace(
        bmm, configs={**bmm.configs, "torch_bmm": [blocks] * len(bmm.problems)}
    )


@pytest.mark.parametrize(
    "results, block, broken",
    [
        ({1: 3e-6, 2: 1e-6, 3: 2e-6}, 2, 0),
        (
            {1: 1e-6, 2: 0.99e-6, 3: 2e-6},
            1,
            0,
        ),  # within 2% of the rule: a tie, and the rule is simpler
        ({1: 3e-6, 2: "no", 3: 2e-6}, 3, 1),
        ({1: "no", 2: 2e-6, 3: 1e-6}, 3, 1),
    ],
)
def test_the_winner(op, case, results, block, broken, capsys):
    isolation = FakeIsolation(results)
    entry, count = command._winner(isolation, op, case, "host", 0.1)
    assert (entry["config"], count) == ({"BLOCK": block}, broken)
    assert (entry["traits"], entry["sizes"], entry["tried"]) == (
        "float32/nn",
        [16, 16, 16, 16],
        3,
    )
    assert ("wrong: no" in capsys.readouterr().err) == bool(broken)
    assert list(isolation.task.configs.values()) == [
        {"BLOCK": 1},
        {"BLOCK": 2},
        {"BLOCK": 3},
    ]


def test_nothing_right_is_no_winner(op, case):
    assert command._winner(
        FakeIsolation(dict.fromkeys((1, 2, 3), "no")), op, case, "host", 0.1
    ) == (None, 3)


def _entry(size, block):
    return {"traits": "float32/nn", "sizes": [size] * 4, "config": {"BLOCK": block}}


def test_fresh_winners_replace_those_of_the_same_problem_alone(tmp_path):
    path = tmp_path / "tuning" / "some-gpu.json"
    command._store(
        path, HEADER, {"mine": [_entry(8, 1), _entry(16, 1)], "other": [_entry(8, 5)]}
    )
    command._store(path, HEADER, {"mine": [_entry(16, 2)]})
    document = json.loads(path.read_text())
    assert document["winners"] == {
        "mine": [_entry(8, 1), _entry(16, 2)],
        "other": [_entry(8, 5)],
    }
    assert {name: document[name] for name in HEADER} == HEADER | {"seconds": 24}


def test_winners_of_other_versions_are_dropped(tmp_path):
    path = tmp_path / "tuning" / "some-gpu.json"
    command._store(path, HEADER, {"mine": [_entry(8, 1)]})
    command._store(
        path, HEADER | {"versions": {"torch": "2.14.0"}}, {"mine": [_entry(16, 2)]}
    )
    document = json.loads(path.read_text())
    assert (
        document["winners"] == {"mine": [_entry(16, 2)]} and document["seconds"] == 12
    )


@pytest.mark.commands
def test_nothing_to_tune_is_said(capsys):
    assert command.tune("smoke", "cpu", "torch_mean", 0.1) == ExitCode.NOT_MEASURED
    assert "nothing to tune on cpu" in capsys.readouterr().out
