"""The noise of gradients as Adam scales them is that of single samples over √v̂ + eps, in
fp64.
"""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from batchline.bench.noise.meter import step as meter_step
from batchline.bench.stats.noise_scale import BatchStatistics, within_batch
from tests.metered_steps import assert_untouched, assert_whole, loss_of, small_model
from tests.metered_steps import single_samples

B = 6


class Text(nn.Module):
    """ids[B,T] → [B,3]: a table, a norm, an LSTM and a linear layer over tokens."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(7, 4)
        self.norm = nn.LayerNorm(4)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.mix = nn.Linear(5, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, ids):
        y, _ = self.lstm(self.norm(self.token(ids)))
        return self.head(self.mix(y).tanh().mean(1))


class Tied(nn.Module):
    """A table that is the output layer's weight too."""

    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids):
        return self.head(self.token(ids).tanh()).sum(1)


def _convolutions():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def _ids():
    return torch.randint(7, (B, 5))


MODELS = {
    "one token": (small_model, lambda: torch.randn(B, 4)),
    "tokens": (small_model, lambda: torch.randn(B, 3, 4)),
    "images": (_convolutions, lambda: torch.randn(B, 2, 5, 5)),
    "text": (Text, _ids),
    "a shared table": (Tied, _ids),
}
OPTIMIZERS = {
    "Adam": torch.optim.Adam,
    "AdamW": lambda own: torch.optim.AdamW(own, weight_decay=0.1),
    "AMSGrad": lambda own: torch.optim.Adam(own, amsgrad=True),
    "NAdam": torch.optim.NAdam,
    "RMSprop": torch.optim.RMSprop,  # whose bias is not corrected
    "centred RMSprop": lambda own: torch.optim.RMSprop(own, centered=True),
}


def _losses(model, x):
    return model(x).square().flatten(1).sum(1)


def _trained(name, optimizer="Adam", steps=3):
    """A model in fp64 that the optimizer has made so many steps with, and a batch."""
    torch.manual_seed(7)
    make, draw = MODELS[name]
    model = make().double()
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    for _ in range(steps):
        optimizer.zero_grad()
        x = draw()
        _losses(model, x.double() if x.is_floating_point() else x).mean().backward()
        optimizer.step()
    model.zero_grad()
    x = draw()
    return model, optimizer, x.double() if x.is_floating_point() else x


def _divisors(model, optimizer):
    """√v̂ + eps[P], as what the optimizer's own next step divides by."""
    found = []
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        group = optimizer.param_groups[0]
        if "exp_avg_sq" in state:
            v = state["exp_avg_sq"]
            if group.get("amsgrad"):
                v = state["max_exp_avg_sq"]
            v = v / (1 - 0.999 ** float(state["step"]))
        else:
            v = state["square_avg"]
            if group["centered"]:
                v = v - state["grad_avg"] ** 2
        found.append((v.sqrt() + 1e-8).flatten())
    return torch.cat(found)


def _scaled(model, optimizer, x):
    """[B,P] of single samples."""
    g = single_samples(
        model, lambda model: (_losses(model, one[None]).sum() for one in x)
    )
    return g / _divisors(model, optimizer)


def _read(model, optimizer, x, **options):
    meter = NoiseMeter(model, reduction="mean", optimizer=optimizer)
    with meter.step(**options):
        _losses(model, x).mean().backward()
    return meter.reading


@pytest.mark.parametrize(
    "name, optimizer",
    [(name, "Adam") for name in MODELS] + [("text", name) for name in OPTIMIZERS],
)
def test_it_is_that_of_single_samples(name, optimizer):
    model, optimizer, x = _trained(name, optimizer)
    reading = _read(model, optimizer, x)
    assert reading.preconditioned.why_not is None
    assert_whole(reading.preconditioned, _scaled(model, optimizer, x))
    raw = single_samples(
        model, lambda model: (_losses(model, one[None]).sum() for one in x)
    )
    assert_whole(reading, raw)


def test_it_has_layers_and_an_interval_of_its_own():
    model, optimizer, x = _trained("text")
    reading = _read(model, optimizer, x).preconditioned
    g = _scaled(model, optimizer, x)
    mean = g.mean(0)
    expected = within_batch(
        BatchStatistics(mean @ mean, g.square().sum(1).numpy(), (g @ mean).numpy())
    )
    assert reading.noise().simple.low == pytest.approx(expected.simple.low, rel=1e-6)
    assert list(reading.layers) == ["token", "norm", "lstm", "mix", "head"]
    sizes = [sum(p.numel() for p in layer.parameters()) for layer in model.children()]
    parts = dict(zip(reading.layers, g.split(sizes, 1)))
    for layer, part in parts.items():
        assert reading.layers[layer].squared_norms == pytest.approx(
            part.square().sum(1).numpy(), rel=1e-9
        )


