"""Products of tf32 numbers: the declared bound holds their rounding and is nearly met,
and the variants are on tensor cores.
"""

import pytest
import torch

from batchline.bench.measure.compiled import compiler
from batchline.kernels import backends
from batchline.kernels.bmm import bmm, reference
from batchline.kernels.bmm._tf32 import LEFT_OUT, tf32_tolerance
from tests.test_ghost_precision import in_tf32

# Just under a power of two and just above one, where cutting loses the most.
HARD = torch.tensor([1.0, 1 + 2.0**-10 - 2.0**-23, 1 + 2.0**-11, 2 - 2.0**-23, 1.75])


def operands(k, generator):
    return (
        torch.rand(2, 24, k, generator=generator) * 2 - 1,
        torch.rand(2, k, 24, generator=generator) * 2 - 1,
    )


def test_what_is_cut_off_one_product_comes_near_the_bound():
    a, b = HARD[None, :, None], HARD[None, None, :]
    exact = reference(a, b)
    cut = reference(in_tf32(a, cut=True), in_tf32(b, cut=True))
    share = (cut - exact).abs() / (LEFT_OUT * exact)
    assert 0.95 < float(share.max()) <= 1


@pytest.mark.parametrize("cut", [False, True], ids=["rounded", "cut"])
@pytest.mark.parametrize("k", [1, 16, 256, 4096])
def test_the_bound_holds_tf32_and_the_ops_does_not_at_small_depths(k, cut):
    a, b = operands(k, torch.Generator().manual_seed(k))
    c = reference(a, b)
    error = (torch.bmm(in_tf32(a, cut), in_tf32(b, cut)) - c).abs()
    assert (error <= tf32_tolerance(c, a, b)).all()
    if k <= 16:
        assert not (error <= bmm.tolerance(c, a, b)).all()


def test_the_bound_refuses_factors_of_seven_bits():
    a, b = operands(16, torch.Generator().manual_seed(7))
    c = reference(a, b)
    error = (torch.bmm(a.bfloat16().float(), b.bfloat16().float()) - c).abs()
    assert not (error <= tf32_tolerance(c, a, b)).all()


def test_a_shared_right_side_has_the_same_bound():
    a, b = operands(16, torch.Generator().manual_seed(3))
    shared = b[:1].expand(2, -1, -1)
    c = reference(a, shared)
    torch.testing.assert_close(
        tf32_tolerance(c, a, shared), tf32_tolerance(c, a, shared.contiguous())
    )


def test_pytorch_is_told_to_use_tf32_for_the_call_alone(monkeypatch):
    seen = []

    def product(a, b):
        seen.append(torch.get_float32_matmul_precision())
        return a @ b

    monkeypatch.setattr(torch, "bmm", product)
    before = torch.get_float32_matmul_precision()
    bmm.variants["torch_bmm_tf32"](*operands(4, torch.Generator()))
    assert seen == ["high"] and torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("name", ["torch_bmm_tf32", "triton_tf32"])
def test_a_cpu_is_a_row_with_the_reason(name, monkeypatch):
    monkeypatch.setattr(backends, "interpreted", lambda backend: False)
    assert bmm.variants[name].why_not_here("cpu") == "needs CUDA"


@pytest.mark.skipif(
    backends.interpreted("triton") or backends.why_absent("triton") is not None,
    reason="nothing is compiled by an interpreter",
)
@pytest.mark.parametrize(
    "architecture, instruction",
    [(80, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"), (90, "k8.f32.tf32")],
)
def test_the_compiled_product_is_on_tf32_tensor_cores(architecture, instruction):
    variant = bmm.variants["triton_tf32"]
    inputs = bmm.make_inputs("linear_grad_weight", 1, "float32", "cpu")
    (launch,) = compiler.launches_of(variant, inputs, architecture)
    assert instruction in launch.ptx
    (facts,) = compiler.read([launch])
    assert (facts.stack_bytes, facts.spills, facts.warp_fault) == (0, 0, None)
