"""A mean over tokens under a mask is a ratio: its noise is that of Σu/Σw, to first order."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from batchline.bench.noise.meter.reading import Taken, Way, put_together
from batchline.bench.stats.noise_scale import noise_scale
from tests.metered_steps import loss_of, small_model

B, T = 12, 7


class Tagger(nn.Module):
    """ids[B,T] → logits[B,T,5]."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(9, 6), nn.Linear(6, 5)

    def forward(self, ids, mask):
        return self.head(torch.tanh(self.token(ids)))


def _problem():
    torch.manual_seed(5)
    model = Tagger().double()
    ids, labels = torch.randint(9, (B, T)), torch.randint(5, (B, T))
    lengths = torch.tensor([1, 7, 2, 2, 7, 3, 1, 6, 5, 4, 2, 7])
    return model, ids, labels, torch.arange(T) < lengths[:, None]


def _sums(model, ids, labels, mask):
    """Of each sample, over its tokens."""
    logits = model(ids, mask)
    losses = functional.cross_entropy(logits.mT, labels, reduction="none")
    return (losses * mask).sum(1)


def _influences(model, ids, labels, mask):
    """(ḡ[P], z[B,P]) in fp64: the ratio, and what each sample adds to its error."""
    u = []
    for b in range(len(ids)):
        loss = _sums(model, ids[b : b + 1], labels[b : b + 1], mask[b : b + 1]).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        u.append(torch.cat([gradient.flatten() for gradient in gradients]))
    u, w = torch.stack(u), mask.sum(1).double()
    mean = u.sum(0) / w.sum()
    return mean, (u - w[:, None] * mean) / w.mean()


def _assert_ratio(reading, mean, z):
    square = mean.square().sum().item()
    count = len(z)
    scale = reading.scale()
    trace = z.square().sum().item() / (count - 1)
    assert reading.whole.mean_square == pytest.approx(square, rel=1e-9)
    assert scale.trace == pytest.approx(trace, rel=1e-9)
    assert scale.square == pytest.approx(square - trace / count, rel=1e-9)
    samples = mean + z
    assert reading.whole.squared_norms == pytest.approx(
        samples.square().sum(1).numpy(), rel=1e-9
    )
    assert reading.whole.inner_products == pytest.approx(
        (samples @ mean).numpy(), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize("told", ["to the meter", "to the step"])
def test_a_masked_mean(told):
    model, ids, labels, mask = _problem()
    mean, z = _influences(model, ids, labels, mask)
    ours = {"weights": lambda ids, mask: mask.sum(1)}
    meter = NoiseMeter(
        model, reduction="mean", **ours if told == "to the meter" else {}
    )
    with meter.step(**{} if told == "to the meter" else {"weights": mask.sum(1)}):
        (_sums(model, ids, labels, mask).sum() / mask.sum()).backward()
    _assert_ratio(meter.reading, mean, z)
    assert "Σ of 12 samples' losses over Σ of their weights" in str(meter.reading)
    without = NoiseMeter(model, reduction="mean")
    model.zero_grad()
    with without:
        (_sums(model, ids, labels, mask).sum() / mask.sum()).backward()
    ratio = without.reading.scale().trace / meter.reading.scale().trace
    assert ratio > 1.05  # the ratio's noise is not that of Σu


@pytest.mark.parametrize("told", ["to the meter", "a tensor", "a list filled inside"])
def test_a_masked_mean_over_micro_batches(told):
    model, ids, labels, mask = _problem()
    mean, z = _influences(model, ids, labels, mask)
    meter = NoiseMeter(model, reduction="mean")
    lengths = []
    weights = {
        "to the meter": lambda ids, mask: mask.sum(1),
        "a tensor": mask.sum(1),
        "a list filled inside": lengths,
    }[told]
    with meter.step(accumulate=3, weights=weights):
        for part in torch.arange(B).split((5, 5, 2)):
            lengths.append(mask[part].sum(1))
            sums = _sums(model, ids[part], labels[part], mask[part])
            (sums.sum() / mask.sum()).backward()
    _assert_ratio(meter.reading, mean, z)


def test_equal_weights_change_nothing():
    model, ids, labels, mask = _problem()
    traces = []
    for weights in (None, torch.full((B,), T)):
        meter = NoiseMeter(model, reduction="mean")
        with meter.step(weights=weights):
            _sums(model, ids, labels, torch.ones_like(mask)).div(T).mean().backward()
        traces.append(meter.reading.scale().trace)
    assert traces[0] == pytest.approx(traces[1], rel=1e-9)


def test_the_noise_of_a_ratio_is_what_redrawn_batches_show():
    """Var Σu/Σw over 20,000 batches of 64, from a law in which long samples differ."""
    draw = np.random.default_rng(4)
    batch, repeats = 64, 20_000
    w = draw.integers(1, 20, (repeats, batch)).astype(float)
    u = w[..., None] * (1.5 + 0.1 * w[..., None]) + draw.normal(
        0, w[..., None] ** 0.5, (repeats, batch, 3)
    )
    means = u.sum(1) / w.sum(1)[:, None]
    true_trace = batch * means.var(0, ddof=1).sum()
    traces = []
    for number in range(400):
        g = u[number] / w[number].mean()
        mean = g.mean(0)
        row = [batch * np.linalg.norm(mean), 0.0, *(g**2).sum(1), *(g @ mean)]
        taken = Taken(("p",), np.array([row]), (None,), batch, True)
        square, n, _ = put_together(taken, Way(1.0, w[number]), taken.rows[0])
        traces.append(noise_scale(square, n).trace)
    error = np.std(traces) / len(traces) ** 0.5
    assert np.mean(traces) == pytest.approx(true_trace, rel=0.03, abs=3 * error)
    plain = np.mean(((u / w.mean(1)[:, None, None]) ** 2).sum(2)) - np.mean(
        (means**2).sum(1)
    )
    assert plain > 1.5 * true_trace  # what is said of Σu alone


@pytest.mark.parametrize(
    "weights, words",
    [
        (torch.ones(4), "weights= are 4 numbers"),
        (-torch.ones(6), "of 0 or more, one for each of 6 samples"),
        (torch.zeros(6), "their sum is 0"),
    ],
)
def test_weights_that_are_none(weights, words):
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    with meter.step(weights=weights):
        loss_of(model).backward()
    assert words in meter.reading.why_not


def test_weights_of_a_sum():
    model = small_model()
    with pytest.raises(
        UsageError, match='weights= are of a weighted mean: reduction="mean"'
    ):
        with NoiseMeter(model, reduction="sum").step(weights=torch.ones(6)):
            loss_of(model).backward()
