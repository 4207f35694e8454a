"""fp32 products on the library's tensor cores: numbers as sums of bf16 parts, and the
largest products of those.

A significand of 24 bits is three parts of 8, as in kernels/bmm/_split_bf16.py, whose
figures hold here: of |a||b| three products leave out 2⁻¹⁵ at most and six 2⁻²⁴. A bf16
number is its own one part, and an fp16 number two.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from batchline.kernels.op import Tensors
from batchline.kernels.wgrad_stats._products import add_product, product

LEFT_OUT = {3: 2.0**-15, 6: 2.0**-24}  # by how many products are kept
_LARGEST = torch.finfo(torch.bfloat16).max
_MOST_PARTS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}


def bf16_parts(x: torch.Tensor, count: int) -> list[torch.Tensor]:
    """x as a sum of `count` bf16 tensors, the largest first; fewer where those are all
    of x.

    A number above bf16's largest has that for its first part, for rounded it would be
    an infinity.
    """
    if x.dtype == torch.bfloat16:
        return [x]
    rest = x.float()
    parts = [rest.clamp(-_LARGEST, _LARGEST).to(torch.bfloat16)]
    for _ in range(1, min(count, _MOST_PARTS[x.dtype])):
        rest = rest - parts[-1]
        parts.append(rest.to(torch.bfloat16))
    return parts


def product_of_parts(
    a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], products: int
) -> torch.Tensor:
    """Σ_ij a_i[B,M,K] @ b_j[B,K,N] → fp32 [B,M,N] over the `products` largest of the
    pairs, the smallest first.
    """
    pairs = sorted(itertools.product(range(len(a)), range(len(b))), key=sum)[:products]
    (last_a, last_b), *others = reversed(pairs)
    total = product(a[last_a], b[last_b])
    for of_a, of_b in others:
        add_product(total, a[of_a], b[of_b])
    return total


def mean_and_along(
    dy: torch.Tensor,
    xs: Sequence[torch.Tensor],
    dys: Sequence[torch.Tensor],
    products: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """ḡ[O,I] and d[B] = Σ_t dy_t·(ḡ x_t), where `xs` and `dys` are as split_inputs
    gives them.

    For d an fp16 x is split, too, and ḡ into as many parts as the products are of.
    """
    rows, columns = (
        [part.flatten(0, 1)[None] for part in parts] for parts in (xs, dys)
    )
    mean = product_of_parts([part.mT for part in columns], rows, products)[0].div_(
        len(dy)
    )
    if rows[0].dtype == torch.float16:
        rows = bf16_parts(rows[0], 2)
    of_mean = bf16_parts(mean, 2 if len(rows) == 2 else 3)
    projected = product_of_parts(rows, [part.T[None] for part in of_mean], products)[0]
    return mean, (projected.view(dy.shape) * dy).sum((1, 2))


def ghost_of_parts(x: torch.Tensor, dy: torch.Tensor, products: int) -> Tensors:
    """{ḡ, n, d} by ghost norms, what narrow inputs are not for from `products` (3 or 6)
    products of bf16 parts.
    """
    xs, dys = split_inputs(x, dy, products)
    grams = [
        product_of_parts(parts, [part.mT for part in parts], products)
        for parts in (xs, dys)
    ]
    mean, d = mean_and_along(dy, xs, dys, products)
    return mean, (grams[0] * grams[1]).sum((1, 2)), d


def split_inputs(
    x: torch.Tensor, dy: torch.Tensor, products: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The parts of fp32 inputs that so many products are of; narrow inputs are tensor
    cores' as they are.
    """
    if x.dtype != torch.float32:
        return [x], [dy]
    count = 2 if products == 3 else 3
    return bf16_parts(x, count), bf16_parts(dy, count)
