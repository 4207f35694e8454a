"""Each kind of layer, alone and shared, against single-sample backward passes in fp64."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from batchline.bench.noise import NoiseMeter
from batchline.bench.noise.meter import convolutions, step

BATCH = 6


def _seeded(make):
    torch.manual_seed(5)
    return make().double()


def _floats(*shape):
    return torch.randn(
        BATCH, *shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )


def _ids(*shape, vocabulary=7):
    return torch.randint(
        vocabulary, (BATCH, *shape), generator=torch.Generator().manual_seed(8)
    )


def _loss(y):
    """Of each sample: no two of its outputs count alike."""
    y = y.flatten(1)
    return (y.square() * torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype)).sum(1)


def _check(model, x, rel=1e-9):
    """{ḡ, n, d} of every parameter, and .grad, against a backward pass for each sample;
    returns the meter.
    """
    plain = copy.deepcopy(model)
    names, parameters = zip(*plain.named_parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    rows = [
        torch.autograd.grad(
            _loss(plain(x[b : b + 1])).sum(), trained, allow_unused=True
        )
        for b in range(len(x))
    ]
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        _loss(model(x)).mean().backward()
    for index, name in enumerate(
        name for name, parameter in zip(names, parameters) if parameter.requires_grad
    ):
        if rows[0][index] is None:
            assert name in meter.reading.without_gradient
            continue
        g = torch.stack([row[index].flatten() for row in rows])
        mean, found = g.mean(0), meter.reading.parameters[name]
        n = g.square().sum(1)
        assert found.squared_norms == pytest.approx(n.numpy(), rel=rel, abs=1e-14), name
        assert found.mean_square == pytest.approx(
            mean.square().sum().item(), rel=rel
        ), name
        scale = (n * mean.square().sum()).sqrt().max().item()
        assert found.inner_products == pytest.approx(
            (g @ mean).numpy(), rel=rel, abs=rel * scale
        ), name
        torch.testing.assert_close(
            model.get_parameter(name).grad.flatten(), mean, rtol=1e-9, atol=1e-12
        )
    return meter


class Twice(nn.Module):
    """One layer, called two times."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class TiedLanguageModel(nn.Module):
    """The output layer's weight is the embedding's table."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.head.weight = self.token.weight

    def forward(self, ids):
        return self.head(torch.tanh(self.token(ids)))


class TiedTwice(TiedLanguageModel):
    """Looks ids up twice, and puts the tokens of one look-up out twice."""

    def forward(self, ids):
        first = self.token(ids)
        second = self.token((ids * ids + 1) % 7)
        return self.head(first.sin()) + self.head(torch.tanh(first + 2 * second))


class TwoLookups(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Embedding(7, 5)

    def forward(self, ids):
        return self.token(ids).sin() * self.token((ids + 1) % 7)


class TiedLinears(nn.Module):
    """Two layers with one weight and different numbers of tokens."""

    def __init__(self):
        super().__init__()
        self.one, self.other = (nn.Linear(4, 4) for _ in range(2))
        self.other.weight = self.one.weight

    def forward(self, x):
        return torch.tanh(self.one(x)).sum(1) + self.other(x[:, 0])


class Token(nn.Module):
    """A bare parameter, in front of the sequence."""

    def __init__(self):
        super().__init__()
        self.first, self.layer = nn.Parameter(torch.randn(1, 1, 4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.layer(torch.cat([self.first.expand(len(x), -1, -1), x], 1))


class LastState(nn.Module):
    """Reads the outputs and all last states, whatever the order of dimensions."""

    def __init__(self, kind, hidden=3, **options):
        super().__init__()
        options = {"batch_first": True} | options
        self.recurrent = kind(4, hidden, **options)

    def forward(self, x, *states):
        first = self.recurrent.batch_first
        y, last = self.recurrent(x if first else x.transpose(0, 1), *states)
        weights = torch.linspace(0.5, 1.5, x.shape[1], dtype=x.dtype)[:, None]
        y = ((y if first else y.transpose(0, 1)) * weights).sum(1)
        last = last if isinstance(last, tuple) else (last,)
        return torch.cat([y, *(one for state in last for one in state)], 1)


class States(LastState):
    """Starts from states that are trained through a layer."""

    def __init__(self, kind):
        super().__init__(kind, num_layers=2)
        self.begin = nn.Linear(4, 6)

    def forward(self, x):
        state = self.begin(x[:, 0]).unflatten(1, (2, 3)).transpose(0, 1)
        lstm = isinstance(self.recurrent, nn.LSTM)
        return super().forward(x, (state, state.tanh()) if lstm else state)


class TiedRecurrent(nn.Module):
    """A cell that is called twice, so that its samples' gradients add up."""

    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        return self.recurrent(self.recurrent(x)[0])[0]


