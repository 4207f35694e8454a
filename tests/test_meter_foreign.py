"""Layers of other libraries: measured without torch.func where they are what they seem,
and by torch.func where not.
"""

import copy

import pytest
import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from batchline.bench.noise.meter.foreign import is_rms_norm

BATCH = 5


class PlainRMSNorm(nn.Module):
    def __init__(self, size, epsilon=1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, size))
        self.variance_epsilon = epsilon

    def scale(self):
        return self.weight

    def forward(self, x):
        x = x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return self.scale() * x


class OnePlusRMSNorm(PlainRMSNorm):
    def scale(self):
        return 1 + self.weight


class CentredRMSNorm(PlainRMSNorm):
    """Is not what its name says."""

    def forward(self, x):
        return super().forward(x - x.mean(-1, keepdim=True))


class OffsetRMSNorm(PlainRMSNorm):
    def scale(self):
        return 2 + self.weight


class RoundedRMSNorm(PlainRMSNorm):
    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


class GatedRMSNorm(PlainRMSNorm):
    def forward(self, x, gate=None):
        y = super().forward(x)
        return y if gate is None else y * gate


class Norm(PlainRMSNorm):
    """Is one, but says nothing."""


def _check(model, x, rel, call=lambda model, x: model(x)):
    """n and .grad of every parameter against a backward pass for each sample in fp64;
    returns the fallbacks.
    """
    exact = copy.deepcopy(model).double()
    names, parameters = zip(*exact.named_parameters())
    rows = [
        torch.autograd.grad(
            call(exact, x[b : b + 1].double()).square().sum(), parameters
        )
        for b in range(len(x))
    ]
    meter = NoiseMeter(model, reduction="sum")
    with meter:
        call(model, x).square().sum().backward()
    for index, name in enumerate(names):
        g = torch.stack([row[index].flatten() for row in rows])
        n = g.square().sum(1).numpy()
        assert meter.reading.parameters[name].squared_norms == pytest.approx(n, rel=rel)
        grad = model.get_parameter(name).grad.double().flatten()
        torch.testing.assert_close(grad, g.sum(0), rtol=rel, atol=rel)
    return meter.fallbacks


def _floats(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(BATCH, *shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("kind", [PlainRMSNorm, OnePlusRMSNorm, GatedRMSNorm])
@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)], ids=str)
def test_an_rms_norm_is_recognised(kind, shape):
    model = nn.Sequential(nn.Linear(6, 6), kind(6)).double()
    assert _check(model, _floats(*shape), 1e-9) == {}


@pytest.mark.parametrize("kind", [CentredRMSNorm, OffsetRMSNorm, RoundedRMSNorm, Norm])
def test_what_only_seems_to_be_one_goes_through_torch_func(kind):
    model = nn.Sequential(nn.Linear(6, 6), kind(6)).double()
    rel = 1e-6 if kind is RoundedRMSNorm else 1e-9
    assert _check(model, _floats(3, 6), rel) == {"1": kind.__name__}


def test_one_that_rounds_to_fp32_is_recognised_in_fp32():
    model = nn.Sequential(nn.Linear(6, 6), RoundedRMSNorm(6))
    assert _check(model, _floats(3, 6, dtype=torch.float32), 1e-5) == {}


def test_a_second_input_is_left_to_torch_func():
    def call(model, x):
        return model(x, x[..., :1].sigmoid())

    assert _check(GatedRMSNorm(6).double(), _floats(3, 6), 1e-9, call) == {}


def test_the_weight_is_left_as_it_was():
    norm = PlainRMSNorm(4).bfloat16()
    weight, values = norm.weight, norm.weight.clone()
    assert is_rms_norm(norm)
    assert norm.weight is weight and torch.equal(weight, values)


class ImageNorm(nn.LayerNorm):
    """Over the channels of [B,C,H,W], as ConvNeXt's."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class LastNorm(nn.LayerNorm):
    """Over the last dimension, as it says in its own way."""

    def forward(self, x):
        return super().forward(x)


class RowNorm(nn.LayerNorm):
    """Over the rows of [B,C,H,W]."""

    def forward(self, x):
        return super().forward(x.mT).mT


@pytest.mark.parametrize(
    "kind, fallbacks", [(ImageNorm, {}), (LastNorm, {}), (RowNorm, {"1": "RowNorm"})]
)
def test_a_layer_norm_over_channels_is_recognised(kind, fallbacks):
    norm = kind(4)
    nn.init.zeros_(norm.weight)
    model = nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.Tanh()).double()
    assert _check(model, _floats(4, 4, 4), 1e-9) == fallbacks


def test_conv1d_of_transformers():
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    for shape in ((4,), (3, 4), (2, 3, 4)):
        first, second = pytorch_utils.Conv1D(7, 4), pytorch_utils.Conv1D(3, 7)
        model = nn.Sequential(first, nn.Tanh(), second).double()
        nn.init.normal_(first.bias)
        assert _check(model, _floats(*shape), 1e-9) == {}


class Biased(nn.Module):
    """An attention as T5's: with a table, a bias of its own, which it hands on."""

    def __init__(self, heads, has_table):
        super().__init__()
        self.heads, self.qkv = heads, nn.Linear(6, 18)
        if has_table:
            self.relative_attention_bias = nn.Embedding(5, heads)

    def compute_bias(self, queries, keys, device=None):
        far = torch.arange(keys, device=device) - torch.arange(queries)[:, None]
        ids = far.clamp(-2, 2) + 2
        return self.relative_attention_bias(ids).permute([2, 0, 1]).unsqueeze(0)

    def forward(self, x, bias=None):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if bias is None:
            bias = self.compute_bias(x.shape[1], x.shape[1], device=x.device)
        y = (q @ k.mT + bias).softmax(-1) @ v
        return x + y.transpose(1, 2).flatten(2), bias


class Unlike(Biased):
    """Its bias is none of those rows."""

    def compute_bias(self, *args, **kwargs):
        return 2 * super().compute_bias(*args, **kwargs)


class Decoder(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.second = kind(2, True), Biased(2, False)

    def forward(self, x):
        x, bias = self.first(x)
        return self.second(torch.tanh(x), bias)[0]


@pytest.mark.parametrize("tokens", [3, BATCH])
def test_a_relative_bias_that_later_layers_add_too(tokens):
    torch.manual_seed(4)
    model = Decoder(Biased).double()
    assert _check(model, _floats(tokens, 6), 1e-9) == {}
    assert "compute_bias" not in vars(model.first)
    assert not model.first.relative_attention_bias._forward_pre_hooks


def test_a_relative_bias_of_another_kind_is_refused():
    model = Decoder(Unlike).double()
    with pytest.raises(UsageError, match="bias is given .3, 3. whatever the number"):
        _check(model, _floats(3, 6), 1e-9)
