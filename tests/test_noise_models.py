"""The models of others: a row for each, right or refused or absent, and what the command
ends with.
"""

import numpy as np
import pytest
import torch
from torch import nn

from batchline.bench.errors import Missing, UsageError
from batchline.bench.noise.experiments import cost, models
from batchline.bench.noise.experiments.models import Model, worst_error
from batchline.bench.noise.workloads import Samples, Workload

pytestmark = pytest.mark.usefixtures("one_thread")


class Mixing(nn.Module):
    """Its samples are not apart."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 2)

    def forward(self, x):
        return self.layer(x - x.mean(0))


def _model(name, make, *needs):
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    held = Samples(x, x)

    def losses(model, x, y):
        return model(x).square().flatten(1).sum(1)

    workload = Workload(name, name, make, losses, lambda: (held, held), 8, 0.1)
    return Model(workload, needs)


PLAIN = _model("plain", lambda: nn.Sequential(nn.Linear(8, 3), nn.Tanh()))
MIXING = _model("mixing", Mixing)
ABSENT = _model("absent", Mixing, "no_such_library", "torch")


@pytest.fixture
def these(monkeypatch):
    """Three models, whose steps are plain and metered."""
    ways = tuple(
        way for way in cost.WAYS if way.name in (cost.PLAIN, cost.METERED, cost.OPACUS)
    )
    monkeypatch.setattr(models, "MODELS", (PLAIN, MIXING, ABSENT))
    monkeypatch.setattr(models, "_WAYS", tuple(way.name for way in ways))
    monkeypatch.setattr(cost, "WAYS", ways)
    monkeypatch.setattr(cost.backends, "why_absent", lambda name: f"{name}: not here")


def test_each_model_has_a_row_that_says_what_became_of_it(these, capsys):
    assert models.run("cpu", 0.05, busy=True) == 0
    text = capsys.readouterr().out
    plain, mixing, absent = text.splitlines()[2:5]
    assert "plain" in plain and "e-" in plain and "x" in plain and "can't" in plain
    assert "refused" in mixing and "not installed" in absent
    assert "mixing: refused: layer " in text
    assert "absent: no_such_library not installed: `pip install" in text
    assert "plain, Opacus ghost norms: opacus: not here" in text


def test_a_model_that_knows_no_fp64_is_not_held_against_it(these, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("Expected mat_a to be Float32, got Double")

    monkeypatch.setattr(models, "exact_norms", fail)
    assert models.run("cpu", 0.05, ["PLAIN"], busy=True) == 0
    text = capsys.readouterr().out
    assert "not held against fp64  " in text.splitlines()[2]
    assert "plain: not held against fp64: " in text and "got Double" in text


def test_a_model_whose_norms_are_wrong_ends_the_command_with_1(
    these, monkeypatch, capsys
):
    monkeypatch.setattr(models, "exact_norms", lambda *_: {"0.weight": np.full(8, 1e9)})
    assert models.run("cpu", 0.05, ["PLAIN"], busy=True) == 1
    assert "mixing" not in capsys.readouterr().out


def test_with_nothing_timed_it_ends_with_3(these, capsys):
    assert models.run("cpu", 0.05, ["absent"], busy=True) == 3


def test_a_name_that_no_model_has():
    with pytest.raises(UsageError, match="no model is called 'gpt-5': there are GPT-2"):
        models.chosen(["gpt-5"])
    assert [model.name for model in models.chosen(["gpt-n", "resnet"])] == [
        "GPT-NeoX",
        "ResNet, GroupNorm",
    ]


def test_a_norm_far_below_its_samples_whole_counts_as_a_millionth_of_it():
    exact = {"a": np.array([1.0, 4.0]), "b": np.array([1e-12, 1e-12])}

    def of(a, b):
        return {"a": np.array(a), "b": np.array(b)}

    assert worst_error(of([1.0, 4.0], [1e-12, 1e-12]), exact) == 0
    assert worst_error(of([1.1, 4.0], [1e-12, 1e-12]), exact) == pytest.approx(0.1)
    assert worst_error(of([1.0, 4.0], [2e-12, 5e-12]), exact) < 2e-6
    assert worst_error(of([1.0, 4.0], [1e-7, 0.0]), exact) == pytest.approx(0.1, 1e-3)
    assert worst_error({}, exact) == pytest.approx(1)


def test_the_lstm_of_the_table():
    """One of the models that need nothing else; the others take longer."""
    (model,) = models.chosen(["LSTM"])
    net = model.workload.model(0)
    x, y = model.workload.train.draw(2, torch.Generator(), "cpu")
    exact = models.exact_norms(model.workload, net, x, y)
    assert exact.keys() == dict(net.named_parameters()).keys()


@pytest.mark.slow
@pytest.mark.parametrize("model", models.MODELS, ids=lambda model: model.name)
def test_a_model_of_the_table_is_right_or_refused(model):
    if model.why_absent:
        pytest.skip(model.why_absent)
    row = models.measure(model, "cpu", 0.1)
    assert not row.is_wrong
    if isinstance(row.error, Missing):
        assert row.error.reason.startswith("refused: ")
