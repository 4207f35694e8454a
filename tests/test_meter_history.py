"""The meter's history: forgetting means of (S, G2), an interval over steps, and states."""

import json
import math
import weakref

import numpy as np
import pytest
import torch

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from batchline.bench.stats.forgetting import over_steps
from batchline.bench.stats.noise_scale import NoiseScale, over_batches
from tests.metered_steps import X, loss_of, small_model


def _scales(count, seed=1):
    draw = np.random.default_rng(seed)
    return [NoiseScale(*pair) for pair in draw.normal((6, 2), (1, 0.3), (count, 2))]


def test_equal_steps_that_are_not_forgotten_are_independent_batches():
    scales = _scales(20)
    ours = over_steps(scales, [8] * 20, math.inf)
    theirs = over_batches(scales, 8)
    for name in ("trace", "square", "simple"):
        one, other = getattr(ours, name), getattr(theirs, name)
        assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert ours.scale.simple == pytest.approx(theirs.scale.simple)


def test_older_steps_weigh_less():
    early, late = _scales(300), [NoiseScale(60, 2 + x.square) for x in _scales(300)]
    found = over_steps(early + late, [8] * 600, 40)
    share = 0.5 ** (300 / 40)
    traces = np.mean([scale.trace for scale in early[-100:]])
    assert found.scale.trace == pytest.approx(60 - share * (60 - traces), rel=0.01)


@pytest.mark.parametrize("sizes", [[8], [8, 16]], ids=["equal", "unequal"])
def test_the_interval_covers(sizes):
    draw = np.random.default_rng(3)
    batches = [sizes[number % len(sizes)] for number in range(60)]
    covered = 0
    for _ in range(1000):
        pairs = draw.normal(
            (6, 2), np.array([[1, 0.3]]) * np.array(batches)[:, None] ** -0.5
        )
        scales = [NoiseScale(*pair) for pair in pairs]
        covered += 3 in over_steps(scales, batches, 15).simple
    assert 0.93 <= covered / 1000 <= 0.97


def test_steps_that_are_forgotten_show_no_rare_samples():
    """2,000 steps of 8 are as good as 14 at a half-life of 5, and as 577 at one of 200."""
    scales, batches = _scales(2000), [8] * 2000
    forgetful = over_steps(scales, batches, half_life=5)
    assert forgetful.effective == pytest.approx(14.4, abs=0.1)
    assert forgetful.warnings == (
        "116 samples can't show large ones rarer than 1 in 38",
    )
    assert not over_steps(scales, batches, half_life=200).unseen


@pytest.mark.parametrize("half_life", [0, -3, math.nan])
def test_a_half_life_that_is_none(half_life):
    with pytest.raises(ValueError, match="half-life is above 0"):
        over_steps(_scales(3), [8] * 3, half_life)


def _run(meter, model, steps, size=6):
    for _ in range(steps):
        with meter:
            loss_of(model, torch.randn(size, 4)).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.001 * parameter.grad
                parameter.grad = None


def test_a_run_has_a_history_with_an_interval_over_steps():
    torch.manual_seed(2)
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    scales = []
    for _ in range(12):
        _run(meter, model, 1)
        scales.append(meter.reading.scale())
    found = meter.history(half_life=5).estimate()
    expected = over_steps(scales, [6] * 12, 5)
    assert found.scale.simple == pytest.approx(expected.scale.simple)
    assert found.simple.low == pytest.approx(expected.simple.low)
    assert "12 steps, half forgotten after 5: B_simple" in str(meter.history(5))


def test_steps_of_several_passes_and_of_weights_are_in_it():
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    scales = []
    for _ in range(3):
        x = torch.randn(8, 4)
        with meter.step(accumulate=2):
            for part in x.split(4):
                (loss_of(model, part) / 2).backward()
        scales.append(meter.reading.scale())
        with meter.step(weights=torch.arange(1, 9)):
            loss_of(model, x).backward()
        scales.append(meter.reading.scale())
    past = meter.history()
    assert [one.trace for one in past.steps] == pytest.approx(
        [scale.trace for scale in scales]
    )
    assert [one.square for one in past.steps] == pytest.approx(
        [scale.square for scale in scales]
    )


def test_steps_without_a_noise_scale_are_counted():
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    assert "not known yet" in str(meter.history())
    with pytest.raises(UsageError, match="these 0 are as good as 0.00"):
        meter.history().estimate()
    for x in (X, X[:1], X * float("nan")):
        with meter:
            loss_of(model, x).backward()
    assert len(meter.history()) == 1 and meter.history().left_out == 2
    with pytest.raises(UsageError, match=r"as good as 1.00 \(2 had no noise scale\)"):
        meter.history().estimate()


def test_a_run_goes_on_from_a_state():
    torch.manual_seed(2)
    model = small_model()
    meter, other = (NoiseMeter(model, reduction="mean") for _ in range(2))
    _run(meter, model, 5)
    other.load_state_dict(json.loads(json.dumps(meter.state_dict())))
    assert other.history() == meter.history()
    _run(other, model, 2)
    assert len(other.history()) == 7 and len(meter.history()) == 5


def test_every_goes_on_from_a_state():
    model = small_model()
    meter, other = (NoiseMeter(model, reduction="mean") for _ in range(2))
    with meter.every(3):
        loss_of(model).backward()
    other.load_state_dict(meter.state_dict())
    measured = []
    for _ in range(4):
        with other.every(3) as now:
            loss_of(model).backward()
        measured.append(now)
    assert measured == [False, False, True, False]


def test_scalars_are_finite_numbers_for_a_log():
    torch.manual_seed(2)
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    _run(meter, model, 30)
    found = meter.scalars()
    assert found["noise/batch"] == 6 and found["noise/trace"] > 0
    assert found["noise/B_simple"] == meter.history().estimate().scale.simple
    assert found["noise/inner_product_test"] == meter.reading.tests()[1].value
    assert all(isinstance(v, (int, float)) and math.isfinite(v) for v in found.values())
    with meter:
        loss_of(model, X[:1]).backward()
    assert "noise/trace" not in meter.scalars()


@pytest.mark.parametrize("replayed", [False, True])
def test_a_reading_keeps_no_activations(replayed):
    model = small_model()
    if replayed:
        model = torch.nn.Sequential(model, torch.nn.GroupNorm(1, 2))
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        loss_of(model).backward()
        step = weakref.ref(meter._record._open[0])
        assert step() is not None
    assert step() is None and meter.reading.batch == 6
