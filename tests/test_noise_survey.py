"""A survey in small: plain data, of training that looking does not change, with real
batches of real gradients.
"""

import json

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from batchline.bench.measure.machine.state import NoGuard
from batchline.bench.noise.advisor import advice, middle, moments
from batchline.bench.noise.claims import judge
from batchline.bench.noise.experiments import survey
from batchline.bench.noise.experiments.survey import Survey
from batchline.bench.noise.workloads import workloads
from batchline.bench.statuses import INVALID, NotMeasured


def _small(updates, seeds=1):
    return Survey(
        seeds,
        4,
        {"digits": updates, "characters": updates},
        {"digits": 32, "characters": 4},
        {"digits": (1, 8, 64), "characters": (1, 2)},
        0.02,
    )


@pytest.fixture(scope="module")
def digits():
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(survey.SURVEYS, "small", _small((0, 3, 50), seeds=2))
        return survey.survey("digits", "small", "cpu", NoGuard(), told.append), told


def test_it_is_plain_data_that_advises_and_judges(digits):
    found, _ = digits
    assert json.loads(json.dumps(found)) == found
    assert [moment.updates for moment in moments(found)] == [0, 3, 50]
    assert advice(found, middle(found)).curve
    assert len(judge(None, {"workloads": {"digits": found}})) == 4


def test_what_it_holds_is_what_it_says(digits):
    found, told = digits
    assert found["parameters"] == 9610 and found["samples"] == 1437
    assert [step["batch"] for step in found["steps"]] == [1, 8, 64]
    assert all(
        step["samples_s"] and min(step["samples_s"]) > 0 for step in found["steps"]
    )
    for point in found["points"]:
        assert len(point["estimate"]["pairs"]) == 4 and set(point["layers"]) == {
            "0",
            "2",
        }
        assert [(row["batch"], len(row["cosines"])) for row in point["cosines"]] == [
            (8, 8),
            (32, 2),
            (128, 0),
        ]
        assert sum(
            layer["scale"]["trace"] for layer in point["layers"].values()
        ) == pytest.approx(point["estimate"]["scale"]["trace"], rel=1e-9)
    assert moments(found)[0].loss > moments(found)[-1].loss
    assert "digits: noise after 50 updates, seed 2 of 2, batch 4" in told


def test_looking_does_not_change_the_training(monkeypatch):
    weights, look = [], survey._look

    def seen(workload, model, *rest):
        weights.append(parameters_to_vector(model.parameters()).detach().clone())
        return look(workload, model, *rest)

    monkeypatch.setattr(survey, "_look", seen)
    for updates in ((0, 3, 50), (50,)):
        list(
            survey._training(
                workloads["digits"], _small(updates), 0, "cpu", lambda what: None
            )
        )
    assert torch.equal(weights[2], weights[3]) and not torch.equal(
        weights[0], weights[1]
    )


def test_every_profile_surveys_every_workload():
    for effort in survey.SURVEYS.values():
        assert (
            set(effort.updates)
            == set(effort.noise_batch)
            == set(effort.step_batches)
            == set(workloads)
        )
        assert all(batch % 4 == 0 for batch in effort.noise_batch.values())
        assert all(
            points == tuple(sorted(points)) for points in effort.updates.values()
        )


class Busy(NoGuard):
    """Every attempt met others."""

    def measured(self, work):
        return (
            work(),
            "the machine was busy: other processes took 43% of the cores, three times",
        )


def test_steps_that_were_timed_beside_others_have_no_times_and_give_no_advice(
    monkeypatch,
):
    monkeypatch.setitem(survey.SURVEYS, "small", _small((0,)))
    found = survey.survey("digits", "small", "cpu", Busy())
    assert all(
        step["samples_s"] == [] and step["peak_bytes"] for step in found["steps"]
    )  # memory is no time
    assert moments(found)[0].estimate.batches == 4  # nor is the noise
    assert json.loads(json.dumps(found)) == found
    with pytest.raises(
        ValueError,
        match="its steps could not be timed: the machine was busy: other processes",
    ):
        advice(found, middle(found))
    assert len(judge(None, {"workloads": {"digits": found}})) == 4


def test_steps_of_a_throttled_machine_have_none_either(monkeypatch):
    throttled = NotMeasured(INVALID, "the machine was throttled (power brake)")
    monkeypatch.setattr(
        survey, "sample", lambda launches, *_, **__: dict.fromkeys(launches, throttled)
    )
    monkeypatch.setitem(survey.SURVEYS, "small", _small((0,)))
    found = survey.survey("digits", "small", "cpu", NoGuard())
    assert found["why_not_timed"] == throttled.reason and not any(
        step["samples_s"] for step in found["steps"]
    )
