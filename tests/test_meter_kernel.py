"""The kernels that the meter calls directly are right on tensors whose sign is a bit
beside their memory.
"""

from dataclasses import replace

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


@pytest.fixture
def chosen_anew():
    yield step.forget_choices()
    step.forget_choices()
    step._row_kernels.cache_clear()


def _without_numba(monkeypatch):
    kind = type(step.wgrad_stats.variants["torch_materialize"])
    here = kind.why_not_here
    monkeypatch.setattr(
        kind,
        "why_not_here",
        lambda one, *device: (
            "not installed" if "numba" in one.name else here(one, *device)
        ),
    )
    step._row_kernels.cache_clear()


@pytest.mark.parametrize("has_numba", [True, False])
def test_no_norm_of_many_parameters_is_a_running_sum(
    monkeypatch, chosen_anew, has_numba
):
    """torch's own in fp32 is 2e-4 off here, also where the baseline is the fastest."""
    look_up = step.wgrad_stats.dispatch.look_up
    monkeypatch.setattr(
        step.wgrad_stats.dispatch,
        "look_up",
        lambda *inputs: replace(look_up(*inputs), variant="torch_materialize"),
    )
    if not has_numba:
        _without_numba(monkeypatch)
    torch.manual_seed(2)
    layer, x = torch.nn.Linear(2048, 2048, bias=False), torch.randn(2, 3, 2048)
    with (meter := NoiseMeter(layer, reduction="sum")):
        y = layer(x)
        y.square().sum().backward()
    dy = 2 * y.detach().double()
    g = torch.bmm(dy.mT, x.double()).flatten(1)
    whole = meter.reading.whole
    n = g.square().sum(1)
    assert whole.squared_norms == pytest.approx(n.tolist(), rel=1e-6)
    assert whole.mean_square == pytest.approx(g.mean(0).square().sum().item(), rel=1e-6)
    assert whole.inner_products == pytest.approx((g @ g.mean(0)).tolist(), rel=1e-5)