class Attention(nn.Module):
    def __init__(self, call=lambda attention, x: attention(x, x, x)[0], **options):
        super().__init__()
        self.call = call
        self.attention = nn.MultiheadAttention(4, 2, **{"batch_first": True} | options)
        nn.init.normal_(
            self.attention.in_proj_weight
            if self.attention.in_proj_weight is not None
            else self.attention.q_proj_weight
        )

    def forward(self, x):
        return self.call(self.attention, x)


def _with_weights(attention, x):
    y, weights = attention(x, x, x, average_attn_weights=False)
    return torch.cat(
        [
            y,
            weights.flatten(2).sum(2).mean(1)[:, None, None] * y,
            weights.mT.square().sum(1),
        ],
        2,
    )


def _of_another(attention, x):
    return attention(x, x.flip(1).tanh(), x.sin(), need_weights=False)[0]


def _cross(attention, x):
    other = x[:, :2].tanh()
    return attention(x, other, other, need_weights=False)[0]


def _masked(attention, x):
    padding = torch.zeros(x.shape[:2], dtype=torch.bool)
    padding[:, -1] = True
    causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
    y, _ = attention(x, x, x, key_padding_mask=padding, attn_mask=causal)
    z, _ = attention(x, x, x, attn_mask=causal, is_causal=True, need_weights=False)
    return y + 2 * z


def _time_first(attention, x):
    x = x.transpose(0, 1)
    return attention(x, x, x, need_weights=False)[0].transpose(0, 1)


def _three_masks(attention, x):
    mask = torch.zeros(2 * len(x), x.shape[1], x.shape[1], dtype=torch.bool)
    mask[1::2, :, 0] = True
    return attention(x, x, x, attn_mask=mask)[0]


def _changed_in_place():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)

        def forward(self, ids):
            x = self.token(ids)
            x.mul_(2).add_(1)
            return functional.relu_(self.norm(x))

    return Model()


COMPACT = {
    "linear": (lambda: nn.Linear(5, 3), _floats(5)),
    "linear without bias": (lambda: nn.Linear(5, 3, bias=False), _floats(5)),
    "linear of tokens": (lambda: nn.Linear(5, 3), _floats(4, 5)),
    "linear of two middle dimensions": (lambda: nn.Linear(5, 3), _floats(4, 2, 5)),
    "linear behind a transpose": (lambda: nn.Linear(4, 3), _floats(4, 5).mT),
    "layer norm": (
        lambda: nn.Sequential(nn.Linear(5, 5), nn.LayerNorm(5)),
        _floats(4, 5),
    ),
    "layer norm of no tokens": (lambda: nn.LayerNorm(5), _floats(5)),
    "layer norm of two dimensions": (lambda: nn.LayerNorm((4, 5)), _floats(3, 4, 5)),
    "layer norm without bias": (lambda: nn.LayerNorm(5, bias=False), _floats(2, 5)),
    "rms norm": (lambda: nn.Sequential(nn.Linear(5, 5), nn.RMSNorm(5)), _floats(4, 5)),
    "embedding": (lambda: nn.Embedding(7, 4), _ids(9)),
    "embedding of one id": (lambda: nn.Embedding(7, 4), _ids()),
    "embedding with padding": (lambda: nn.Embedding(7, 4, padding_idx=2), _ids(9)),
    "embedding of a table of ids": (lambda: nn.Embedding(7, 4), _ids(3, 5)),
    "changed in place": (_changed_in_place, _ids(5)),
    "linear called twice": (lambda: Twice(nn.Linear(4, 4)), _floats(3, 4)),
    "layer norm called twice": (lambda: Twice(nn.LayerNorm(4)), _floats(3, 4)),
    "tied linears": (TiedLinears, _floats(3, 4)),
    "tied language model": (TiedLanguageModel, _ids(5)),
    "tied language model, twice": (TiedTwice, _ids(5)),
    "two look-ups": (TwoLookups, _ids(5)),
}
CONVOLUTIONS = {
    "convolutions": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 2)),
        _floats(2, 5, 5),
    ),
    "strides, padding, dilation": (
        lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 3), padding=(2, 1), dilation=(2, 1)),
        _floats(2, 7, 8),
    ),
    "many positions": (lambda: nn.Conv2d(2, 3, 3, bias=False), _floats(2, 12, 11)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1), _floats(4, 5, 6)),
    "depthwise": (lambda: nn.Conv2d(3, 3, 3, groups=3, padding=1), _floats(3, 5, 6)),
    "depthwise, two outputs a channel": (
        lambda: nn.Conv2d(3, 6, 2, groups=3, stride=2, dilation=2, padding=1),
        _floats(3, 6, 7),
    ),
    "same, reflected": (
        lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="reflect"),
        _floats(2, 9),
    ),
    "valid": (lambda: nn.Conv1d(2, 3, 4, padding="valid"), _floats(2, 9)),
    "circular": (
        lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        _floats(2, 4, 5),
    ),
    "three dimensions": (lambda: nn.Conv3d(2, 3, 2, stride=2), _floats(2, 4, 5, 4)),
    "called twice": (lambda: Twice(nn.Conv1d(3, 3, 3, padding=1)), _floats(3, 5)),
    "channels last": (
        lambda: nn.Conv2d(3, 2, 2).to(memory_format=torch.channels_last),
        _floats(3, 5, 5).to(memory_format=torch.channels_last),
    ),
}


