"""torch.bmm of one K: the form that PyTorch's own Triton kernel does not replace."""

import pytest
import torch

from batchline.kernels.bmm import bmm

VARIANT = bmm.variants["torch_bmm_out"]


def test_the_library_is_asked_for_a_product_into_an_output(monkeypatch):
    seen = []
    product = torch.bmm

    def noted(a, b, **keywords):
        seen.append(sorted(keywords))
        return product(a, b, **keywords)

    monkeypatch.setattr(torch, "bmm", noted)
    a, b = bmm.make_inputs("outer_512", 2, "float32", "cpu")
    torch.testing.assert_close(VARIANT(a, b), a * b)
    assert seen == [["out"]]


@pytest.mark.parametrize("scenario", bmm.scenarios)
def test_only_outer_products_are_taken(scenario):
    dtype = bmm.scenarios[scenario].dtypes[0]
    why = VARIANT.why_unsupported(*bmm.make_inputs(scenario, 2, dtype, "meta"))
    assert (why is None) == (scenario == "outer_512")
    assert VARIANT.why_not_here("cpu") == "needs CUDA"
