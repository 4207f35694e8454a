"""Batched product of MXFP8 matrices: A[B,M,K] @ B[B,K,N] → C[B,M,N], each 32 of K in a row
of A and in a column of B times a scale of their own, accumulated in fp32.

The format is OCP's (Microscaling Formats v1.0): elements are e4m3, a scale is e8m0, the
power of two 2^(code - 127), and code 255 is NaN. Scales are given as the tensor cores of
sm_100 and cuBLAS read them, in blocks of 128 rows by 4 scales (PTX ISA, "Scale factor
layout"; cuBLAS, "1D block scaling factors layout"): what quantises a matrix writes them
so, once. `arranged` makes that of scales in rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from batchline.kernels import bmm
from batchline.kernels.draw import Draw, with_nan
from batchline.kernels.elements import (
    distinct_bytes,
    dtype_name,
    rows_at_once,
    subnormal_step,
    unit_roundoff,
)
from batchline.kernels.op import FP8, Calls, Op, Problems, Reference, Scenario, Work
from batchline.kernels.rounding import Typical, sum_in_any_order

SCALED = 32  # elements of K that share a scale
BLOCK_ROWS, BLOCK_SCALES = 128, 4  # of a block of scales
BLOCK_BYTES = BLOCK_ROWS * BLOCK_SCALES
E8M0 = torch.float8_e8m0fnu
OUTPUT = torch.bfloat16
_BIAS, _NAN = 127, 255  # of e8m0's codes


@dataclass(frozen=True)
class ScaledScenario(Scenario):
    """sizes has M, N, K. A is stored row by row and B column by column, as the scales
    lie; `shared_rhs` gives all entries one B.
    """

    dtypes: tuple[str, ...] = (FP8,)
    shared_rhs: bool = False


SCENARIOS = (
    ScaledScenario(
        "attention_scores",
        "Q Kᵀ of one GPT-2 small head over 512 tokens; B = sequences x heads",
        {"M": 512, "N": 512, "K": 64},
    ),
    ScaledScenario(
        "linear_forward",
        "X Wᵀ of the base Transformer's 512 → 2048 layer, 128 tokens a sample, W shared",
        {"M": 128, "N": 2048, "K": 512},
        shared_rhs=True,
    ),
    ScaledScenario(
        "linear_grad_weight",
        "dYᵀ X: per-sample weight gradients of a 512 → 512 layer, 128 tokens a sample",
        {"M": 512, "N": 512, "K": 128},
    ),
    ScaledScenario("square_1024", "squares of 1024", {"M": 1024, "N": 1024, "K": 1024}),
    ScaledScenario("square_4096", "squares of 4096", {"M": 4096, "N": 4096, "K": 4096}),
)


# --- scales -------------------------------------------------------------------------


def scales_along(k: int) -> int:
    """How many scales a row of K elements has."""
    return blocks_of(k, SCALED)


def blocks_of(count: int, size: int) -> int:
    """How many blocks of `size` hold `count`."""
    return -(-count // size)


def arranged(scales: torch.Tensor) -> torch.Tensor:
    """Scales[B,R,S], e8m0, in blocks: e8m0 [B, ⌈R/128⌉, ⌈S/4⌉, 512], padded with code 0.

    In a block, scale s of row r is byte r % 32 · 16 + r // 32 · 4 + s.
    """
    batch, rows, count = scales.shape
    down, along = blocks_of(rows, BLOCK_ROWS), blocks_of(count, BLOCK_SCALES)
    codes = scales.new_zeros(
        (batch, down * BLOCK_ROWS, along * BLOCK_SCALES), dtype=torch.uint8
    )
    codes[:, :rows, :count] = scales.view(torch.uint8)
    blocks = codes.view(batch, down, 4, 32, along, BLOCK_SCALES)
    lying = blocks.permute(0, 1, 4, 3, 2, 5)
    return lying.reshape(batch, down, along, BLOCK_BYTES).view(E8M0)


def in_rows(blocks: torch.Tensor, rows: int, count: int) -> torch.Tensor:
    """Of scales as `arranged` returns them those of so many rows, e8m0
    [B, rows, count].
    """
    batch, down, along, _ = blocks.shape
    codes = blocks.view(torch.uint8).view(batch, down, along, 32, 4, BLOCK_SCALES)
    lying = codes.permute(0, 1, 4, 3, 2, 5)
    whole = lying.reshape(batch, down * BLOCK_ROWS, along * BLOCK_SCALES)
    return whole[:, :rows, :count].contiguous().view(E8M0)


def dequantised(
    rows: torch.Tensor, blocks: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Rows[B,R,K] times their scales, in `dtype`: exact in fp64."""
    _, count, k = rows.shape
    scales = in_rows(blocks, count, scales_along(k)).to(dtype)
    return rows.to(dtype) * scales.repeat_interleave(SCALED, dim=2)[:, :, :k]