def _turned_to_eval(make, *shape):
    """A module that has seen two batches, and then stands still."""
    module = make()
    for _ in range(2):
        module(torch.randn(5, *shape))
    return nn.Sequential(nn.Linear(shape[-1], shape[-1]), module.eval())


NORMS = {
    "group norm": (lambda: nn.GroupNorm(2, 4), _floats(4, 5)),
    "group norm of an image": (lambda: nn.GroupNorm(2, 4), _floats(4, 5, 3)),
    "group norm of no positions": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6)),
        _floats(4),
    ),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), _floats(3, 4, 5)),
    "instance norm, running": (
        lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True),
        _floats(3, 5),
    ),
    "instance norm in eval": (
        lambda: _turned_to_eval(
            lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), 3, 5
        ),
        _floats(3, 5),
    ),
    "batch norm in eval": (
        lambda: _turned_to_eval(lambda: nn.BatchNorm1d(4), 4),
        _floats(4),
    ),
    "batch norm of an image in eval": (
        lambda: _turned_to_eval(lambda: nn.BatchNorm2d(2), 2, 3, 4),
        _floats(2, 3, 4),
    ),
    "group norm called twice": (lambda: Twice(nn.GroupNorm(1, 3)), _floats(3, 4)),
}
ATTENTIONS = {
    "of itself": (Attention, _floats(3, 4)),
    "without bias": (lambda: Attention(bias=False), _floats(3, 4)),
    "with weights": (lambda: Attention(_with_weights), _floats(3, 4)),
    "of another's keys": (lambda: Attention(_cross), _floats(3, 4)),
    "of three inputs": (lambda: Attention(_of_another), _floats(3, 4)),
    "masked, called twice": (lambda: Attention(_masked), _floats(3, 4)),
    "time first": (lambda: Attention(_time_first, batch_first=False), _floats(3, 4)),
    "a mask per head": (lambda: Attention(_three_masks), _floats(3, 4)),
}
RECURRENT = {
    f"{kind.__name__}{name}": (
        lambda kind=kind, options=options: LastState(kind, **options),
        _floats(4, 4),
    )
    for kind in (nn.RNN, nn.GRU, nn.LSTM)
    for name, options in (
        ("", {}),
        (" without bias", {"bias": False}),
        (" of two layers, both ways", {"num_layers": 2, "bidirectional": True}),
        (" time first", {"batch_first": False}),
    )
}
RECURRENT["RNN by ReLU"] = (
    lambda: LastState(nn.RNN, nonlinearity="relu"),
    _floats(4, 4),
)
RECURRENT |= {
    f"{kind.__name__} from a state": (lambda kind=kind: States(kind), _floats(3, 4))
    for kind in (nn.RNN, nn.GRU, nn.LSTM)
}
RECURRENT["called twice"] = (TiedRecurrent, _floats(3, 4))
COMPACT |= {f"attention: {name}": case for name, case in ATTENTIONS.items()}
COMPACT |= {f"recurrent: {name}": case for name, case in RECURRENT.items()}
COMPACT |= NORMS
COMPACT |= {f"convolution: {name}": case for name, case in CONVOLUTIONS.items()}
REPLAYED = {
    "transposed convolution": (lambda: nn.ConvTranspose1d(2, 3, 3), _floats(2, 5)),
    "bare parameter": (Token, _floats(3, 4)),
    "parametrised": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)),
        _floats(4),
    ),
    "attention of other keys": (
        lambda: Attention(kdim=4, vdim=4, add_zero_attn=True),
        _floats(3, 4),
    ),
    "lstm of a projected state": (
        lambda: LastState(nn.LSTM, 5, proj_size=3),
        _floats(3, 4),
    ),
}


