"""The kernels that the meter calls directly are right on tensors whose sign is a bit
beside their memory.
"""

import pytest
import torch

from batchline.bench.noise.meter import NoiseMeter, step


def _lazy(tensor):
    return torch._neg_view(-tensor)


@pytest.mark.parametrize("tokens", [1, 40])
def test_a_layer_whose_gradient_has_a_lazy_sign(tokens):
    x, dy = torch.randn(6, tokens, 5), torch.randn(6, tokens, 3)
    for given in ((_lazy(x), dy), (x, _lazy(dy))):
        assert any(tensor.is_neg() for tensor in given)
        for one, other in zip(step.of_layer(*given), step.of_layer(x, dy)):
            torch.testing.assert_close(one, other)


def test_rows_with_a_lazy_sign():
    g = torch.randn(6, 70)
    for one, other in zip(step.of_rows(_lazy(g)), step.of_rows(g)):
        torch.testing.assert_close(one, other)


def test_a_choice_is_made_once_for_a_shape_and_anew_after_it_is_forgotten(monkeypatch):
    asked = []
    look_up = step.wgrad_stats.dispatch.look_up
    monkeypatch.setattr(
        step.wgrad_stats.dispatch,
        "look_up",
        lambda *inputs: asked.append(inputs) or look_up(*inputs),
    )
    step.forget_choices()
    for _ in range(3):
        step.of_layer(torch.randn(6, 2, 5), torch.randn(6, 2, 3))
    assert len(asked) == 1
    NoiseMeter(torch.nn.Linear(2, 2), reduction="mean")
    step.of_layer(torch.randn(6, 2, 5), torch.randn(6, 2, 3))
    assert len(asked) == 2
