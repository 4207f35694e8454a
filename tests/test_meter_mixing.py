"""Models whose samples look at each other, which have no gradients of single samples:
each is refused, or right against a loop of single samples in fp64. And models whose
samples stay apart, however they do it, stay measured.
"""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import rnn

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from tests.metered_steps import assert_untouched, assert_whole, single_samples

B, T, WIDTH = 8, 3, 4


def _made(kind, *arguments, **options):
    torch.manual_seed(5)
    return kind(*arguments, **options).double()


def _floats(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7)).double()


def _loss(y):
    """Of each sample: no two of its outputs count alike."""
    y = y.flatten(1)
    return (y.square() * torch.linspace(0.5, 1.5, y.shape[1], dtype=y.dtype)).sum(1)


def _measured(model, *inputs, meter=None, **kwargs):
    meter = meter or NoiseMeter(model, reduction="mean")
    with meter:
        _loss(model(*inputs, **kwargs)).mean().backward()
    return meter.reading


def _assert_seen_apart(reading):
    """Nothing is assumed but what the loss does."""
    assert len(reading.assumed) == 1 and reading.assumed[0].startswith("the loss")


class Mixer(nn.Module):
    """Layers, and between them, before or behind them what mixes samples."""

    def __init__(self, mix, where, dropout=0.0):
        super().__init__()
        self.first, self.norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
        self.last, self.dropout = nn.Linear(WIDTH, WIDTH), nn.Dropout(dropout)
        self.mix, self.where = mix, where

    def forward(self, x):
        x = self.mix(x) if self.where == "before" else x
        x = self.dropout(self.norm(torch.tanh(self.first(x))))
        x = self.mix(x) if self.where == "between" else x
        x = self.last(x)
        return self.mix(x) if self.where == "behind" else x


class Backward(torch.autograd.Function):
    """y = x, whose gradient is `change` of y's."""

    @staticmethod
    def forward(ctx, x, change):
        ctx.change = change
        return x.clone()

    @staticmethod
    def backward(ctx, dy):
        return ctx.change(dy), None


def _running_mean(x):
    counts = torch.arange(1, len(x) + 1, dtype=x.dtype).view(-1, 1, 1)
    return x - x.cumsum(0) / counts


def _but_for_the_ends(x):
    return torch.cat([x[:1], x[1:-1] - x[1:-1].mean(0), x[-1:]])


def _of_a_batch_of_eight(x):
    return x - x.mean(0) if len(x) == B else x


def _transposed_where_square(x):
    return x.transpose(0, 1) if len(x) == x.shape[1] else x


def _hooked(x):
    x = x + 0.0
    if x.requires_grad:
        x.register_hook(lambda dx: dx - dx.mean(0))
    return x


FORWARD = {
    "cumulative sum": lambda x: x.cumsum(0),
    "largest of all": lambda x: x / x.abs().max(),
    "running mean": _running_mean,
    "first sample": lambda x: x - x[:1],
    "last sample": lambda x: x - x[-1:],
    "sample before": lambda x: x - x.roll(1, 0),
    "sorted": lambda x: x.sort(0).values,
    "mirrored": lambda x: x + x.flip(0),
    "neighbours": lambda x: x + x.unflatten(0, (-1, 2)).flip(1).flatten(0, 1),
    "halves": lambda x: x + x.roll(len(x) // 2, 0),
    "mean, detached": lambda x: x - x.mean(0).detach(),
    "a hundredth of the mean": lambda x: x - 0.01 * x.mean(0),
    "but for the ends": _but_for_the_ends,
    "mask": lambda x: x * (x > x.mean(0)),
    "unique": lambda x: x.unique(dim=0),
    "of eight": _of_a_batch_of_eight,
    "softmax": lambda x: x.softmax(0),
}
BACKWARD = {
    "function": lambda x: Backward.apply(x, lambda dy: dy - dy.mean(0)),
    "function, sample before": lambda x: Backward.apply(x, lambda dy: dy.roll(1, 0)),
    "function, cumulative": lambda x: Backward.apply(x, lambda dy: dy.cumsum(0)),
    "function, clipped": lambda x: Backward.apply(x, lambda dy: dy / dy.norm()),
    "hook": _hooked,
}


@pytest.mark.parametrize("where", ["before", "between", "behind"])
@pytest.mark.parametrize("mix", FORWARD)
def test_samples_that_mix_are_refused(mix, where):
    model, x = _made(Mixer, FORWARD[mix], where), _floats(B, T, WIDTH)
    with pytest.raises(UsageError, match="the batch is run in parts: samples mix"):
        _measured(model, x)
    assert_untouched(model)


@pytest.mark.parametrize("where", ["between", "behind"])
@pytest.mark.parametrize("mix", BACKWARD)
def test_samples_that_mix_in_the_backward_pass_alone_are_refused(mix, where):
    model, x = _made(Mixer, BACKWARD[mix], where), _floats(B, T, WIDTH)
    words = {"between": "norm gets other gradients", "behind": "last gets other grad"}
    with pytest.raises(UsageError, match=words[where]):
        _measured(model, x)
    assert_untouched(model)


@pytest.mark.parametrize("mix", BACKWARD)
def test_a_backward_pass_that_mixes_before_all_layers_is_right(mix):
    model, x = _made(Mixer, BACKWARD[mix], "before"), _floats(B, T, WIDTH)
    g = single_samples(
        model, lambda m: (_loss(m(x[b : b + 1])).sum() for b in range(B))
    )
    assert_whole(_measured(model, x), g)


@pytest.mark.parametrize("where", ["before", "between", "behind"])
def test_as_many_samples_as_tokens_that_change_places_are_refused(where):
    model, x = _made(Mixer, _transposed_where_square, where), _floats(B, B, WIDTH)
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model, x)