@pytest.mark.parametrize("case", COMPACT)
def test_a_supported_layer(case):
    make, x = COMPACT[case]
    assert _check(_seeded(make), x).fallbacks == {}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("case", REPLAYED)
def test_any_other_layer_goes_through_torch_func_and_is_named(case):
    make, x = REPLAYED[case]
    assert _check(_seeded(make), x).fallbacks


def test_the_product_of_a_tied_weight_is_made_once(monkeypatch):
    """In the backward pass, whose gradient it is, and not again when the step ends."""

    def again(*_):
        raise AssertionError("made again")

    monkeypatch.setattr(step, "of_layer", again)
    _check(_seeded(TiedLanguageModel), _ids(4))


def test_fallbacks_are_named_by_type():
    model = nn.Sequential(
        nn.ConvTranspose1d(1, 2, 2), nn.Flatten(), nn.Linear(12, 2)
    ).double()
    meter = _check(model, _floats(1, 5))
    assert meter.fallbacks == meter.reading.fallbacks == {"0": "ConvTranspose1d"}
    assert "0 (ConvTranspose1d) went through torch.func" in str(meter.reading)


@pytest.mark.parametrize(
    "chunk", [1, 70, 200], ids=["a sample at a time", "two", "five"]
)
@pytest.mark.parametrize("case", ["tied language model", "bare parameter"])
def test_chunks_give_what_one_gives(case, chunk, monkeypatch):
    monkeypatch.setattr(step, "_CHUNK", chunk)
    make, x = (COMPACT | REPLAYED)[case]
    _check(_seeded(make), x)


@pytest.mark.parametrize("at_once", [1, 200, 700])
@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_a_convolution_by_chunks(case, at_once, monkeypatch):
    monkeypatch.setattr(convolutions, "_AT_ONCE", at_once)
    make, x = CONVOLUTIONS[case]
    _check(_seeded(make), x)


def test_frozen_parameters_are_left_out_and_named():
    model = _seeded(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    )
    model[0].weight.requires_grad_(False)
    model[1].weight.requires_grad_(False)
    model[2].requires_grad_(False)
    meter = _check(model, _floats(5))
    assert list(meter.reading.parameters) == ["0.bias", "1.bias"]
    assert meter.reading.frozen == ("0.weight", "1.weight", "2.weight", "2.bias")
    assert model[0].weight.grad is None and "frozen: 0.weight" in str(meter.reading)


def test_freezing_between_steps_is_seen():
    model = _seeded(lambda: nn.Linear(5, 3))
    meter = NoiseMeter(model, reduction="mean")
    for names in (["weight", "bias"], ["weight"]):
        with meter:
            _loss(model(_floats(5))).mean().backward()
        assert list(meter.reading.parameters) == names
        model.bias.requires_grad_(False)


def test_what_the_loss_does_not_depend_on_is_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(5, 3), nn.Linear(5, 3)

        def forward(self, x):
            self.unused(x)
            return self.used(x)

    meter = _check(_seeded(Model), _floats(5))
    assert meter.reading.without_gradient == ("unused.weight", "unused.bias")


def test_a_pass_without_gradients_inside_the_step_is_not_measured():
    model = _seeded(lambda: nn.Linear(5, 3))
    meter = NoiseMeter(model, reduction="sum")
    with meter:
        with torch.no_grad():
            model(_floats(5)[:2])
        _loss(model(_floats(5))).sum().backward()
    assert meter.reading.batch == BATCH


def test_equal_tokens_of_a_sample_add_up_before_they_are_squared():
    table = _seeded(lambda: nn.Embedding(3, 1))
    ids = torch.tensor([[0, 0, 1], [2, 2, 2]])
    meter = NoiseMeter(table, reduction="sum")
    with meter:
        table(ids).sum().backward()
    assert list(meter.reading.parameters["weight"].squared_norms) == [5, 9]
    assert list(meter.reading.parameters["weight"].inner_products) == [2.5, 4.5]
