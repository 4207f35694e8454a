"""Ghost norms and the closed form on tensor cores: their bounds hold what tf32 and bf16
parts lose, and not much more.

A CPU knows no tf32, so its rounding is made here: operands keep 10 bits behind the
first.
"""

import pytest
import torch

from batchline import kernels
from batchline.bench.measure.checking.check import (
    check_outputs,
    check_variant,
    expect,
    held_to,
    tolerance_multiple,
)
from batchline.bench.statuses import NotMeasured
from batchline.bench.verdicts.ranking import MOST_TOLERANCE
from batchline.kernels._torch import precision
from batchline.kernels.wgrad_stats import (
    _products,
    torch_ghost_tf32,
    torch_rank_one_tf32,
)
from batchline.kernels.wgrad_stats._bf16_parts import bf16_parts, product_of_parts
from tests.references import computed_once

pytestmark = pytest.mark.usefixtures(computed_once.__name__)
LAYER = kernels.ops["wgrad_stats"]
OF_PARTS = ("torch_ghost_3xbf16", "torch_ghost_6xbf16", "torch_rank_one_3xbf16")
IN_TF32 = (torch_ghost_tf32, torch_rank_one_tf32)
QUICK = [
    name
    for name, make in LAYER.probes.items()
    if LAYER.flops(*make(torch.float32, "meta", 0)) < 1e7 and name != "batch_over_65535"
]


def in_tf32(x, cut=False):
    """x with 10 bits behind the first, rounded to nearest or cut off."""
    bits = x.float().contiguous().view(torch.int32)
    rounded = bits if cut else torch.where(x.isfinite(), bits + 0x1000, bits)
    return (rounded & -0x2000).view(torch.float32)


def cases(names):
    return [
        pytest.param(LAYER.variants[name], dtype, id=f"{name}-{dtype}")
        for name in names
        for dtype in LAYER.variants[name].dtypes
    ]


@pytest.mark.parametrize("variant, dtype", cases(OF_PARTS))
def test_products_of_parts_are_right_on_every_probe(variant, dtype):
    assert check_variant(variant, getattr(torch, dtype), "cpu", QUICK) > 2


@pytest.mark.parametrize("cut", [False, True], ids=["rounded", "cut"])
@pytest.mark.parametrize(
    "module", IN_TF32, ids=lambda module: module.__name__.rpartition(".")[2]
)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_bound_of_tf32_holds_its_rounding(monkeypatch, module, dtype, cut):
    def along_mean(x, dy, mean):
        assert torch.get_float32_matmul_precision() == "high"
        return _products.along_mean(in_tf32(x, cut), dy.float(), in_tf32(mean, cut))

    monkeypatch.setattr(module, "along_mean", along_mean)
    variant = LAYER.variants[module.__name__.rpartition(".")[2]]
    assert check_variant(variant, getattr(torch, dtype), "cpu", QUICK) > 2
    assert torch.get_float32_matmul_precision() == "highest"


def test_narrow_inputs_are_tf32s_own_numbers():
    for dtype in (torch.float16, torch.bfloat16):
        x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
        finite = x[x.isfinite() & ((x == 0) | (x.float().abs() >= 2.0**-126))]
        assert torch.equal(in_tf32(finite), finite.float())


def one_direction(share, dtype=torch.bfloat16):
    """Samples of one gradient, and what d is when every element of ḡ is off by so much
    of itself.
    """
    x, dy = torch.ones(4, 1, 64, dtype=dtype), torch.ones(4, 1, 64, dtype=dtype)
    mean, n, d = LAYER.reference(x, dy)
    return (x, dy), (mean.float(), n.float(), (d * (1 + share)).float())


@pytest.mark.parametrize(
    "name, within, beyond",
    [
        ("torch_ghost_tf32", 2.0**-10, 2.0**-9),
        ("torch_rank_one_tf32", 2.0**-10, 2.0**-9),
        ("torch_ghost_3xbf16", 2.0**-19, 2.0**-15),
        ("torch_rank_one_3xbf16", 2.0**-19, 2.0**-15),
    ],
)
def test_the_bounds_bite(name, within, beyond):
    inputs, outputs = one_direction(within)
    check_outputs(
        outputs,
        inputs,
        held_to(LAYER.variants[name], inputs, expect(LAYER, inputs)),
        "here",
    )
    inputs, outputs = one_direction(beyond)
    with pytest.raises(NotMeasured, match="1 of 4|4 of 4"):
        check_outputs(
            outputs,
            inputs,
            held_to(LAYER.variants[name], inputs, expect(LAYER, inputs)),
            "here",
        )


def test_three_parts_are_all_of_a_number_and_fewer_are_off_by_what_they_leave_out():
    x = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    power = torch.exp2(x.abs().log2().floor())
    for count, off in ((1, 2.0**-8), (2, 2.0**-17), (3, 0)):
        assert (
            (sum(part.double() for part in bf16_parts(x, count)) - x).abs()
            <= off * power
        ).all()
    largest = torch.tensor([torch.finfo(torch.float32).max])
    assert sum(part.double() for part in bf16_parts(largest, 3)) == largest
    half = torch.randn(100).half()
    of_half = bf16_parts(half, 3)
    assert len(of_half) == 2 and torch.equal(
        sum(part.float() for part in of_half), half.float()
    )
    assert len(bf16_parts(half.bfloat16(), 3)) == 1


