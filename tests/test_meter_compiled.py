"""Code that torch.compile made is metered uncompiled, and keeps its one graph."""

import functools

import pytest
import torch
from torch import nn

from batchline.bench.noise import NoiseMeter
from tests.metered_steps import X, assert_whole, loss_of, single_samples


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


def _compiled_whole(model, compiled):
    net = compiled(model)
    return net, lambda x: loss_of(net, x)


def _compiled_in_place(model, compiled):
    model.compile(backend=compiled.keywords["backend"])
    return model, lambda x: loss_of(model, x)


def _compiled_in_part(model, compiled):
    model.first = compiled(model.first)
    return model, lambda x: loss_of(model, x)


def _compiled_step(model, compiled):
    return model, compiled(lambda x: loss_of(model, x))


@pytest.mark.parametrize("metered_first", [False, True])
@pytest.mark.parametrize(
    "way", [_compiled_whole, _compiled_in_place, _compiled_in_part, _compiled_step]
)
def test_a_compiled_model_keeps_its_graph(way, metered_first):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.manual_seed(3)
    model = Model().double()
    x = X.double()
    g = single_samples(
        model, lambda net: (loss_of(net, x[b : b + 1]) for b in range(6))
    )
    net, loss = way(model, functools.partial(torch.compile, backend=backend))
    meter = NoiseMeter(net, reduction="mean")
    for number in range(3):
        if number or not metered_first:
            loss(x).backward()
            expected = graphs.copy()
            assert expected
        with meter:
            loss(x).backward()
        assert_whole(meter.reading, g)
        if number or not metered_first:
            assert graphs == expected
    loss(x).backward()
    assert graphs == expected and torch.compiler.is_compiling() is False