def in_bytes(blocks: torch.Tensor) -> torch.Tensor:
    """The codes of scales, uint8 in the same memory: Triton knows no e8m0."""
    return blocks.view(torch.uint8)


def why_not_arranged(a, b, a_scales, b_scales) -> str | None:
    """Why the scales do not lie as `arranged` returns them, or None. All entries may
    share theirs.
    """
    along = blocks_of(scales_along(a.shape[2]), BLOCK_SCALES)
    for name, blocks, rows in (
        ("A", a_scales, a.shape[1]),
        ("B", b_scales, b.shape[2]),
    ):
        shape = (len(a), blocks_of(rows, BLOCK_ROWS), along, BLOCK_BYTES)
        if blocks.dtype != E8M0 or blocks.shape != shape:
            given = f"{dtype_name(blocks.dtype)} {list(blocks.shape)}"
            return f"{name}'s scales are {given}, not {dtype_name(E8M0)} {list(shape)}"
        is_aligned = blocks.storage_offset() % 16 == blocks.stride(0) % 16 == 0
        if not blocks[:1].is_contiguous() or not is_aligned:
            return f"{name}'s scales have gaps between blocks, or begin at no multiple of 16 bytes"
    return None


# --- what is right ------------------------------------------------------------------


def reference(a, b, a_scales, b_scales) -> torch.Tensor:
    """C[B,M,N] in fp64."""
    return _product(a, b, a_scales, b_scales)


def _product(a, b, a_scales, b_scales, of=lambda tensor: tensor):
    """The products of what the operands stand for in fp64, some entries at a time."""
    entries = rows_at_once(a[:1].numel() + b[:1].numel())
    shape = (a.shape[0], a.shape[1], b.shape[2])
    products = torch.empty(shape, dtype=torch.float64, device=a.device)
    for start in range(0, len(a), entries):
        taken = slice(start, start + entries)
        left = dequantised(a[taken], a_scales[taken], torch.float64)
        right = dequantised(b[taken].mT, b_scales[taken], torch.float64)
        torch.matmul(of(left), of(right.mT), out=products[taken])
    return products


def tolerance(c, a, b, a_scales, b_scales) -> torch.Tensor:
    """|C − c| that fp32 accumulation in any order can give, elementwise, as bmm's: a
    product times two powers of two is as exact as the product.
    """
    magnitudes = _product(a, b, a_scales, b_scales, torch.abs)
    growth = (a.shape[2] + 1) * unit_roundoff(torch.float32)
    rounded = growth * magnitudes + unit_roundoff(OUTPUT) * c.abs()
    return 1.01 * rounded + subnormal_step(OUTPUT)


def typical(a, b, a_scales, b_scales) -> tuple[Typical]:
    """Of sums of K products that tensor cores make, which cut off what they add."""
    return (sum_in_any_order(a.shape[2], torch.float32, OUTPUT, truncated=True),)


# --- problems -----------------------------------------------------------------------


def inputs(scenario, batch: int, dtype: torch.dtype, device: str, seed: int):
    """A, B and their scales: elements on the eighths of [-1, 1], scales from 2^-4 to
    2^4.
    """
    m, n, k = (scenario.sizes[name] for name in "MNK")
    entries = 1 if scenario.shared_rhs else batch
    draw = Draw(dtype, device, seed)
    a, b = bmm.stored(draw, "nt", batch, entries, m, n, k)
    b_scales = _drawn_scales(draw, entries, n, k)
    return (
        a,
        b.expand(batch, -1, -1),
        _drawn_scales(draw, batch, m, k),
        b_scales.expand(batch, -1, -1, -1),
    )


def _drawn_scales(draw: Draw, batch: int, rows: int, k: int, middle: int = 0):
    """Of so many rows of K elements, from 2^(middle - 4) to 2^(middle + 4), arranged."""
    exponents = draw.uniform(batch, rows, scales_along(k), scale=4.0)
    if draw.device == "meta":
        return arranged(torch.empty_like(exponents, dtype=E8M0))
    codes = exponents.float().trunc() + (_BIAS + middle)
    return arranged(codes.clamp(0, _NAN - 1).to(torch.uint8).view(E8M0))


def _scaled(draw: Draw, a, b, a_middle: int = 0, b_middle: int = 0):
    """The operands with scales around 2^a_middle and 2^b_middle."""
    k = a.shape[2]
    return (
        a,
        b,
        _drawn_scales(draw, len(a), a.shape[1], k, a_middle),
        _drawn_scales(draw, len(b), b.shape[2], k, b_middle),
    )