def test_many_gradients_are_made_a_few_at_a_time(monkeypatch):
    model, optimizer, x = _trained("tokens")
    monkeypatch.setattr(meter_step, "_CHUNK", 40)
    assert_whole(
        _read(model, optimizer, x).preconditioned, _scaled(model, optimizer, x)
    )


@pytest.mark.parametrize("within", [False, True])
def test_over_micro_batches(within):
    model, optimizer, x = _trained("text")
    g = _scaled(model, optimizer, x)
    meter = NoiseMeter(model, reduction="mean")
    with meter.step(accumulate=2, within=within, optimizer=optimizer):
        for part in x.split(B // 2):
            (_losses(model, part).mean() / 2).backward()
    reading = meter.reading.preconditioned
    assert_whole(reading, g)
    assert (reading.why_not is None) is within


def test_the_gradient_is_as_without_an_optimizer():
    model, optimizer, x = _trained("text")
    plain = copy.deepcopy(model)
    _losses(plain, x).mean().backward()
    _read(model, optimizer, x)
    assert_untouched(model)
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        assert ours.grad == pytest.approx(theirs.grad, rel=1e-9, abs=1e-12)
    optimizer.step()  # after the step it may


def test_a_mean_of_weights_too():
    model, optimizer, x = _trained("one token")
    weights = torch.tensor([1.0, 2, 3, 1, 2, 4], dtype=torch.float64)
    meter = NoiseMeter(model, reduction="mean", optimizer=optimizer)
    with meter.step(weights=weights):
        ((_losses(model, x) * weights).sum() / weights.sum()).backward()
    u = _scaled(model, optimizer, x) * weights[:, None]
    mean = u.sum(0) / weights.sum()
    z = (u - weights[:, None] * mean) / weights.mean()
    assert meter.reading.preconditioned.scale().trace == pytest.approx(
        z.square().sum().item() / (B - 1), rel=1e-9
    )


def test_before_the_first_step_there_is_none():
    model, optimizer, x = _trained("one token", steps=0)
    reading = _read(model, optimizer, x)
    assert reading.why_not is None
    assert reading.preconditioned.why_not == (
        "Adam has no second moment of 0.weight yet: it has one after its first step"
    )
    assert "√v̂ + eps: not known: Adam has no second" in str(reading)
    with pytest.raises(UsageError, match="no second moment of 0.weight yet"):
        reading.preconditioned.noise()


def test_what_the_optimizer_does_not_update_is_left_out():
    model, _, x = _trained("one token")
    optimizer = torch.optim.Adam(model[0].parameters())
    _losses(model, x).mean().backward()
    optimizer.step()
    reading = _read(model, optimizer, x).preconditioned
    assert list(reading.layers) == ["0"]
    assert "3.weight" in reading.left_out and "0.weight" not in reading.left_out


def test_without_an_optimizer_there_is_none():
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        loss_of(model).backward()
    assert meter.reading.preconditioned is None


@pytest.mark.parametrize(
    "optimizer, name",
    [
        (lambda own: torch.optim.SGD(own, lr=0.1), "SGD"),
        (torch.optim.RAdam, "RAdam"),
        (torch.optim.Adamax, "Adamax"),
        (lambda own: "adam", "str"),
    ],
)
def test_an_optimizer_without_a_second_moment_is_refused_by_name(optimizer, name):
    model = small_model()
    with pytest.raises(
        UsageError, match=f"Adam, AdamW, NAdam or RMSprop .* not {name}$"
    ):
        NoiseMeter(model, reduction="mean", optimizer=optimizer(model.parameters()))


def test_a_wrapped_optimizer_is_looked_into():
    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model, optimizer, x = _trained("one token")
    reading = _read(model, Wrapper(optimizer), x)
    assert_whole(reading.preconditioned, _scaled(model, optimizer, x))


def test_a_step_of_the_optimizer_inside_is_refused():
    model, optimizer, x = _trained("one token")
    meter = NoiseMeter(model, reduction="mean", optimizer=optimizer)
    with pytest.raises(UsageError, match=r"call optimizer.step\(\) after the `with`"):
        with meter:
            _losses(model, x).mean().backward()
            optimizer.step()
    assert_untouched(model)
    optimizer.step()


def test_a_run_has_a_history_of_it():
    model, optimizer, _ = _trained("one token", steps=1)
    meter = NoiseMeter(model, reduction="mean", optimizer=optimizer)
    for _ in range(14):
        with meter:
            _losses(model, torch.randn(B, 4, dtype=torch.float64)).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    history = meter.history().preconditioned
    assert len(history) == 14
    assert history.steps[-1].trace == pytest.approx(
        meter.reading.preconditioned.scale().trace
    )
    assert np.isfinite(meter.scalars()["noise/preconditioned_B_simple"])
    assert "over the optimizer's √v̂ + eps: B_simple" in str(meter.history())