@pytest.mark.parametrize("batch", [2, 3, 4, 5, 33])
@pytest.mark.parametrize("mix", ["largest of all", "sample before", "mean, detached"])
def test_samples_that_mix_are_seen_in_batches_of_any_size(mix, batch):
    model, x = _made(Mixer, FORWARD[mix], "between"), _floats(batch, T, WIDTH)
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model, x)


@pytest.mark.parametrize("pairs", ["mirrored", "neighbours", "halves"])
def test_no_pairs_of_four_samples_are_hidden(pairs):
    model, x = _made(Mixer, FORWARD[pairs], "between"), _floats(4, T, WIDTH)
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model, x)


@pytest.mark.parametrize("where", ["before", "between", "behind"])
@pytest.mark.parametrize("mix", ["sample before", "mean, detached"])
def test_samples_that_mix_beside_dropout_are_refused(mix, where):
    model = _made(Mixer, FORWARD[mix], where, dropout=0.2)
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model, _floats(B, T, WIDTH))


@pytest.mark.parametrize("where", ["before", "between", "behind"])
def test_mixing_is_seen_in_shapes_that_come_later(where):
    later = FORWARD["sample before"]
    model = _made(Mixer, lambda x: later(x) if x.shape[1] == 5 else x, where)
    meter = NoiseMeter(model, reduction="mean")
    _assert_seen_apart(_measured(model, _floats(B, T, WIDTH), meter=meter))
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model, _floats(B, 5, WIDTH), meter=meter)


def test_mixing_of_bf16_is_seen_in_a_large_batch():
    model, x = _made(Mixer, FORWARD["mean, detached"], "between"), _floats(64, T, WIDTH)
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model.bfloat16(), x.bfloat16())


# --- random numbers


def _dropped_path(x):
    """As timm has it: a sample's branch is there or not."""
    return x * x.new_empty(len(x), 1, 1).bernoulli_(0.9) / 0.9


def _noisy(x):
    return x + torch.randn_like(x)


@pytest.mark.parametrize("draw", [_dropped_path, _noisy])
def test_random_numbers_that_are_no_dropout_hide_no_mixing(draw):
    x = _floats(B, T, WIDTH)
    apart = _made(Mixer, draw, "between")
    _assert_seen_apart(_measured(apart, x))
    mixed = _made(Mixer, lambda x: draw(x - x.mean(0)), "between")
    with pytest.raises(UsageError, match="samples mix"):
        _measured(mixed, x)


def test_random_numbers_that_cannot_be_held_still_are_told_of():
    def shuffled(x):
        return x + torch.randperm(WIDTH)

    model = _made(Mixer, shuffled, "between")
    reading = _measured(model, _floats(B, T, WIDTH))
    assert "assumed: samples don't mix in the model, which draws random" in str(reading)


# --- what keeps samples apart