@pytest.mark.parametrize("products, left_out", [(3, 2.0**-15), (6, 2.0**-24)])
def test_products_of_parts_leave_out_what_is_said(products, left_out):
    """Just above a power of two the parts that are left out are the largest; K = 1, so
    that nothing is summed.
    """
    generator = torch.Generator().manual_seed(1)
    a, b = (
        1 + torch.rand(1, size, other, generator=generator) * 2.0**-6
        for size, other in ((200, 1), (1, 200))
    )
    count = 2 if products == 3 else 3
    result = product_of_parts(
        bf16_parts(a, count), bf16_parts(b, count), products
    ).double()
    off = ((result - a.double() @ b.double()).abs() / (a.double() @ b.double())).max()
    rounding = 3 * 2.0**-24
    assert left_out / 8 < off < left_out + rounding
    assert products == 3 or off > 0


@pytest.mark.parametrize(
    "name, scenario, batch, dtype",
    [
        ("torch_ghost", "linear_512_T128", 2, "float32"),
        ("torch_ghost", "linear_512_T128", 2, "bfloat16"),
        ("torch_ghost_tf32", "linear_512_T128", 2, "bfloat16"),
        ("torch_ghost_3xbf16", "linear_512_T128", 2, "float32"),
        ("torch_ghost_3xbf16", "linear_512_T16", 8, "bfloat16"),
        ("torch_rank_one_3xbf16", "linear_512_T1", 8, "float16"),
        ("torch_rank_one_3xbf16", "digits_hidden", 64, "float32"),
        ("torch_ghost_6xbf16", "linear_512_T1", 3, "float32"),
    ],
)
def test_they_are_ranked_so_that_the_fastest_is_the_opponent(
    name, scenario, batch, dtype
):
    """A bound that is wider than 16 times the op's is no opponent's
    (bench.verdicts.ranking).
    """
    inputs = LAYER.make_inputs(scenario, batch, dtype, "cpu")
    expected = expect(LAYER, inputs)
    assert (
        tolerance_multiple(held_to(LAYER.variants[name], inputs, expected), expected)
        < MOST_TOLERANCE
    )


def test_ghosts_bound_holds_a_worst_case_of_its_grams():
    """Every element of both Grams off by (K+1)·u of its terms, all to the side that n
    feels.
    """
    x, dy = LAYER.make_inputs("odd_37x127x257", 2, "float32", "cpu")
    grams = []
    for one in (x.double(), dy.double()):
        off = (
            (one.shape[2] + 1)
            * 2.0**-24
            * one.norm(dim=2)[:, :, None]
            * one.norm(dim=2)[:, None, :]
        )
        grams.append((one @ one.mT, off))
    (x_gram, x_off), (dy_gram, dy_off) = grams
    n = ((x_gram + x_off * dy_gram.sign()) * dy_gram).sum((1, 2)) + (
        x_gram.abs() * dy_off
    ).sum((1, 2))
    expected = LAYER.reference(x, dy)
    _, n_off, _ = LAYER.variants["torch_ghost"].tolerance(expected, x, dy)
    assert ((n - expected[1]).abs() < n_off).all() and (
        (n - expected[1]).abs() > 0.2 * n_off
    ).all()


def test_the_setting_is_put_back_whatever_happens():
    before = torch.get_float32_matmul_precision()
    for precision_before in ("highest", "medium"):
        torch.set_float32_matmul_precision(precision_before)
        try:
            with pytest.raises(ValueError), precision.tf32_products():
                assert torch.get_float32_matmul_precision() == "high"
                raise ValueError
            assert torch.get_float32_matmul_precision() == precision_before
        finally:
            torch.set_float32_matmul_precision(before)


def test_no_product_of_theirs_is_on_fmas(monkeypatch):
    """Of bf16 and of fp32 inputs: every product's operands are narrow."""
    seen = []

    def product(a, b):
        seen.append((a.dtype, b.dtype))
        return torch.bmm(a.float(), b.float())

    monkeypatch.setattr("batchline.kernels.wgrad_stats._bf16_parts.product", product)
    monkeypatch.setattr(
        "batchline.kernels.wgrad_stats._bf16_parts.add_product",
        lambda total, a, b: total.add_(product(a, b)),
    )
    for dtype, count in (("bfloat16", 3 + 3), ("float16", 3 + 3), ("float32", 4 * 3)):
        seen.clear()
        LAYER.variants["torch_ghost_3xbf16"](
            *LAYER.make_inputs("odd_37x127x257", 2, dtype, "cpu")
        )
        assert len(seen) == count and {
            one.itemsize for pair in seen for one in pair
        } == {2}
