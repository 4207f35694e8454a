"""Models that NoiseMeter can't measure are refused in one line: for what they are, or
for what a step of them shows.
"""

import pytest
import torch
from torch import nn
from torch.nn import functional

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter
from tests.metered_steps import X, assert_untouched, loss_of, refused, small_model


def _lazy():
    return nn.Sequential(nn.LazyLinear(3))


def _frozen():
    return small_model().requires_grad_(False)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: [nn.Linear(2, 2)], "measures a torch.nn.Module, not list"),
        (lambda: nn.Sequential(nn.ReLU()), "Sequential has no parameters"),
        (_frozen, "all parameters of Sequential are frozen"),
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)),
            r"1 \(BatchNorm1d\) mixes the samples",
        ),
        (
            lambda: nn.BatchNorm1d(4, track_running_stats=False).eval(),
            "mixes the samples",
        ),
        (lambda: nn.Embedding(4, 4, sparse=True), "sparse=True"),
        (
            lambda: nn.Embedding(4, 4, scale_grad_by_freq=True),
            "scale_grad_by_freq=True",
        ),
        (lambda: nn.DataParallel(small_model()), "is a DataParallel"),
        (lambda: torch.jit.trace(small_model(), X), "calls can't be seen"),
        (_lazy, "0 .LazyLinear. has no sizes yet"),
        (lambda: nn.Linear(2, 2, dtype=torch.complex64), "weight is torch.complex64"),
    ],
    ids=[
        "a list",
        "no parameters",
        "all frozen",
        "batch norm",
        "batch norm without running statistics",
        "sparse",
        "scaled by frequency",
        "data parallel",
        "traced",
        "lazy",
        "complex",
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_model_that_cannot_be_measured(make, words):
    with pytest.raises(UsageError, match=words) as caught:
        NoiseMeter(make(), reduction="mean")
    assert "\n" not in str(caught.value)


def test_a_model_turned_to_batch_statistics_later_is_refused_then():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    meter = NoiseMeter(model, reduction="mean")
    model.train()
    with pytest.raises(UsageError, match="mixes the samples"):
        with meter:
            pass
    assert_untouched(model)


class Outside(nn.Module):
    """Uses a layer's parameter beside the layer's call: before it, after it, or alone."""

    def __init__(self, how, layer):
        super().__init__()
        self.how, self.layer = how, layer

    def forward(self, x):
        outside = (
            functional.linear(x, self.layer.weight)
            if x.is_floating_point()
            else self.layer.weight[x]
        )
        if self.how == "alone":
            return outside
        return (
            outside + self.layer(x) if self.how == "before" else self.layer(x) + outside
        )


@pytest.mark.parametrize("how", ["before", "after", "alone"])
@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_a_gradient_from_outside_a_module(how, kind):
    linear = kind == "linear"
    layer = nn.Linear(4, 2) if linear else nn.Embedding(5, 3)
    x = X if linear else torch.arange(6) % 5
    refused(
        Outside(how, layer),
        "layer.weight: .*used outside its",
        lambda model: model(x).square().sum(1).mean().backward(),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_shared_weight_with_a_gradient_from_outside(dtype):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x)) + functional.linear(x, self.layer.weight)

    refused(
        Model().to(dtype),
        "layer.weight: its samples' gradients don't add up to its own",
        lambda model: loss_of(model, X.to(dtype)).backward(),
    )


def _backward(model, x):
    y = model(x, x, x) if isinstance(model, nn.MultiheadAttention) else model(x)
    (y[0] if isinstance(y, tuple) else y).pow(3).sum().backward()


@pytest.mark.parametrize(
    "make, shape, words",
    [
        (
            nn.LSTM,
            (3, 6, 4),
            "takes its samples from dimension 1 of .3, 6, 4., and is given them in dim",
        ),
    ],
    ids=["sequence first"],
)
def test_a_step_that_cannot_be_measured(make, shape, words):
    x = torch.randn(shape)
    refused(make(4, 3), words, lambda model: _backward(model, x))


@pytest.mark.parametrize(
    "make, shape",
    [
        (
            lambda: nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)).eval(),
            (6, 2, 4),
        ),
        (
            lambda: nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True),
            (6, 3, 4),
        ),
        (
            lambda: nn.InstanceNorm1d(2, affine=True, track_running_stats=True),
            (6, 2, 4),
        ),
        (lambda: nn.LSTM(4, 3, 2, dropout=0.5, batch_first=True), (6, 3, 4)),
    ],
    ids=[
        "batch norm in eval",
        "dropout of attention",
        "running statistics",
        "dropout between layers",
    ],
)
def test_what_torch_func_could_not_take_apart_is_measured(make, shape):
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    meter = NoiseMeter(model, reduction="sum")
    with meter:
        _backward(model, x)
    assert meter.reading.batch == 6 and not meter.fallbacks
