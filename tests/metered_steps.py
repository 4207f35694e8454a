"""A small model, and metered steps of it that must be refused."""

import pytest
import torch
from torch import nn

from batchline.bench.errors import UsageError
from batchline.bench.noise import NoiseMeter

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))


def small_model():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2))


def loss_of(model, x=X):
    return model(x).square().sum(1).mean()


def assert_untouched(model):
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any(parameter._backward_hooks for parameter in model.parameters())


def refused(model, words, backward=lambda model: loss_of(model).backward()):
    """A metered step that ends in a UsageError of one line with these words; the model
    is left as it was.
    """
    meter = NoiseMeter(model, reduction="mean")
    with pytest.raises(UsageError, match=words) as caught:
        with meter:
            backward(model)
        meter.reading
    assert "\n" not in str(caught.value)
    assert_untouched(model)
    return meter
