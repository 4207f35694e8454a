"""A small model, and metered steps of it that must be refused."""

import copy

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


def single_samples(model, losses):
    """g[B,P] in fp64 of the trained parameters as one vector: a backward pass for each
    sample's loss, which losses(model) gives one after another.
    """
    model = copy.deepcopy(model).double()
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for loss in losses(model):
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for p, g in zip(trained, gradients)
                ]
            )
        )
    return torch.stack(rows)


def assert_whole(reading, g, rel=1e-9):
    """M, n and d of the whole model are those of g[B,P]."""
    mean = g.mean(0)
    n = g.square().sum(1)
    assert reading.batch == len(g)
    assert reading.whole.mean_square == pytest.approx(
        mean.square().sum().item(), rel=rel
    )
    assert reading.whole.squared_norms == pytest.approx(n.numpy(), rel=rel)
    if hasattr(reading.whole, "inner_products"):
        slack = rel * (n * mean.square().sum()).sqrt().max().item()
        assert reading.whole.inner_products == pytest.approx(
            (g @ mean).numpy(), rel=rel, abs=slack
        )