class Masked(nn.Module):
    """A transformer's layer, with a mask of padding for each sample."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 2)
        self.layer = nn.TransformerEncoderLayer(
            WIDTH, 2, 8, dropout=0.0, batch_first=True
        )

    def forward(self, ids):
        padding = ids == 0
        x = self.layer(self.token(ids), src_key_padding_mask=padding)
        return self.head(x).masked_fill(padding[..., None], 0)


class Packed(nn.Module):
    """A recurrent net over sequences sorted by length."""

    def __init__(self):
        super().__init__()
        self.first, self.rnn = nn.Linear(WIDTH, WIDTH), nn.LSTM(WIDTH, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, x, lengths):
        packed = rnn.pack_padded_sequence(self.first(x), lengths, batch_first=True)
        states, _ = rnn.pad_packed_sequence(
            self.rnn(packed)[0], batch_first=True, total_length=x.shape[1]
        )
        return self.head(states)


class Attention(nn.Module):
    """Takes all from a dict; an additive mask [B,1,T,T], positions [1,T]."""

    def __init__(self):
        super().__init__()
        self.token, self.position = nn.Embedding(9, WIDTH), nn.Embedding(B, WIDTH)
        self.qkv, self.head = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, 2)

    def forward(self, inputs):
        x = self.token(inputs["ids"]) + self.position(inputs["positions"])
        q, k, v = self.qkv(x)[:, None].chunk(3, -1)
        y = functional.scaled_dot_product_attention(q, k, v, inputs["mask"])
        return {"logits": self.head(torch.tanh(y[:, 0])), "tokens": x.shape[1]}


def _ids(*shape):
    return torch.randint(1, 9, shape, generator=torch.Generator().manual_seed(8))


def test_a_mask_of_padding_mixes_nothing():
    model, ids = _made(Masked), _ids(B, 5)
    for sample in range(B):
        ids[sample, 1 + sample % 5 :] = 0
    reading = _measured(model, ids)
    alone = lambda m: (_loss(m(ids[b : b + 1])).sum() for b in range(B))  # noqa: E731
    assert_whole(reading, single_samples(model, alone))
    _assert_seen_apart(reading)


def test_a_packed_sequence_is_refused_by_its_name():
    lengths = torch.tensor([5, 5, 4, 3, 3, 2, 1, 1])
    with pytest.raises(UsageError, match=r"rnn \(LSTM\) is given a PackedSequence"):
        _measured(_made(Packed), _floats(B, 5, WIDTH), lengths)


@pytest.mark.parametrize("tokens", [5, B])
def test_a_dict_of_masks_and_positions(tokens):
    model = _made(Attention)
    mask = _floats(B, 1, tokens, tokens)
    inputs = {
        "ids": _ids(B, tokens),
        "mask": mask.masked_fill(mask > 1, -torch.inf),
        "positions": torch.arange(tokens)[None],
    }

    def alone(b):
        own = {key: inputs[key][b : b + 1] for key in ("ids", "mask")}
        return {**own, "positions": inputs["positions"]}

    meter = NoiseMeter(model, reduction="mean")
    with meter:
        _loss(model(inputs)["logits"]).mean().backward()
    g = single_samples(
        model, lambda m: (_loss(m(alone(b))["logits"]).sum() for b in range(B))
    )
    assert_whole(meter.reading, g)
    _assert_seen_apart(meter.reading)


def test_complex_values_are_compared():
    class Model(nn.Module):
        def __init__(self, mix):
            super().__init__()
            self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2)
            self.mix = mix

        def forward(self, x):
            waves = self.mix(torch.fft.rfft(self.first(x)).conj())
            return self.last(torch.fft.irfft(waves)), waves

    def measured(mix):
        model = _made(Model, mix).float()
        with (meter := NoiseMeter(model, reduction="mean")):
            _loss(model(_floats(B, WIDTH).float())[0]).mean().backward()
        return meter.reading

    _assert_seen_apart(measured(lambda waves: waves))
    with pytest.raises(UsageError, match="last is given other values"):
        measured(FORWARD["mean, detached"])


def test_rows_of_one_sample_may_look_at_each_other():
    """A contrastive net on cat([x, y]), which compares the two rows of each sample."""

    def compared(z):
        one, other = z.chunk(2)
        return torch.cat([one * other, one - other])

    model, x = _made(Mixer, compared, "between"), _floats(B, T, WIDTH)
    rows = torch.cat([x, x.roll(1, 0) + 1])
    owners = torch.arange(B).repeat(2)
    meter = NoiseMeter(model, reduction="mean", samples=owners)
    with meter:
        _loss(model(rows)).sum().div(B).backward()
    g = single_samples(
        model, lambda m: (_loss(m(rows[owners == b])).sum() for b in range(B))
    )
    assert_whole(meter.reading, g)
    _assert_seen_apart(meter.reading)
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model, rows)


def test_a_layer_without_a_gradient_has_rounding_alone():
    """Softmax takes the same from all its inputs away: the gradient there is 0."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift, self.head = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            return (self.head(x) + self.shift(x)).softmax(-1)

    _assert_seen_apart(_measured(_made(Model).float(), _floats(B, WIDTH).float()))