def _probe(batch, m, n, k, layout="nt", a_middle=0, b_middle=0):
    def make(dtype, device, seed):
        draw = Draw(dtype, device, seed)
        a, b = bmm.stored(draw, layout, batch, batch, m, n, k)
        return _scaled(draw, a, b, a_middle, b_middle)

    return make


def _windows(dtype, device, seed):
    """Inner windows whose first elements and strides are multiples of 16 elements."""
    draw = Draw(dtype, device, seed)
    a, b = draw.uniform(2, 24, 160), draw.uniform(2, 40, 160)
    return _scaled(draw, a[:, 3:21, 16:128], b[:, 7:31, 32:144].mT)


def _shared_b(dtype, device, seed):
    """One right side and its scales for all entries."""
    draw = Draw(dtype, device, seed)
    a, b = bmm.stored(draw, "nt", 3, 1, 40, 24, 96)
    a, b, a_scales, b_scales = _scaled(draw, a, b)
    return a, b.expand(3, -1, -1), a_scales, b_scales.expand(3, -1, -1, -1)


def _nan_elements(dtype, device, seed):
    """A NaN in each operand: it belongs in its row or column of C."""
    draw = Draw(dtype, device, seed)
    a, b = bmm.stored(draw, "nt", 2, 2, 19, 24, 48)
    with_nan(a), with_nan(b.mT)
    return _scaled(draw, a, b)


def _nan_scales(dtype, device, seed):
    """A scale that is NaN in each operand, the last one of its row: so is all of its
    row or column of C, and nothing else.
    """
    draw = Draw(dtype, device, seed)
    a, b = bmm.stored(draw, "nt", 2, 2, 19, 24, 80)
    a, b, a_scales, b_scales = _scaled(draw, a, b)
    for blocks, row in ((a_scales, 17), (b_scales, 5)):
        blocks.view(torch.uint8)[1, 0, 0, row * 16 + 2] = _NAN
    return a, b, a_scales, b_scales


# Those called aligned have rows of whole 16-byte words, as TMA and the library want
# them. In "aligned_low" A's scales go down to 2^-127 and B's up to 2^127, in
# "aligned_high" the other way round; elements are at most 1, so that what they stand for
# has a float32.
PROBES = {
    "ragged": _probe(2, 17, 5, 19),
    "one_element": _probe(1, 1, 1, 1),
    "rows_and_columns": _probe(2, 3, 4, 45, layout="nn"),
    "deep": _probe(1, 2, 3, 1027),
    "empty_batch": _probe(0, 5, 6, 7),
    "empty_m": _probe(2, 0, 6, 7),
    "empty_n": _probe(2, 5, 0, 7),
    "empty_k": _probe(2, 5, 6, 0),
    "aligned": _probe(2, 32, 48, 64),
    "aligned_ragged_k": _probe(2, 16, 8, 80),
    "aligned_tn": _probe(2, 48, 32, 96, layout="tn"),
    "aligned_windows": _windows,
    "aligned_shared_b": _shared_b,
    "aligned_low": _probe(2, 16, 24, 96, a_middle=-124, b_middle=124),
    "aligned_high": _probe(2, 16, 24, 96, a_middle=124, b_middle=-124),
    "aligned_nan": _nan_elements,
    "aligned_nan_scales": _nan_scales,
    "aligned_tiles": _probe(3, 136, 272, 208),
    "aligned_deep": _probe(1, 24, 16, 2064),
    "aligned_entries": _probe(331, 8, 16, 80),
}


def describe(a, b, a_scales, b_scales) -> tuple[str, tuple[int, ...]]:
    """("float8_e4m3fn/nt", (B, M, N, K)), as bmm's."""
    return bmm.describe(a, b)


def flops(a, b, a_scales, b_scales) -> int:
    """2·B·M·N·K."""
    return bmm.flops(a, b)


def least_bytes(a, b, a_scales, b_scales) -> int:
    """The operands and their scales read once (a shared one counts once), C written
    once.
    """
    scales = distinct_bytes(a_scales) + distinct_bytes(b_scales)
    return bmm.least_bytes(a, b) + scales


bmm_mxfp8 = Op(
    __name__,
    signature="A[B,M,K], B[B,K,N], scales of A[B,⌈M/128⌉,⌈K/128⌉,512], of B[B,⌈N/128⌉,⌈K/128⌉,512] → C[B,M,N]",
    problems=Problems(SCENARIOS, inputs, PROBES, example=("linear_grad_weight", 16)),
    reference=Reference(
        reference,
        tolerance,
        typical,
        dtypes=lambda *inputs: OUTPUT,
        rows=(0,),
    ),
    work=Work(flops, least_bytes),
    calls=Calls("torch_dequantised", describe),
)
