"""The ops themselves: references against NumPy, work counts by hand, tolerances that
hold and that bite.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from batchline import kernels
from batchline.kernels.bmm import bmm, stored
from batchline.kernels.draw import Draw
from batchline.kernels.grad_reduce import grad_reduce

SIZES = st.integers(0, 9)


@settings(max_examples=60, deadline=None)
@given(
    SIZES,
    SIZES,
    SIZES,
    SIZES,
    st.sampled_from(["nn", "nt", "tn"]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_bmm_reference_is_numpys(batch, m, n, k, layout, shared, seed):
    a, b = stored(
        Draw(torch.float32, "cpu", seed), layout, batch, 1 if shared else batch, m, n, k
    )
    b = b.expand(batch, -1, -1)
    expected = np.einsum(
        "bmk,bkn->bmn", a.numpy().astype(np.float64), b.numpy().astype(np.float64)
    )
    result = bmm.reference(a, b)
    assert result.dtype == torch.float64 and result.shape == (batch, m, n)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), SIZES, st.integers(0, 2**32))
def test_grad_reduce_reference_is_numpys(batch, parameters, seed):
    g = Draw(torch.float32, "cpu", seed).normal(batch, parameters)
    np.testing.assert_allclose(
        grad_reduce.reference(g).numpy(),
        g.numpy().astype(np.float64).mean(0),
        atol=1e-14,
    )


def test_the_mean_of_nothing_is_nan():
    assert grad_reduce.reference(torch.ones(0, 3)).isnan().all()


def test_work_by_hand():
    a, b = bmm.make_inputs("linear_forward", 4, "float16", "meta")
    assert (a.shape, b.shape) == ((4, 128, 512), (4, 512, 2048))
    assert b.stride() == (0, 1, 512)  # one W, stored [out, in]
    assert bmm.flops(a, b) == 2 * 4 * 128 * 2048 * 512
    assert bmm.least_bytes(a, b) == 2 * (4 * 128 * 512 + 512 * 2048 + 4 * 128 * 2048)
    (g,) = grad_reduce.make_inputs("layer_norm", 8, "float32", "meta")
    assert grad_reduce.flops(g) == 8 * 1536
    assert grad_reduce.least_bytes(g) == 4 * (8 * 1536 + 1536)


def _small_scenarios(op):
    return [
        scenario.name
        for scenario in op.scenarios.values()
        if max(scenario.sizes.values()) <= 10_000
    ]


@pytest.mark.parametrize("op", kernels.ops.values(), ids=kernels.ops)
def test_meta_inputs_are_the_real_ones_without_values(op):
    for scenario in _small_scenarios(op):
        real = op.make_inputs(scenario, 3, "float32", "cpu", seed=1)
        sketch = op.make_inputs(scenario, 3, "float32", "meta")
        assert [(t.shape, t.stride(), t.dtype) for t in real] == [
            (t.shape, t.stride(), t.dtype) for t in sketch
        ]


@pytest.mark.parametrize("op", kernels.ops.values(), ids=kernels.ops)
def test_inputs_are_fresh_for_each_seed_and_the_same_for_one(op):
    for scenario in _small_scenarios(op)[:2]:
        first, again, other = (
            op.make_inputs(scenario, 2, "float32", "cpu", seed) for seed in (1, 1, 2)
        )
        assert all(torch.equal(a, b) for a, b in zip(first, again))
        assert not any(torch.equal(a, b) for a, b in zip(first, other))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_bmm_tolerance_holds_for_any_order_and_not_for_a_narrower_sum(dtype):
    """Sums in fp32 in three orders stay inside; the same sums kept in the narrow type,
    or one term short, do not.
    """
    a, b = stored(Draw(dtype, "cpu", 5), "nn", 1, 1, 8, 8, 500)
    expected = bmm.reference(a, b)
    tolerance = bmm.tolerance(expected, a, b)
    products = a[0, :, :, None].float() * b[0, None].float()

    def sum_in(order, accumulator):
        total = torch.zeros(8, 8, dtype=accumulator)
        for k in order:
            total = (total + products[:, k].to(accumulator)).to(accumulator)
        return (total.to(dtype).double() - expected[0]).abs()

    for order in (range(500), range(499, -1, -1), torch.randperm(500).tolist()):
        assert (sum_in(order, torch.float32) <= tolerance[0]).all()
    assert (sum_in(range(499), torch.float32) > tolerance[0]).any()
    if dtype != torch.float32:
        assert (sum_in(range(500), dtype) > tolerance[0]).any()


def _sum_as_fp8_tensor_cores(a, b, promoted_every):
    """Products aligned 32 at a time to the largest of them and of the running sum, and
    cut to 14 bits (DeepSeek-V3, arXiv:2412.19437, §3.5.2); the sum moves to fp32 after
    `promoted_every` products.
    """
    products = a.double()[:, :, :, None] * b.double()[:, None]
    total = torch.zeros(len(a), a.shape[1], b.shape[2], dtype=torch.float32)
    running = torch.zeros_like(total, dtype=torch.float64)
    for start in range(0, a.shape[2], 32):
        if start % promoted_every == 0:
            total, running = total + running.float(), torch.zeros_like(running)
        addends = torch.cat(
            [running[:, :, None], products[:, :, start : start + 32]], dim=2
        )
        largest = addends.abs().amax(2, keepdim=True).clamp_min(1e-30).log2().floor()
        step = 2.0 ** (largest - 13)
        running = ((addends / step).trunc() * step).sum(2)
        step = 2.0 ** (running.abs().clamp_min(1e-30).log2().floor() - 13)
        running = (running / step).trunc() * step
    return (total + running.float()).to(torch.bfloat16)


def test_fp8_inputs_show_a_sum_kept_in_14_bits_and_nothing_else():
    for probe in ("ragged", "deep", "large", "deep_1027", "returning_sums"):
        a, b = bmm.probes[probe](torch.float8_e4m3fn, "cpu", 7)
        expected = bmm.reference(a, b)
        tolerance = bmm.tolerance(expected, a, b)

        def is_right(promoted_every):
            return (
                (
                    _sum_as_fp8_tensor_cores(a, b, promoted_every).double() - expected
                ).abs()
                <= tolerance
            ).all()

        assert is_right(32) and is_right(128), probe
        assert is_right(10**6) == (probe != "returning_sums"), probe


@pytest.mark.parametrize("scale", [1.0, 256.0])
def test_fp8_is_drawn_on_eighths_of_its_scale(scale):
    drawn = Draw(torch.float8_e4m3fn, "cpu", 3).uniform(1000, scale=scale).double()
    assert set((drawn * 8 / scale).tolist()) == set(map(float, range(-8, 9)))


def test_fp8_products_are_bfloat16():
    a, b = bmm.make_inputs("linear_forward", 4, "float8_e4m3fn", "meta")
    assert bmm.dtypes(a, b) == torch.bfloat16
    assert bmm.least_bytes(a, b) == 4 * 128 * 512 + 512 * 2048 + 2 * 4 * 128 * 2048


def test_grad_reduce_tolerance_bites():
    g = Draw(torch.float16, "cpu", 3).uniform(300, 50)
    expected = grad_reduce.reference(g)
    tolerance = grad_reduce.tolerance(expected, g)
    assert ((g.float().mean(0).half().double() - expected).abs() <= tolerance).all()
    narrow = torch.zeros(50, dtype=torch.float16)
    for row in g:
        narrow = narrow + row
    assert (((narrow / 300).double() - expected).abs() > tolerance).any()
    assert ((g[:-1].float().mean(0).half().double() - expected).abs() > tolerance).any()
