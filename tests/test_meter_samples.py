"""What a sample is: micro-batches, pairs, time first, positions and experts, each against
a loop of single samples in fp64, or refused.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from tests.metered_steps import (
    X,
    assert_untouched,
    assert_whole,
    loss_of,
    refused,
    single_samples,
    small_model,
)

B = 8


def _made(kind, *arguments):
    torch.manual_seed(5)
    return kind(*arguments).double()


def _floats(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).double()


def _ids(*shape):
    return torch.randint(9, shape, generator=torch.Generator().manual_seed(8))


def _loss(y):
    """Of each sample: no two of its outputs count alike."""
    y = y.flatten(1)
    return (y.square() * torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype)).sum(1)


def _alone(x):
    return lambda model: (_loss(model(x[b : b + 1])).sum() for b in range(len(x)))


def _measured(model, x, **options):
    meter = NoiseMeter(model, reduction="mean", **options)
    with meter:
        _loss(model(x)).mean().backward()
    return meter.reading


# --- micro-batches


def _as_one(model, parts, divided):
    sum(_loss(model(part)).mean() / divided for part in parts).backward()


def _one_by_one(model, parts, divided):
    for part in parts:
        (_loss(model(part)).mean() / divided).backward()


def _in_a_bunch(model, parts, divided):
    losses = [_loss(model(part)).mean() / divided for part in parts]
    for loss in losses:
        loss.backward()


@pytest.mark.parametrize("backward", [_as_one, _one_by_one, _in_a_bunch])
@pytest.mark.parametrize("within", [False, True])
def test_micro_batches_are_one_batch(backward, within):
    model = small_model().double()
    x = _floats(24, 4)
    meter = NoiseMeter(model, reduction="mean", within=within)
    with meter.step(accumulate=3):
        backward(model, x.split(8), 3)
    g = single_samples(model, _alone(x))
    reading = meter.reading
    assert_whole(reading, g)
    assert hasattr(reading.whole, "inner_products") == within
    for name, parameter in model.named_parameters():
        assert reading.parameters[name].mean_square == pytest.approx(
            parameter.grad.square().sum().item(), rel=1e-9
        )
    assert reading.scale().simple > 0 and (reading.why_not is None) == within
    assert "B_simple" in str(reading)
    assert_untouched(model)


def test_micro_batches_whose_losses_are_not_divided_are_told_so_by_scale():
    model = small_model().double()
    x = _floats(24, 4)
    meter = NoiseMeter(model, reduction="mean")
    with meter.step(accumulate=3, scale=3):
        _one_by_one(model, x.split(8), 1)
    assert_whole(meter.reading, single_samples(model, _alone(x)))


def test_micro_batches_of_shared_and_replayed_layers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.conv = nn.Linear(4, 4), nn.Conv1d(1, 2, 3)

        def forward(self, x):
            return self.conv(self.one(torch.tanh(self.one(x)))[:, None])

    model = _made(Model)
    x = _floats(12, 4)
    for within in (False, True):
        model.zero_grad()
        meter = NoiseMeter(model, reduction="mean", within=within)
        with meter.step(accumulate=2):
            _one_by_one(model, x.split(6), 2)
        assert_whole(meter.reading, single_samples(model, _alone(x)))


def test_an_incomplete_accumulation_ends_no_loop():
    model = small_model().double()
    meter = NoiseMeter(model, reduction="mean")
    for parts, words in (
        (_floats(24, 4).split(8), "called 3 times, and accumulate=4"),
        (_floats(26, 4).split(8), "micro-batches of 8, 8, 8, 2 samples"),
    ):
        with meter.step(accumulate=4):
            _one_by_one(model, parts, 4)
        assert words in meter.reading.why_not and words in str(meter.reading)


def test_more_calls_than_told():
    model = small_model()
    meter = NoiseMeter(model, reduction="mean")
    with pytest.raises(UsageError, match="more often than accumulate=2"):
        with meter.step(accumulate=2):
            _one_by_one(model, [X, X, X], 2)
    assert_untouched(model)


def test_calls_on_the_same_samples_are_told_by_samples():
    model = small_model().double()
    x, y = _floats(B, 4), _floats(B, 4) + 1
    meter = NoiseMeter(model, reduction="mean", samples=B)
    with meter:
        _loss(model(x) - model(y)).mean().backward()
    g = single_samples(
        model,
        lambda net: (
            _loss(net(x[b : b + 1]) - net(y[b : b + 1])).sum() for b in range(B)
        ),
    )
    assert_whole(meter.reading, g)


def test_layers_called_again_without_the_model():
    model = small_model()
    loss = lambda net: (net[0](X).sum() + net[0](X + 1).sum()).backward()  # noqa: E731
    refused(model, "layers were called several times, and the model itself", loss)


# --- pairs


class Encoder(nn.Module):
    """A table, a norm, linear layers and a convolution."""

    def __init__(self):
        super().__init__()
        self.token, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.conv, self.head = nn.Conv1d(4, 4, 2), nn.Linear(4, 3)

    def forward(self, ids):
        return self.head(self.conv(self.norm(self.token(ids)).mT).mT)


@pytest.mark.parametrize("order", ["cat", "interleaved"])
def test_pairs_that_go_in_as_one_batch(order):
    model = _made(Encoder)
    x, y = _ids(B, 5), _ids(2 * B, 5)[B:]
    if order == "cat":
        rows, owners = torch.cat([x, y]), torch.arange(B).repeat(2)
    else:
        rows, owners = torch.stack([x, y], 1).flatten(0, 1), torch.arange(
            B
        ).repeat_interleave(2)

    def losses(model, x, y):
        return _loss(model(x) * model(y))

    meter = NoiseMeter(model, reduction="mean", samples=owners)
    with meter:
        z = model(rows)
        one, other = (z[owners.argsort(stable=True)].unflatten(0, (B, 2))).unbind(1)
        _loss(one * other).mean().backward()
    g = single_samples(
        model,
        lambda net: (losses(net, x[b : b + 1], y[b : b + 1]).sum() for b in range(B)),
    )
    assert_whole(meter.reading, g)


def test_pairs_of_a_number_alone_are_not_guessed():
    model = small_model()
    meter = NoiseMeter(model, reduction="mean", samples=3)
    with meter:
        loss_of(model).backward()
    assert "6 rows, and samples= tells of 3: say which" in meter.reading.why_not


def test_what_the_loss_is_taken_for_is_shown():
    model = small_model().double()
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        z = functional.normalize(model(X.double()), dim=1)
        functional.cross_entropy(z @ z.T, torch.arange(len(z))).backward()
    assert (
        "assumed: the loss is the mean of 6 samples' own losses, none of which looks at another"
        in str(meter.reading)
    )


# --- T = B


class TimeFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.other = (
            nn.Linear(4, 4),
            nn.LayerNorm(4),
            nn.Linear(4, 3),
        )
        self.gru = nn.GRU(4, 4)

    def forward(self, x):
        x = self.norm(torch.tanh(self.one(x.transpose(0, 1))))
        return self.other(self.gru(x)[0]).transpose(0, 1)


@pytest.mark.parametrize("tokens", [3, B])
def test_layers_with_time_first(tokens):
    model, x = _made(TimeFirst), _floats(B, tokens, 4)
    assert_whole(_measured(model, x), single_samples(model, _alone(x)))


@pytest.mark.parametrize("tokens", [3, B])
def test_a_model_with_time_first(tokens):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.lstm = nn.Embedding(9, 4), nn.LSTM(4, 3)
            self.head = nn.Linear(3, 2)

        def forward(self, ids):
            return self.head(self.lstm(self.token(ids))[0])

    model, ids = _made(Model), _ids(tokens, B)
    meter = NoiseMeter(model, reduction="mean", batch_dim=1)
    with meter:
        _loss(model(ids).transpose(0, 1)).mean().backward()
    g = single_samples(
        model,
        lambda net: (
            _loss(net(ids[:, b : b + 1]).transpose(0, 1)).sum() for b in range(B)
        ),
    )
    assert_whole(meter.reading, g)


class Positions(nn.Module):
    """Token and position embeddings; `shape` of the positions: [T] or [1,T]."""

    def __init__(self, lead, dropout=0.0):
        super().__init__()
        self.token, self.position = nn.Embedding(9, 4), nn.Embedding(B, 4)
        self.head, self.lead = nn.Linear(4, 3), lead
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1]).view(*self.lead, -1)
        x = self.dropout(self.token(ids) + self.position(positions))
        return self.head(torch.tanh(x))


@pytest.mark.parametrize("tokens", [3, B])
@pytest.mark.parametrize("lead", [(), (1,)], ids=["[T]", "[1, T]"])
def test_positions_that_all_samples_share(lead, tokens):
    model, ids = _made(Positions, lead), _ids(B, tokens)
    assert_whole(_measured(model, ids), single_samples(model, _alone(ids)))


def test_positions_that_cannot_be_each_samples_are_refused():
    class Model(Positions):
        def forward(self, ids):
            p = self.position(torch.arange(ids.shape[1]))
            return self.head(self.token(ids) + torch.stack([p] * len(ids)))

    model = _made(Model, ())
    with pytest.raises(UsageError, match="position is given .8. whatever the number"):
        _measured(model, _ids(B, B))
    assert_untouched(model)


class Experts(nn.Module):
    """Each expert takes the tokens of all samples that like it most: `capacity` of them."""

    def __init__(self, capacity, dropout=0.0):
        super().__init__()
        self.first, self.router = nn.Linear(4, 4), nn.Linear(4, 2)
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.capacity, self.dropout = capacity, nn.Dropout(dropout)

    def forward(self, x):
        tokens = self.dropout(self.first(x)).flatten(0, 1)
        weights = self.router(x).flatten(0, 1).softmax(1)
        y = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            chosen = weights[:, number].topk(self.capacity(len(x), x.shape[1])).indices
            y = y.index_add(
                0, chosen, expert(tokens[chosen]) * weights[chosen, number, None]
            )
        return y.view_as(x)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    "capacity, words",
    [
        (lambda batch, tokens: 8, "experts.0 is given .8, 4. whatever the number"),
        (lambda batch, tokens: batch, "experts.. is given other values .* samples mix"),
    ],
    ids=["fixed", "by the batch"],
)
def test_experts_that_choose_their_tokens(capacity, words, dropout):
    model, x = _made(Experts, capacity, dropout), _floats(B, 3, 4)
    with pytest.raises(UsageError, match=words):
        _measured(model, x)
    assert_untouched(model)


class Flat(nn.Module):
    """Layers on samples and tokens as one dimension, a sample's tokens together or not."""

    def __init__(self, time_first=False, dropout=0.0):
        super().__init__()
        self.token, self.norm = nn.Embedding(9, 4), nn.LayerNorm(4)
        self.conv, self.head = nn.Conv1d(1, 2, 3), nn.Linear(4, 3)
        self.time_first, self.dropout = time_first, nn.Dropout(dropout)

    def forward(self, ids):
        ids = ids.T if self.time_first else ids
        x = self.dropout(self.norm(self.token(ids.flatten())))
        y = self.conv(self.head(torch.tanh(x))[:, None]).flatten(1)
        y = y.unflatten(0, ids.shape)
        return y.transpose(0, 1) if self.time_first else y


