"""Normalisations alone beside the whole: their noise scale, and how far it is from that."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from batchline.bench.stats.forgetting import ratio_over_steps
from batchline.bench.stats.noise_scale import NoiseScale
from tests.metered_steps import assert_whole, loss_of, single_samples, small_model

B, T, STEPS = 8, 6, 12


class Transformer(nn.Module):
    """ids[B,T] → logits[B,T,11]."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(8, 11)

    def forward(self, ids):
        return self.head(self.blocks(self.token(ids)))


def _loss(model, ids):
    logits = model(ids)[:, :-1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _trained(meter_of, layers=None):
    """A meter of some steps of a small transformer."""
    torch.manual_seed(4)
    model = Transformer().double()
    meter = meter_of(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(STEPS):
        ids = torch.arange(T) + torch.randint(11, (B, 1))
        noise = torch.randint(11, (B, T))
        ids = torch.where(torch.rand(B, T) < 0.2, noise, ids % 11)
        optimizer.zero_grad()
        with meter:
            _loss(model, ids).backward()
        last = {name: one.detach().clone() for name, one in model.named_parameters()}
        optimizer.step()
    return model, meter, ids, last


@pytest.fixture(scope="module")
def whole():
    return _trained(lambda model: NoiseMeter(model, reduction="mean"))


@pytest.fixture(scope="module")
def norms():
    return _trained(lambda model: NoiseMeter(model, reduction="mean", layers="norm"))


def test_norms_alone_read_as_they_do_in_the_whole(whole, norms):
    beside, alone = whole[1].reading.of_norms, norms[1].reading
    assert len(beside.layers) == 4 and list(beside.layers) == list(alone.layers)
    assert beside.whole.mean_square == pytest.approx(alone.whole.mean_square, rel=1e-9)
    assert beside.noise().simple.low == pytest.approx(alone.noise().simple.low)
    assert beside.scale().trace < 0.5 * whole[1].reading.scale().trace


def test_norms_are_those_of_single_samples(whole):
    model, meter, ids, last = whole
    model.load_state_dict(last)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("norm" in name)
    g = single_samples(model, lambda model: (_loss(model, one[None]) for one in ids))
    assert_whole(meter.reading.of_norms, g, rel=1e-8)


def _direct(whole, norms):
    """ln(B_simple of the norms over the whole's) from (S, G2)[K,2] of each."""
    (trace, square), (of_trace, of_square) = norms.mean(0), whole.mean(0)
    return math.log(trace / square * of_square / of_trace)


def test_the_ratio_is_that_of_two_meters_and_its_interval_a_jackknifes(whole, norms):
    found = whole[1].history(half_life=math.inf).norm_ratio()
    pairs = [
        np.array([(past.trace, past.square) for past in meter.history().steps])
        for meter in (whole[1], norms[1])
    ]
    direct = _direct(*pairs)
    assert math.log(found.value) == pytest.approx(direct, abs=1e-9)
    left_out = [
        _direct(*(np.delete(one, step, 0) for one in pairs)) for step in range(STEPS)
    ]
    error = math.sqrt((STEPS - 1) * np.var(left_out))
    half = math.log(found.interval.high / found.interval.low) / 2
    assert half == pytest.approx(2.201 * error, rel=0.25)  # Student's t of 11
    assert f"normalisations alone: {found} times" in str(whole[1].history(math.inf))


def test_a_run_that_goes_on_keeps_the_ratio(whole):
    other = NoiseMeter(whole[0].requires_grad_(), reduction="mean")
    other.load_state_dict(whole[1].state_dict())
    assert other.history().norm_ratio() == whole[1].history().norm_ratio()


def test_norms_alone_have_nothing_to_be_compared_with(norms):
    with pytest.raises(UsageError, match="normalisations beside the whole: .* these 0"):
        norms[1].history().norm_ratio()
    assert "normalisations alone" not in str(norms[1].history())


def test_a_model_without_norms_has_none():
    model = nn.Linear(4, 2)
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        loss_of(model).backward()
    with pytest.raises(UsageError, match="no normalisation was measured"):
        meter.reading.of_norms
    some = NoiseMeter(small_model(), reduction="mean")
    assert some.history().of_norms.steps == ()


def test_the_ratios_interval_covers():
    """What both have of a step's luck cancels: without that it would be far wider."""
    draw = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(1000):
        luck = draw.normal(1, 0.3, (30, 2))
        own = draw.normal(1, 0.1, (30, 2, 2))
        bottom = [NoiseScale(6 * s, 2 * g) for s, g in luck * own[:, 0]]
        top = [NoiseScale(4 * s, g) for s, g in luck * own[:, 1]]
        found = ratio_over_steps(top, bottom, [8] * 30, math.inf)
        covered += 4 / 3 in found.interval
        widths.append(found.interval.high / found.interval.low)
    assert 0.93 <= covered / 1000 <= 0.97
    assert np.mean(widths) < 1.2


def test_a_mean_that_is_not_above_0_has_no_ratio():
    fine, lost = [NoiseScale(1, 1)] * 4, [NoiseScale(1, -1)] * 4
    with pytest.raises(ValueError, match="S and G2 above 0"):
        ratio_over_steps(lost, fine, [8] * 4, 200)