# --- what is taken for mixing and is none


def _by_row(x):
    """Times a number of each row of the batch."""
    return x * torch.linspace(0.5, 1.5, B, dtype=x.dtype)[: len(x), None, None]


def _back_by_row(x):
    return Backward.apply(x, _by_row)


def _in_the_batch(x):
    """Of each sample at its own row, as the batch was run."""
    return lambda model: (_loss(model(x))[b] for b in range(len(x)))


@pytest.mark.parametrize(
    "mix, where, words",
    [
        (_by_row, "before", "first is given other values for 7 of 8 samples"),
        (_by_row, "between", "last is given other values for 7 of 8 samples"),
        (_by_row, "behind", "the model gives other outputs for 7 of 8 samples"),
        (_back_by_row, "between", "norm gets other gradients for 5 of 8 samples"),
        (_back_by_row, "behind", "last gets other gradients for 5 of 8 samples"),
    ],
)
def test_values_of_a_row_are_measured_on_the_users_word(mix, where, words):
    model, x = _made(Mixer, mix, where), _floats(B, T, WIDTH)
    meter = NoiseMeter(model, reduction="mean", samples_apart=True)
    for _ in ("a new shape", "a known one"):
        reading = _measured(model, x, meter=meter)
        assert_whole(reading, single_samples(model, _in_the_batch(x)))
        assert (
            "assumed: samples don't mix in the model, for samples_apart=True says so, though "
            f"{words} where the batch is run in parts\n"
        ) in f"{reading}\n"
    assert_untouched(model)


def test_a_replayed_layer_whose_values_are_a_rows():
    class ByRow(nn.Linear):
        def forward(self, x):
            return super().forward(_by_row(x))

    model, x = _made(Mixer, lambda x: x, "between"), _floats(B, T, WIDTH)
    model.last = _made(ByRow, WIDTH, WIDTH)
    meter = NoiseMeter(model, reduction="mean", samples_apart=True)
    reading = _measured(model, x, meter=meter)
    assert reading.fallbacks == {"last": "ByRow"}
    assert_whole(reading, single_samples(model, _in_the_batch(x)))


def test_a_refusal_names_the_way_out_and_the_same_meter_takes_it():
    model, x = _made(Mixer, _by_row, "between"), _floats(B, T, WIDTH)
    meter = NoiseMeter(model, reduction="mean")
    with pytest.raises(UsageError, match=r"vouch for it: samples_apart=True\)$"):
        _measured(model, x, meter=meter)
    with meter.step(samples_apart=True):
        _loss(model(x)).mean().backward()
    assert_whole(meter.reading, single_samples(model, _in_the_batch(x)))
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model, x, meter=meter)


def test_outputs_that_mix_and_that_the_loss_leaves_out():
    class Centred(Mixer):
        def forward(self, x):
            y = super().forward(x)
            return y, y - y.mean(0)

    def measured(**options):
        meter = NoiseMeter(model, reduction="mean", **options)
        with meter:
            _loss(model(x)[0]).mean().backward()
        return meter.reading

    model, x = _made(Centred, lambda x: x, "between"), _floats(B, T, WIDTH)
    with pytest.raises(UsageError, match="the model gives other .*samples_apart=True"):
        measured()
    alone = lambda m: (_loss(m(x[b : b + 1])[0]).sum() for b in range(B))  # noqa: E731
    reading = measured(samples_apart=True)
    assert_whole(reading, single_samples(model, alone))
    assert "though the model gives other outputs for 8 of 8 samples" in str(reading)