@pytest.mark.parametrize("tokens", [2, B])
def test_samples_and_tokens_as_one_dimension(tokens):
    model, ids = _made(Flat), _ids(B, tokens)
    assert_whole(_measured(model, ids), single_samples(model, _alone(ids)))


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_tokens_of_samples_that_are_not_together_are_refused(dropout):
    model = _made(Flat, True, dropout)
    words = "token is given samples and tokens as one dimension of 24, in which"
    with pytest.raises(UsageError, match=words):
        _measured(model, _ids(B, 3))
    assert_untouched(model)


def test_an_order_that_cannot_be_seen_is_refused():
    model = _made(Flat)
    with pytest.raises(UsageError, match="token has first dimension 24, and the model"):
        _measured(model, torch.ones(B, 3, dtype=torch.int64))
    assert_untouched(model)


# --- the look at parts of the batch


class Stateful(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 3), 0
        self.register_buffer("seen", torch.zeros(4))
        self.register_buffer("last", None)

    def forward(self, x):
        self.calls += 1
        self.seen += x.detach().sum(0)
        self.last = x.detach().mean(0)
        return functional.dropout(self.layer(x), 0.5)


def test_the_look_leaves_random_states_buffers_and_attributes():
    x = _floats(B, 4)
    plain, model = _made(Stateful), _made(Stateful)
    meter = NoiseMeter(model, reduction="mean")
    torch.manual_seed(3)
    _loss(plain(x)).mean().backward()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    with meter:
        _loss(model(x)).mean().backward()
    assert torch.equal(torch.get_rng_state(), after)
    assert model.calls == 1 and torch.equal(model.seen, plain.seen)
    assert torch.equal(model.last, plain.last)
    torch.testing.assert_close(model.layer.weight.grad, plain.layer.weight.grad)


def test_a_shape_is_looked_at_once():
    class Counting(nn.Sequential):
        def forward(self, x):
            runs.append(len(x))
            return super().forward(x)

    runs = []
    model = _made(Counting, nn.Linear(4, 3))
    meter = NoiseMeter(model, reduction="mean")
    for size in (6, 6, 5, 6):
        with meter:
            _loss(model(_floats(size, 4))).mean().backward()
    first = [2, 3, 3, 6, 2, 3, 3, 6]  # and back, once for a meter
    assert runs == [*first, 6, 2, 2, 3, 5, 6]


def test_a_model_that_does_not_run_with_a_sample_less_is_measured_on_trust():
    class Even(nn.Linear):
        def forward(self, x):
            assert len(x) == B, "eight"
            return super().forward(x)

    model, x = _made(lambda: nn.Sequential(Even(4, 3))), _floats(B, 4)
    reading = _measured(model, x)
    assert "does not run with one sample less (AssertionError: eight)" in str(reading)


def test_samples_that_mix_before_a_layer_are_refused():
    class Centred(nn.Sequential):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    with pytest.raises(UsageError, match="0 is given other values for 8 of 8 samples"):
        _measured(_made(Centred, nn.Linear(4, 3)), _floats(B, 4))
