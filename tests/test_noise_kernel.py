"""The kernels that the meter calls directly are right on tensors whose sign is a bit
beside their memory.
"""

import pytest
import torch

from batchline.bench.noise.meter import kernel


def _lazy(tensor):
    return torch._neg_view(-tensor)


@pytest.mark.parametrize("tokens", [1, 40])
def test_a_layer_whose_gradient_has_a_lazy_sign(tokens):
    x, dy = torch.randn(6, tokens, 5), torch.randn(6, tokens, 3)
    for given in ((_lazy(x), dy), (x, _lazy(dy))):
        assert any(tensor.is_neg() for tensor in given)
        for one, other in zip(kernel.of_layer(*given), kernel.of_layer(x, dy)):
            torch.testing.assert_close(one, other)


def test_rows_with_a_lazy_sign():
    g = torch.randn(6, 70)
    for one, other in zip(kernel.of_rows(_lazy(g)), kernel.of_rows(g)):
        torch.testing.assert_close(one, other)
