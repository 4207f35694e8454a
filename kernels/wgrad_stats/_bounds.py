"""How far from exact statistics made of Grams, of bf16 parts or of tf32 products may
be, beside the op's own bound.

|δ(Σ_k a_k·b_k)| ≤ (K+1)·u₃₂·Σ_k|a_k||b_k| in any order (Higham, Accuracy and Stability of Numerical Algorithms, 2nd
ed., §3.5). To that comes what a way of multiplying leaves out of |a_k||b_k|, and what underflows: a part of a number,
or a product of parts, under 2⁻¹²⁶ may count as zero.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from batchline.kernels.elements import rows_at_once, unit_roundoff
from batchline.kernels.op import Tensors
from batchline.kernels.statistics import accumulator, summed
from batchline.kernels.wgrad_stats import tolerance

TF32_LEFT_OUT = (
    2.0**-10
)  # of a number: tf32 keeps 10 bits behind the first, whether they are rounded or cut off
_SMALLEST_NORMAL = 2.0**-126  # of bf16 and of tf32 as of fp32
_PARTS_ON_PARTS = (
    1.05  # sums of smaller parts round, too: each is at most 2⁻⁸ of the one before it
)


def ghost_tolerance(expected: Tensors, x: torch.Tensor, dy: torch.Tensor) -> Tensors:
    """The op's, and for n what the rounding of two fp32 Grams X = x xᵀ, Y = dy dyᵀ and
    of Σ_ts X_ts·Y_ts can give.

    Σ_ts (ε_I‖x_t‖‖x_s‖·|Y_ts| + ε_O‖dy_t‖‖dy_s‖·|X_ts| + ε_I·ε_O‖x_t‖‖x_s‖‖dy_t‖‖dy_s‖)
    + γ(T²)·Σ_ts|X_ts||Y_ts|, with ε_K = (K+1)·u₃₂ and γ as in
    kernels.statistics.summed. It is a bound on the terms: where they cancel it stays.
    """
    mean_off, n_off, d_off = tolerance(expected, x, dy)
    u = unit_roundoff(accumulator(x.dtype))
    return (
        mean_off,
        n_off
        + _gram_sum_off(x, dy, *((size + 1) * u for size in (x.shape[2], dy.shape[2]))),
        d_off,
    )


def tf32_tolerance(
    bound: Tensors, expected: Tensors, x: torch.Tensor, dy: torch.Tensor
) -> Tensors:
    """`bound`, and for d what ḡ in tf32 can give: d_b = ⟨G_b, ḡ + δ⟩ with |δ| ≤
    2⁻¹⁰|ḡ|, so 2⁻¹⁰·‖G_b‖·‖ḡ‖.

    x is narrow, and its numbers are tf32's. Elements of ḡ under 2⁻¹²⁶ may count as
    zero: 2⁻¹²⁶·‖G_b‖·√(IO).
    """
    mean_off, n_off, d_off = bound
    return (
        mean_off,
        n_off,
        d_off
        + _norms(expected)
        * (TF32_LEFT_OUT * expected[0].norm() + _flushed_mean(expected)),
    )


def parts_tolerance(
    bound: Tensors,
    expected: Tensors,
    x: torch.Tensor,
    dy: torch.Tensor,
    left_out: float,
) -> Tensors:
    """`bound`, and what products of bf16 parts leave out: up to `left_out` of |a||b|
    for each product a·b.

    Of narrow inputs d alone is made of parts: off by ⟨A_b, |ḡ|⟩·left_out at most, A_b =
    |dy_b|ᵀ|x_b|, which is under Σ_t‖x_t‖‖dy_t‖·‖ḡ‖·left_out. In bf16 x is one part and
    ḡ three, and nothing is left out. Of fp32 inputs ḡ is made of parts, too: off by
    left_out + 3u of the mean of A_b too, and by 5% more for the sums of the smaller
    parts. What ḡ is off by, d is off by ‖G_b‖ times.
    """
    mean_off, n_off, d_off = bound
    mean, _, _ = expected
    norms = _norms(expected)
    if x.dtype == torch.bfloat16:
        return mean_off, n_off, d_off + norms * _flushed_mean(expected)
    left_out += 3 * unit_roundoff(torch.float32)
    magnitude, absolute, flushed = _magnitudes(x, dy)
    d_off = d_off + left_out * magnitude * mean.norm() + norms * _flushed_mean(expected)
    d_off = d_off + _SMALLEST_NORMAL * (
        magnitude + x.shape[2] * dy.double().abs().sum((1, 2))
    )
    if x.dtype == torch.float16:
        return mean_off, n_off, d_off
    more = (_PARTS_ON_PARTS - 1) * mean_off + left_out * absolute + flushed
    return mean_off + more, n_off, d_off + norms * more.norm()


def ghost_parts_tolerance(
    expected: Tensors, x: torch.Tensor, dy: torch.Tensor, left_out: float
) -> Tensors:
    """ghost_tolerance and parts_tolerance, with ε_K = 1.05·(K+3)·u + left_out where the
    Grams are of parts: in fp32.
    """
    if x.dtype != torch.float32:
        return parts_tolerance(
            ghost_tolerance(expected, x, dy), expected, x, dy, left_out
        )
    u = unit_roundoff(torch.float32)
    mean_off, n_off, d_off = parts_tolerance(
        tolerance(expected, x, dy), expected, x, dy, left_out
    )
    of_inputs, of_outputs = (
        _PARTS_ON_PARTS * (size + 3) * u + left_out
        for size in (x.shape[2], dy.shape[2])
    )
    return (
        mean_off,
        n_off + _gram_sum_off(x, dy, of_inputs, of_outputs, _SMALLEST_NORMAL),
        d_off,
    )


def _gram_sum_off(
    x: torch.Tensor,
    dy: torch.Tensor,
    of_inputs: float,
    of_outputs: float,
    flushed: float = 0.0,
) -> torch.Tensor:
    """How far Σ_ts X_ts·Y_ts [B] may be off where X is by so much of ‖x_t‖‖x_s‖, and Y
    of ‖dy_t‖‖dy_s‖, in fp64.

    `flushed`: what else a term of a Gram loses, for each |x_t| and |x_s| and for
    what underflows after them.
    """
    off = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    sum_off = summed(x.shape[1] ** 2, x.dtype)
    for samples, rows, columns in _samples_in_fp64(x, dy):
        (x_gram, x_off), (y_gram, y_off) = (
            _gram_and_off(one, part, flushed)
            for one, part in ((rows, of_inputs), (columns, of_outputs))
        )
        off[samples] = (
            x_off * (y_gram + y_off)
            + x_gram * y_off
            + sum_off * (x_gram + x_off) * (y_gram + y_off)
        ).sum((1, 2))
    return off


def _gram_and_off(
    rows: torch.Tensor, part: float, flushed: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """|rows rowsᵀ| [b,T,T], and how far each element may be off."""
    norms, sums = rows.norm(dim=2), rows.abs().sum(2) + 4 * rows.shape[2]
    off = part * norms[:, :, None] * norms[:, None, :] + flushed * (
        sums[:, :, None] + sums[:, None, :]
    )
    return (rows @ rows.mT).abs(), off


def _samples_in_fp64(
    x: torch.Tensor, dy: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
    """x and dy in fp64, a block of samples at a time, after the block's slice. Their
    Grams are in memory too.
    """
    tokens = x.shape[1]
    count = rows_at_once(tokens * (x.shape[2] + dy.shape[2] + 4 * tokens))
    for start in range(0, len(x), count):
        samples = slice(start, start + count)
        yield samples, x[samples].double(), dy[samples].double()


def _magnitudes(
    x: torch.Tensor, dy: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Σ_t ‖x_t‖‖dy_t‖ [B], the mean of |dy_b|ᵀ|x_b| [O,I], and what of ḡ underflows at
    worst [O,I], in fp64.

    Of a product a·b that is 2⁻¹²⁶·(|a| + |b| + 8), and nothing where one of the two is
    zero.
    """
    magnitude = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    absolute, flushed = (
        torch.zeros(dy.shape[2], x.shape[2], dtype=torch.float64, device=x.device)
        for _ in range(2)
    )
    for samples, rows, columns in _samples_in_fp64(x, dy):
        magnitude[samples] = (rows.norm(dim=2) * columns.norm(dim=2)).sum(1)
        rows, columns = rows.abs().flatten(0, 1), columns.abs().flatten(0, 1).T
        is_row, is_column = rows.sign(), columns.sign()
        absolute += columns @ rows
        flushed += (columns + 8 * is_column) @ is_row + is_column @ rows
    return magnitude, absolute / len(x), _SMALLEST_NORMAL * flushed / len(x)


def _norms(expected: Tensors) -> torch.Tensor:
    """‖G_b‖ [B]."""
    return expected[1].sqrt()


def _flushed_mean(expected: Tensors) -> float:
    """The norm of what ḡ loses where its elements underflow."""
    return _SMALLEST_NORMAL * expected[0].numel() ** 0.5
