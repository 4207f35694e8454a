"""A training loop goes on whatever its data are; a reading says why it has no answer.
Scaled losses, random masks and states are followed.
"""

import copy
import math

import pytest
import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from tests.metered_steps import (
    X,
    assert_untouched,
    assert_whole,
    loss_of,
    single_samples,
    small_model,
)


def _metered(model, loss, **options):
    meter = NoiseMeter(model, reduction="mean")
    with meter.step(**options):
        loss(model).backward()
    assert_untouched(model)
    return meter.reading


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_of_one_or_two_ends_no_loop(size):
    reading = _metered(small_model(), lambda model: loss_of(model, X[:size]))
    words = ["", "two samples or more", "three samples or more"][size]
    assert words in reading.why_not and reading.why_not in str(reading)
    with pytest.raises(UsageError, match=words):
        reading.noise()
    if size == 2:
        assert math.isfinite(reading.scale().trace) and len(reading.tests()) == 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["compact", "replayed", "accumulated"])
def test_a_gradient_that_is_not_finite_ends_no_loop(value, kind):
    x = X.clone()
    x[2, 1] = value
    model = small_model()
    if kind == "replayed":
        model = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 2, 3), nn.Flatten())
    if kind == "accumulated":
        meter = NoiseMeter(model, reduction="mean")
        with meter.step(accumulate=2):
            for part in (x, X):
                (loss_of(model, part) / 2).backward()
        reading = meter.reading
    else:
        reading = _metered(model, lambda model: loss_of(model, x))
    assert "NaN or infinite" in reading.why_not and "why not" in str(reading)
    for ask in (reading.noise, reading.tests, reading.scale, lambda: reading.whole):
        with pytest.raises(UsageError, match="NaN or infinite"):
            ask()


def test_a_step_that_overflows_under_a_scaler_and_the_next():
    model = small_model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126, backoff_factor=2.0**-110)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    meter = NoiseMeter(model, reduction="mean")
    readings = []
    for factor in (1e6, 1):
        optimizer.zero_grad()
        g = single_samples(
            model, lambda net: (loss_of(net, X[b : b + 1].double()) for b in range(6))
        )
        with meter.step(scale=scaler.get_scale()):
            scaler.scale(factor * loss_of(model)).backward()
        readings.append(meter.reading)
        scaler.step(optimizer)
        scaler.update()
        str(meter.reading)
    assert "NaN or infinite" in readings[0].why_not
    assert_whole(readings[-1], g, rel=1e-5)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, math.nan])
def test_scales_that_are_none(scale):
    with pytest.raises(UsageError, match="scale="):
        NoiseMeter(small_model(), reduction="mean").step(scale=scale)


@pytest.mark.parametrize("value", ["False", [], 1, torch.ones(2)])
@pytest.mark.parametrize("name", ["samples_apart", "within"])
def test_a_word_that_is_neither_yes_nor_no(name, value):
    with pytest.raises(UsageError, match=f"{name}= is True or False, not"):
        NoiseMeter(nn.Linear(3, 2), reduction="mean", **{name: value})


@pytest.mark.parametrize("accumulate", [0, 1.5, "2"])
def test_accumulations_that_are_none(accumulate):
    with pytest.raises(UsageError, match="accumulate="):
        NoiseMeter(small_model(), reduction="mean").step(accumulate=accumulate)


def test_the_scale_is_free_of_the_loss():
    one, other = (
        _metered(small_model(), lambda model: loss_of(model) * factor)
        for factor in (1, 64)
    )
    assert other.noise().scale.simple == pytest.approx(
        one.noise().scale.simple, rel=1e-5
    )
    assert other.noise().scale.trace == pytest.approx(
        64**2 * one.noise().scale.trace, rel=1e-5
    )


# --- what the replay and the tolerances follow


def _floats(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def _loss(y):
    y = y.flatten(1)
    return (y.square() * torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype)).sum(1)


