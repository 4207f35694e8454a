"""What products of bf16 parts leave out, in exact arithmetic on the CPU: the stated
bounds hold, and are nearly met.
"""

import pytest
import torch

from batchline.kernels.bmm import bmm, reference
from batchline.kernels.bmm._split_bf16 import split_tolerance

LEFT_OUT = {3: 2.0**-15, 6: 2.0**-24}
STEPS = torch.arange(-4, 5)
# Powers of two and neighbours, and numbers that lie halfway between those of 8 and of
# 16 bits.
HARD = torch.unique(
    torch.cat(
        [
            1 + high * 2.0**-8 + middle * 2.0**-17 + STEPS * 2.0**-23
            for high in STEPS
            for middle in STEPS
        ]
    ).float()
)


def _parts(x):
    high = x.bfloat16().float()
    middle = (x - high).bfloat16().float()
    return [
        part.double() for part in (high, middle, (x - high - middle).bfloat16().float())
    ]


def _product(a, b, products):
    """The kept products of parts, exact but for fp64's rounding."""
    most = {3: 1, 6: 2}[products]
    return sum(
        left @ right
        for i, left in enumerate(_parts(a))
        for j, right in enumerate(_parts(b))
        if i + j <= most
    )


@pytest.mark.parametrize("products", LEFT_OUT)
def test_what_is_left_out_of_one_product(products):
    a, b = HARD[None, :, None], HARD[None, None, :]
    share = (_product(a, b, products) - reference(a, b)).abs() / (
        LEFT_OUT[products] * reference(a, b)
    )
    assert 0.9 < float(share.max()) <= 1.01


def test_three_parts_are_the_number():
    x = torch.cat([HARD, torch.rand(10_000) * 2 - 1])
    assert torch.equal(sum(_parts(x)), x.double())


@pytest.mark.parametrize("k", (1, 16, 256, 4096))
@pytest.mark.parametrize("products", LEFT_OUT)
def test_the_declared_tolerance_holds_it(products, k):
    generator = torch.Generator().manual_seed(k)
    a, b = (
        torch.rand(1, 24, k, generator=generator) * 2 - 1,
        torch.rand(1, k, 24, generator=generator) * 2 - 1,
    )
    c = reference(a, b)
    difference = (_product(a, b, products) - c).abs()
    assert (difference <= split_tolerance(LEFT_OUT[products])(c, a, b)).all()
    assert bool((difference <= bmm.tolerance(c, a, b)).all()) == (
        products == 6 or k >= 256
    )
