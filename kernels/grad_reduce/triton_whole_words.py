"""Every row in whole 16-byte words, wherever it begins, in 16 KB tiles by shape; the
batch is split where that pays.

`triton_two_stage` reads rows of 100,003 halves 2 bytes at a time, for they begin
anywhere: 32 loads a thread for an 8 KB tile. Here a row is read from the word in which
it begins, up to 7 halves early: 8 loads for 16 KB. Every eighth row is as early as the
first, so the sums of those move into line together, once, by a gather after the last
tile, and blocks of columns overlap by a word. Of up to 16 samples such rows are still
read one element at a time.

A tile is up to 32 rows of the 512 bytes that a warp reads at once, eight of them for
each warp, so up to eight samples are added with no barrier: at 128 registers an SM has
64 KB under way. A small P has narrower and higher ones: 1,536 halves of 64 samples are
24 programs and one launch, in `triton_two_stage` 32 and two. Only programs of over five
tiles are worth a second launch. Bound next by memory, and by the launch where g is
small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from batchline.kernels._triton.column_sums import column_sums, levels_of
from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_reduce import grad_reduce
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable

WORD_BYTES, WARP_BYTES, LEAST_TILE_BYTES, TILE_BYTES = 16, 512, 2 * 1024, 16 * 1024
PER_WARP_BYTES = 4 * 1024  # eight words of a thread
PROGRAMS_PER_SM, LEAST_TILES, LEAST_ROWS = 4, 5, 32


@triton.jit
def early_by(base, stride_gb, WORD: tl.constexpr, PHASES: tl.constexpr):
    """How many elements early each of PHASES rows is read, and every row after them
    that is like it.
    """
    if PHASES == 1:
        return tl.zeros((1,), dtype=tl.int32)
    else:
        return (tl.arange(0, PHASES) * (stride_gb % WORD) + base) % WORD


@triton.jit
def word_offsets(
    early,
    base,
    stride_gb,
    stride_gp,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ALIGN: tl.constexpr,
    PHASES: tl.constexpr,
):
    """Where a tile [ROWS / PHASES, PHASES, COLUMNS] is in g, counted from the word that
    holds g's first element.
    """
    groups = tl.multiple_of(
        tl.arange(0, ROWS // PHASES).to(tl.int64) * PHASES * stride_gb, ALIGN
    )
    phases = tl.multiple_of(
        tl.arange(0, PHASES).to(tl.int64) * stride_gb + (base - early), ALIGN
    )
    columns = tl.arange(0, COLUMNS).to(tl.int64) * stride_gp
    return groups[:, None, None] + phases[None, :, None] + columns[None, None, :]


@triton.jit
def sum_kernel(
    g_ptr,
    out_ptr,
    B,
    P,
    base,
    stride_gb,
    stride_gp,
    rows_per_split,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD: tl.constexpr,
    ALIGN: tl.constexpr,
    PHASES: tl.constexpr,
    LEVELS: tl.constexpr,
    PHASE_LEVELS: tl.constexpr,
):
    WIDTH: tl.constexpr = COLUMNS - WORD if PHASES > 1 else COLUMNS
    blocks = tl.cdiv(P, WIDTH)
    split = (tl.program_id(0) // blocks).to(tl.int64)
    left = (tl.program_id(0) % blocks).to(tl.int64) * WIDTH
    top = split * rows_per_split
    width = tl.minimum(P - left, WIDTH).to(tl.int32)
    columns = tl.arange(0, COLUMNS)
    rows = (
        tl.arange(0, ROWS // PHASES)[:, None] * PHASES + tl.arange(0, PHASES)[None, :]
    )[:, :, None]

    early = early_by(base, stride_gb, WORD, PHASES)
    g_ptr = tl.multiple_of(
        g_ptr - base, ALIGN * g_ptr.dtype.element_ty.primitive_bitwidth // 8
    )
    g_ptrs = (
        g_ptr
        + (tl.multiple_of(top * stride_gb, ALIGN) + left * stride_gp)
        + word_offsets(early, base, stride_gb, stride_gp, ROWS, COLUMNS, ALIGN, PHASES)
    )
    # The word that holds a row's end is read whole, for no allocation ends within a
    # word; the rest is not stored.
    room = tl.multiple_of((width + early + ALIGN - 1) // ALIGN * ALIGN, ALIGN)
    in_words = columns[None, None, :] < room[None, :, None]
    step = tl.multiple_of(tl.full((), ROWS, tl.int64) * stride_gb, ALIGN)
    accumulator = tl.zeros((ROWS // PHASES, PHASES, COLUMNS), dtype=tl.float32)
    end = tl.minimum(B - top, rows_per_split).to(tl.int32)
    for row in range(0, end, ROWS):
        accumulator += tl.load(
            g_ptrs, mask=(rows < end - row) & in_words, other=0.0
        ).to(tl.float32)
        g_ptrs += step

    total = column_sums(
        tl.reshape(accumulator, (ROWS // PHASES, PHASES * COLUMNS)), LEVELS
    )
    if PHASES > 1:
        total = tl.gather(
            tl.reshape(total, (PHASES, COLUMNS)),
            tl.minimum(columns[None, :] + early[:, None], COLUMNS - 1),
            axis=1,
        )
        total = column_sums(total, PHASE_LEVELS)
    total *= scale
    tl.store(
        out_ptr + (split * P + left) + columns,
        total.to(out_ptr.dtype.element_ty),
        mask=columns < width,
    )


def words(
    g: torch.Tensor, rows: int, columns: int
) -> tuple[tuple[int, int, int], dict[str, int]]:
    """How tiles of so many rows and columns read g: (base, stride_gb, stride_gp) and
    {WORD, ALIGN, PHASES}.

    ALIGN elements at once. With PHASES over 1 a row may begin within its word, and
    every PHASES-th does so alike; `base` is then where g itself begins in its word,
    else 0. The gather takes a warp's width at most, for a wider one compiles to
    thousands of shuffles, and under LEAST_ROWS it costs more than the loads that it
    saves.
    """
    word, base = (
        WORD_BYTES // g.element_size(),
        g.data_ptr() % WORD_BYTES // g.element_size(),
    )
    stride_gb, stride_gp = g.stride(0) if len(g) > 1 else 0, g.stride(1)
    align = math.gcd(word, base, stride_gb) if stride_gp == 1 else 1
    if (
        stride_gp == 1
        and align < word
        and rows >= LEAST_ROWS
        and 1 < columns // word <= WARP_BYTES // WORD_BYTES
    ):
        return (base, stride_gb, 1), {"WORD": word, "ALIGN": word, "PHASES": word}
    return (0, stride_gb, stride_gp), {"WORD": word, "ALIGN": align, "PHASES": 1}


def _rule(g, target):
    """What a warp reads of a row at once, or all of a small batch; narrower where P
    gives too few programs.
    """
    batch, size = triton.next_power_of_2(max(1, g.shape[0])), g.element_size()
    row_bytes = max(WARP_BYTES, TILE_BYTES // batch)
    while (
        row_bytes > max(WARP_BYTES // 4, LEAST_TILE_BYTES // batch)
        and g.shape[1] * size < PROGRAMS_PER_SM * multiprocessors(g.device) * row_bytes
    ):
        row_bytes //= 2
    rows = min(batch, TILE_BYTES // row_bytes)
    return {
        "ROWS": rows,
        "COLUMNS": row_bytes // size,
        "num_warps": max(1, rows * row_bytes // PER_WARP_BYTES),
    }


def _candidates(g, target):
    """Tiles of the rule's size, from half as wide to four times, on four or eight
    warps.
    """
    rule = _rule(g, target)
    shapes = [(rule["ROWS"], rule["COLUMNS"]), (2 * rule["ROWS"], rule["COLUMNS"] // 2)]
    shapes += [
        (rule["ROWS"] // factor, rule["COLUMNS"] * factor)
        for factor in (2, 4)
        if rule["ROWS"] >= factor
    ]
    return [
        {"ROWS": rows, "COLUMNS": columns, "num_warps": num_warps}
        for rows, columns in shapes
        for num_warps in (4, 8)
    ]


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@dataclass(frozen=True)
class Launch:
    """How `sum_kernel` reads a g: its blocks of columns, B, P, where g begins in its
    word and the strides, and the constants.
    """

    blocks: int
    numbers: tuple[int, ...]
    constants: dict[str, int]


def plan_launch(g: torch.Tensor, tile: dict[str, int]) -> Launch:
    """The launch on g[B,P] in tiles of that shape."""
    rows, columns = tile["ROWS"], tile["COLUMNS"]
    places, hints = words(g, rows, columns)
    levels = levels_of(rows, columns, tile["num_warps"], g.element_size())
    phase_levels = min(levels, hints["PHASES"].bit_length() - 1)
    width = columns - (hints["WORD"] if hints["PHASES"] > 1 else 0)
    return Launch(
        triton.cdiv(g.shape[1], width),
        (*g.shape, *places),
        {
            **hints,
            "LEVELS": levels - phase_levels,
            "PHASE_LEVELS": phase_levels,
            **tile,
        },
    )


def split_batch(
    g: torch.Tensor, tile: dict[str, int], least_tiles: int = LEAST_TILES
) -> tuple[int, int]:
    """How many programs share a block of columns, and the rows that each adds: at least
    so many tiles of them, and no more programs than the GPU has room for.
    """
    batch, parameters = g.shape
    blocks = triton.cdiv(parameters, tile["COLUMNS"])
    splits = min(
        triton.cdiv(PROGRAMS_PER_SM * multiprocessors(g.device), blocks),
        triton.cdiv(batch, least_tiles * tile["ROWS"]),
    )
    rows = triton.cdiv(triton.cdiv(batch, splits), tile["ROWS"]) * tile["ROWS"]
    return triton.cdiv(batch, rows), rows


def sum_rows(
    g: torch.Tensor, out: torch.Tensor, scale: float, tile: dict | None = None
) -> None:
    """Write scale·Σ_b g[b] to out[P], in fp32 until it is stored; g[B,P] has elements."""
    tile = tile or CONFIGS.rule(g)
    splits, rows = split_batch(g, tile)
    if splits == 1:
        return _launch(g, out[None], rows, scale, tile)
    partial = torch.empty((splits, g.shape[1]), dtype=torch.float32, device=g.device)
    _launch(g, partial, rows, 1.0, tile)
    return _launch(partial, out[None], splits, scale, CONFIGS.rule(partial))


def _launch(g, out, rows, scale, tile):
    launch = plan_launch(g, tile)
    grid = (len(out) * launch.blocks,)
    sum_kernel[grid](g, out, *launch.numbers, rows, scale, **launch.constants)


@grad_reduce.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    builds_on="triton_two_stage",
    tunable=CONFIGS,
)
def triton_whole_words(g):
    batch, parameters = g.shape
    mean = torch.empty(parameters, dtype=g.dtype, device=g.device)
    if batch == 0:
        return mean.fill_(float("nan"))
    if parameters:
        sum_rows(g, mean, 1 / batch, CONFIGS.choose(g))
    return mean