class Cell(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cell = kind(4, 3)

    def forward(self, x):
        state = None
        for token in x.unbind(1):
            state = self.cell(token, state)
        return state[0] + state[1] if isinstance(state, tuple) else state


class Scaled(nn.Module):
    """A parameter without dimensions."""

    def __init__(self):
        super().__init__()
        self.layer, self.factor = nn.Linear(4, 3), nn.Parameter(torch.tensor(1.3))

    def forward(self, x):
        return self.layer(x) * self.factor


class TiedRoot(nn.Module):
    """A layer's parameter is the model's own too, and used by both."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        self.out, self.bias = self.layer.weight, nn.Parameter(torch.ones(4))

    def forward(self, x):
        return torch.tanh(self.layer(x)) @ self.out.T + self.bias


class TwoOfOne(nn.Module):
    """Two outputs, of which one is made from the other; and its input."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        y = x * self.weight
        return y, torch.tanh(y) * self.weight, x


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.two = nn.Linear(4, 4), TwoOfOne()

    def forward(self, x):
        return torch.cat(self.two(self.first(x)), -1)


def _after_convolution(norm):
    return nn.Sequential(nn.ConvTranspose1d(4, 4, 2), norm, nn.ReLU(), nn.Flatten())


REPLAYED = {
    "lstm cell": lambda: Cell(nn.LSTMCell),
    "gru cell": lambda: Cell(nn.GRUCell),
    "no dimensions": Scaled,
    "tied to the model": TiedRoot,
    "outputs of each other": Both,
    "running statistics": lambda: nn.InstanceNorm1d(
        3, affine=True, track_running_stats=True
    ),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("case", REPLAYED)
def test_what_is_replayed(case):
    torch.manual_seed(5)
    model, x = REPLAYED[case]().double(), _floats(6, 3, 4).double()
    reference = copy.deepcopy(model)
    before = {name: b.clone() for name, b in model.named_buffers()}
    plain = copy.deepcopy(model)
    _loss(plain(x)).mean().backward()
    reading = _metered(model, lambda model: _loss(model(x)).mean())

    def losses(net):
        for b in range(6):
            with torch.no_grad():
                for name, buffer in net.named_buffers():
                    buffer.copy_(before[name])
            yield _loss(net(x[b : b + 1])).sum()

    assert_whole(reading, single_samples(reference, losses))
    for ours, theirs in zip(model.buffers(), plain.buffers()):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize(
    "norm", [nn.InstanceNorm1d(4, affine=True), nn.GroupNorm(4, 4)]
)
def test_a_bias_whose_gradient_is_what_rounding_leaves(norm):
    torch.manual_seed(5)
    model, x = _after_convolution(copy.deepcopy(norm)), _floats(6, 4, 7)
    reading = _metered(model, lambda model: _loss(model(x)).mean())
    assert reading.rounding == ("0.bias",)
    assert "a gradient of rounding alone: 0.bias" in str(reading)
    g = single_samples(
        model, lambda net: (_loss(net(x[b : b + 1].double())).sum() for b in range(6))
    )
    assert_whole(reading, g, rel=1e-5)


def test_layer_norm_under_autocast():
    torch.manual_seed(5)
    width = 64
    model = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 3))
    x = _floats(6, 40, 4)

    def loss(model):
        with torch.autocast("cpu", torch.bfloat16):
            return _loss(model(x)).float().mean()

    reading = _metered(model, loss)
    g = single_samples(
        model, lambda net: (_loss(net(x[b : b + 1].double())).sum() for b in range(6))
    )
    assert reading.whole.squared_norms == pytest.approx(
        g.square().sum(1).numpy(), rel=0.05
    )


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_dropout_in_a_replayed_module_draws_the_same_mask():
    torch.manual_seed(5)
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True).double()
    x = _floats(6, 3, 4).double()

    def loss(model):
        torch.manual_seed(9)
        return _loss(model(x)).mean()

    reading = _metered(model, loss)
    assert reading.fallbacks.keys() <= {"self_attn"}

    def losses(model):
        torch.manual_seed(9)
        return iter(_loss(model(x)).unbind())

    trained = copy.deepcopy(model)
    g = []
    each = list(losses(trained))
    for one in each:
        gradients = torch.autograd.grad(
            one, list(trained.parameters()), retain_graph=True
        )
        g.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert_whole(reading, torch.stack(g))


def test_a_packed_sequence_is_named():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.gru = nn.GRU(4, 3, batch_first=True)

        def forward(self, x):
            lengths = [3] * len(x)
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.gru(packed)[1][0]

    with pytest.raises(UsageError, match="gru .GRU. is given a PackedSequence"):
        _metered(Packed(), lambda model: _loss(model(_floats(6, 3, 4))).mean())


def test_layers_that_are_chosen():
    model = small_model().double()
    x = X.double()
    g = single_samples(
        model, lambda net: (loss_of(net, x[b : b + 1]) for b in range(6))
    )
    for layers, at in (
        ("norm", slice(25, 35)),
        (["0", "nothing*"], slice(0, 25)),
        ("[02]", slice(0, 35)),
    ):
        meter = NoiseMeter(model, reduction="mean", layers=layers)
        with meter:
            loss_of(model, x).backward()
        assert_whole(meter.reading, g[:, at])
        assert "3.weight" in meter.reading.left_out
    with pytest.raises(UsageError, match="layers= names none .*: there are 0, 2, 3"):
        NoiseMeter(model, reduction="mean", layers="head")