def test_random_numbers_of_a_generator_of_the_models_own():
    def noisy(x):
        return x + torch.randn(x.shape, generator=own, dtype=x.dtype)

    own = torch.Generator()
    model, x = _made(Mixer, noisy, "between"), _floats(B, T, WIDTH)
    with pytest.raises(UsageError, match="samples_apart=True"):
        _measured(model, x)
    before = own.get_state()
    meter = NoiseMeter(model, reduction="mean", samples_apart=True)
    reading = _measured(model, x, meter=meter)
    own.set_state(before)
    reading = _measured(model, x, meter=meter)

    def as_drawn(model):
        for b in range(B):
            own.set_state(before)
            yield _loss(model(x))[b]

    assert_whole(reading, single_samples(model, as_drawn))
    assert "assumed: samples don't mix" in str(reading)


def test_a_word_for_a_model_that_needs_none_is_no_assumption():
    model, x = _made(Mixer, lambda x: x, "between"), _floats(B, T, WIDTH)
    meter = NoiseMeter(model, reduction="mean", samples_apart=True)
    _assert_seen_apart(_measured(model, x, meter=meter))


def test_no_word_puts_a_samples_rows_together():
    class Flat(Mixer):
        def forward(self, x):
            return super().forward(x.transpose(0, 1).flatten(0, 1))

    model, x = _made(Flat, lambda x: x, "between"), _floats(B, T, WIDTH)
    for word in (False, True):
        meter = NoiseMeter(model, reduction="mean", samples_apart=word)
        with pytest.raises(UsageError, match="in which a sample's are not next") as one:
            _measured(model, x, meter=meter)
        assert "samples_apart" not in str(one.value)


# --- what cannot be looked at


def test_a_model_that_needs_more_than_half_of_the_batch_is_told_of():
    class Many(Mixer):
        def forward(self, x):
            assert len(x) > 5, "six or more"
            return super().forward(x)

    model = _made(Many, lambda x: x, "between")
    reading = _measured(model, _floats(B, T, WIDTH))
    assert "assumed: no sample depends on those before it" in str(reading)
    mixed = _made(Many, FORWARD["mean, detached"], "between")
    with pytest.raises(UsageError, match="samples mix"):
        _measured(mixed, _floats(B, T, WIDTH))


def test_a_model_that_gives_its_loss_alone_has_its_forward_pass_looked_at():
    class Loss(Mixer):
        def forward(self, x):
            return _loss(super().forward(x)).mean()

    x = _floats(B, T, WIDTH)
    meter = NoiseMeter(model := _made(Loss, lambda x: x, "between"), reduction="mean")
    with meter:
        model(x).backward()
    assert "samples stay apart in the backward pass, which" in str(meter.reading)
    mixed = _made(Loss, FORWARD["sample before"], "between")
    with pytest.raises(UsageError, match="samples mix"):
        with NoiseMeter(mixed, reduction="mean"):
            mixed(x).backward()


def test_the_look_gives_no_parameter_a_gradient_and_runs_none_of_its_hooks():
    model, x = _made(Mixer, lambda x: x, "between"), _floats(B, T, WIDTH)
    calls = []
    for parameter in model.parameters():
        parameter.register_hook(lambda g: calls.append(len(g)))
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        y = model(x)
        assert not calls and all(p.grad is None for p in model.parameters())
        _loss(y).mean().backward()
    assert len(calls) == len(list(model.parameters()))


# --- what a look leaves behind, and what it must not take for mixing


def test_a_model_may_call_itself():
    class Nested(Mixer):
        def forward(self, x, times=1):
            return self(x, times - 1) if times else super().forward(x)

    model, x = _made(Nested, lambda x: x, "between"), _floats(B, T, WIDTH)
    meter = NoiseMeter(model, reduction="mean", samples=B)
    reading = _measured(model, x, meter=meter)
    assert reading.why_not is None
    _assert_seen_apart(reading)


def _measured_with_extra(model, x, kept):
    """With a loss on all that was kept, as of experts' loads or of activations."""
    meter = NoiseMeter(model, reduction="mean")
    with meter:
        loss = _loss(model(x)).mean()
        (loss + sum(one.square().mean() for one in kept)).backward()
    return meter.reading


def test_what_a_module_adds_to_a_list_is_taken_out():
    class Listing(Mixer):
        def forward(self, x):
            y = super().forward(x)
            self.kept.append(torch.tanh(y))
            return y

    model, x = _made(Listing, lambda x: x, "between"), _floats(B, T, WIDTH)
    model.kept = []
    _measured_with_extra(model, x, model.kept)
    assert len(model.kept) == 1 and len(model.kept[0]) == B


def test_what_a_hook_keeps_of_the_look_has_no_gradient():
    net = nn.Sequential
    model = _made(net, nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))
    x, kept = _floats(B, WIDTH), []
    model[1].register_forward_hook(lambda module, given, y: kept.append(y))
    _measured_with_extra(model, x, kept)
    assert [len(y) for y in kept if y.requires_grad] == [B]
    gradient = model[0].weight.grad.clone()
    model.zero_grad()
    kept.clear()
    (_loss(model(x)).mean() + kept[0].square().mean()).backward()
    torch.testing.assert_close(gradient, model[0].weight.grad)


def test_a_hook_that_changes_an_output_does_so_in_the_look():
    model = _made(nn.Sequential, nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(4, 2))
    model[1].register_forward_hook(lambda module, given, y: y - y.mean(0).detach())
    with pytest.raises(UsageError, match="samples mix"):
        _measured(model, _floats(B, WIDTH))


def test_inputs_that_a_model_changes_in_place_are_changed_once():
    class InPlace(Mixer):
        def forward(self, x):
            return super().forward(x.mul_(2))

    model, x = _made(InPlace, lambda x: x, "between"), _floats(B, T, WIDTH)
    _assert_seen_apart(_measured(model, x))
    assert torch.equal(x, 2 * _floats(B, T, WIDTH))


@pytest.mark.parametrize("kind", [list, np.array])
def test_lengths_that_are_no_tensor_go_with_their_samples(kind):
    class Pooled(Mixer):
        def forward(self, x, lengths):
            self.mix = lambda x: torch.stack(
                [row[:length].mean(0) for row, length in zip(x, lengths)]
            )
            return super().forward(x)

    lengths = kind([1, 2, 3, 1, 2, 3, 2, 2])
    model, x = _made(Pooled, None, "between"), _floats(B, T, WIDTH)
    reading = _measured(model, x, lengths)
    alone = lambda m: (  # noqa: E731
        _loss(m(x[b : b + 1], lengths[b : b + 1])).sum() for b in range(B)
    )
    assert_whole(reading, single_samples(model, alone))
    _assert_seen_apart(reading)


def test_a_frozen_encoder_in_eval_is_the_same_with_gradients_and_without():
    """Without, nn.TransformerEncoder puts 0 where there is padding."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            layer = nn.TransformerEncoderLayer(WIDTH, 2, 8, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)
            self.token, self.head = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, 2)

        def forward(self, ids):
            x = self.encoder(self.token(ids), src_key_padding_mask=ids == 0)
            return self.head(x)

    model, ids = _made(Frozen).eval(), _ids(B, 5)
    ids[::2, 3:] = 0
    _assert_seen_apart(_measured(model, ids))
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_mask_of_each_sample_that_numpy_draws_is_told_of():
    def masked(x):
        drawn = np.stack([np.random.rand(T) > 0.3 for _ in x])
        return x * torch.from_numpy(drawn)[..., None]

    model = _made(Mixer, masked, "between")
    reading = _measured(model, _floats(B, T, WIDTH))
    assert "assumed: samples don't mix in the model, which draws random" in str(reading)


def test_a_loss_alone_is_run_on_the_parts_and_not_back():
    class Loss(Mixer):
        def forward(self, x):
            seen.append((len(x), torch.is_grad_enabled()))
            return _loss(super().forward(x)).mean()

    seen = []
    model = _made(Loss, lambda x: x, "between")
    with NoiseMeter(model, reduction="mean"):
        model(_floats(B, T, WIDTH)).backward()
    assert seen == [(2, False), (3, False), (5, False), (B, True)]


@pytest.mark.parametrize("batch_dim", [0, 1])
def test_outputs_of_tokens_and_samples_as_one_dimension_are_compared(batch_dim):
    """As PyTorch's word language model gives them, with time first."""

    class Flat(Mixer):
        def forward(self, x):
            return super().forward(x).flatten(0, 1)

    def measured(mix):
        model, x = _made(Flat, mix, "behind"), _floats(B, T, WIDTH)
        meter = NoiseMeter(model, reduction="mean", batch_dim=batch_dim)
        with meter:
            _loss(model(x.movedim(0, batch_dim))).sum().div(B).backward()
        return meter.reading

    _assert_seen_apart(measured(lambda x: x))
    with pytest.raises(UsageError, match="the model gives other outputs"):
        measured(lambda x: x - x.mean(batch_dim, keepdim=True))
