"""One read of g: a program holds every row of a block of columns on chip, so it knows ḡ
there when it needs it.

`triton_two_pass` reads g again because d needs all of ḡ. Here 64 rows of 256 bytes pass
through shared memory into registers once, while cp.async brings the next two blocks:
their sums over the batch are ḡ, and n and d follow from the same registers, in halves
at 7 instructions an element. Four programs of 128 threads and 128 registers fill an SM,
with 128 KB under way. A larger batch has narrower blocks: a 128-byte line up to 512
rows (257 take room for 512), 64 bytes at 1,024, 16 at 4,096, where every 32-byte sector
goes from L2 to two SMs. To walk the rows twice instead would let half of an H200's 50
MB of L2 hold blocks three times as wide, 185 and 46 bytes, and read them from L2 twice.
In a small P blocks narrow to a sector: 1,536 halves of 256 samples are 96 of them, and
36 of 132 SMs have none.

A program takes every 528th block (four an SM), so that neighbouring columns are read at
the same time, and adds within words before it adds to sums that cross threads once, at
the end. It writes its part of n and d, at most 4.2 KB a sample in all, for a second
launch to add in a fixed order. Rows that begin within words are read as
`triton_whole_words` reads them, at two gathers a block: 15 instructions an element in
halves, on twice the warps. At 4,096 of those there is no room for it, and elements are
read one by one. Bound next by memory, and where P is small by latency.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_reduce.triton_whole_words import (
    WARP_BYTES,
    WORD_BYTES,
    early_by,
    word_offsets,
    words,
)
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.grad_stats._triton_sums import finish, within_words
from batchline.kernels.statistics import without_elements
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct

# Of the largest tiles, two under way and a gather take 144 KB: sm_80 has 163, and where
# a block has less, fewer are.
TILE_BYTES, LEAST_TILE_BYTES, LARGEST_TILE_BYTES = 16 * 1024, 2 * 1024, 64 * 1024
LINE_BYTES, SECTOR_BYTES, GATHER_BYTES = 128, 32, 16 * 1024
MOST_ROWS = LARGEST_TILE_BYTES // WORD_BYTES
WARPS_PER_SM, REGISTERS = (
    16,
    128,
)  # of a thread: so many warps are resident, and no program waits for another's end


@triton.jit
def stats_kernel(
    g_ptr,
    mean_ptr,
    partial_ptr,
    B,
    P,
    base,
    stride_gb,
    stride_gp,
    scale,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    WORD: tl.constexpr,
    ALIGN: tl.constexpr,
    PHASES: tl.constexpr,
    RAGGED: tl.constexpr,
    STAGES: tl.constexpr,
):
    WIDTH: tl.constexpr = COLUMNS - WORD if PHASES > 1 else COLUMNS
    WORDS: tl.constexpr = COLUMNS // WORD
    GROUPS: tl.constexpr = ROWS // PHASES
    rows = tl.arange(0, GROUPS)[:, None] * PHASES + tl.arange(0, PHASES)[None, :]
    columns = tl.arange(0, COLUMNS)
    in_batch = (rows < B)[:, :, None]
    early = early_by(base, stride_gb, WORD, PHASES)
    later = tl.minimum(columns[None, :] + early[:, None], COLUMNS - 1)
    sooner = tl.maximum(columns[None, :] - early[:, None], 0)
    g_ptr = tl.multiple_of(
        g_ptr - base, ALIGN * g_ptr.dtype.element_ty.primitive_bitwidth // 8
    )
    offs = word_offsets(early, base, stride_gb, stride_gp, ROWS, COLUMNS, ALIGN, PHASES)
    n = tl.zeros((GROUPS, PHASES, WORDS), dtype=tl.float32)
    d = tl.zeros((GROUPS, PHASES, WORDS), dtype=tl.float32)
    for block in tl.range(
        tl.program_id(0), tl.cdiv(P, WIDTH), tl.num_programs(0), num_stages=STAGES
    ):
        left = tl.cast(block, tl.int64) * WIDTH
        width = tl.minimum(P - left, WIDTH).to(tl.int32)
        ends = early + width
        room = tl.multiple_of((ends + ALIGN - 1) // ALIGN * ALIGN, ALIGN)
        g = tl.load(
            g_ptr + left * stride_gp + offs,
            mask=in_batch & (columns[None, None, :] < room[None, :, None]),
            other=0.0,
        ).to(tl.float32)
        if (
            RAGGED
        ):  # a row's first and last word may hold what is another block's, another row's, or nobody's
            own = (columns[None, :] >= early[:, None]) & (
                columns[None, :] < ends[:, None]
            )
            g = tl.where(own[None], g, 0.0)
        sums = tl.sum(g, axis=0)
        if PHASES > 1:
            sums = tl.gather(sums, later, axis=1)
        mean = tl.sum(sums, axis=0) * scale
        tl.store(mean_ptr + left + columns, mean, mask=columns < width)
        means = tl.broadcast_to(mean[None, :], (PHASES, COLUMNS))
        if PHASES > 1:
            means = tl.gather(means, sooner, axis=1)
        n += within_words(g * g, GROUPS, PHASES, WORDS, WORD)
        d += within_words(g * means[None], GROUPS, PHASES, WORDS, WORD)
    partial_ptrs = partial_ptr + tl.program_id(0).to(tl.int64) * (2 * B) + rows
    tl.store(partial_ptrs, tl.sum(n, axis=2), mask=rows < B)
    tl.store(partial_ptrs + B, tl.sum(d, axis=2), mask=rows < B)


def _rule(g, target):
    """A 16 KB tile, or rows of a whole line if 64 KB hold them; narrower where P gives
    some SMs no block.
    """
    rows, size = triton.next_power_of_2(max(1, len(g))), g.element_size()
    row_bytes = max(
        WORD_BYTES, min(LARGEST_TILE_BYTES // rows, max(LINE_BYTES, TILE_BYTES // rows))
    )
    while (
        row_bytes > least_row_bytes(rows)
        and g.shape[1] * size < multiprocessors(g.device) * row_bytes
    ):
        row_bytes //= 2
    return tile_of(g, rows, row_bytes, target)


def _most_stages(tile_bytes, target):
    """Three, of which two are under way, or fewer where shared memory holds fewer
    beside a gather's 16 KB.
    """
    return max(
        1, min(3, 1 + (target.shared_bytes_per_block - GATHER_BYTES) // tile_bytes)
    )


def least_row_bytes(rows):
    """A sector, and so many that each of 128 threads has a whole word: what is read past
    a row's end lies within its last word.
    """
    return max(SECTOR_BYTES, LEAST_TILE_BYTES // rows)


def tile_of(g, rows, row_bytes, target):
    """Tiles of so many rows and bytes of each, in the deepest pipeline that fits."""
    return _config(g, rows, row_bytes, _most_stages(rows * row_bytes, target))


def _config(g, rows, row_bytes, stages):
    """Eight words per thread, or four of halves where rows begin within words: eight
    would take 213 registers.
    """
    size = g.element_size()
    _, hints = words(g, rows, row_bytes // size)
    within = hints["PHASES"] > 1 or hints["ALIGN"] < hints["WORD"]
    words_a_thread = 4 if within and size == 2 else 8
    num_warps = max(
        4, min(WARPS_PER_SM, rows * row_bytes // (32 * WORD_BYTES * words_a_thread))
    )
    return {
        "ROWS": rows,
        "COLUMNS": row_bytes // size,
        "STAGES": stages,
        "num_warps": num_warps,
    }


def _candidates(g, target):
    rule = _rule(g, target)
    rows, row_bytes = rule["ROWS"], rule["COLUMNS"] * g.element_size()
    widths = [
        width
        for width in (row_bytes, row_bytes // 2, 2 * row_bytes)
        if min(row_bytes, least_row_bytes(rows)) <= width
        and width * rows <= LARGEST_TILE_BYTES
    ]
    configs = [
        _config(g, rows, width, stages)
        for width in widths
        for stages in (3, 2)
        if stages <= _most_stages(rows * width, target)
    ]
    configs += [
        config | {"num_warps": 2 * config["num_warps"]}
        for config in configs
        if config["num_warps"] < 16
        and config["COLUMNS"] * g.element_size() * rows
        >= 2 * config["num_warps"] * WARP_BYTES
    ]
    return distinct(configs)


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


@dataclass(frozen=True)
class Launch:
    """How a kernel reads g: its programs, the numbers that it takes, and what it is
    compiled for.
    """

    programs: int
    numbers: tuple[int | float, ...]
    constants: dict[str, int | bool]


def plan_launch(g: torch.Tensor, configs: Tunable) -> Launch:
    """How `stats_kernel` reads g[B,P], which has elements, in the chosen tiles."""
    batch, parameters = g.shape
    config = configs.choose(g)
    if config["ROWS"] < batch:  # it was tuned on a smaller batch
        config = configs.rule(g)
    places, hints = words(g, config["ROWS"], config["COLUMNS"])
    width = config["COLUMNS"] - (hints["WORD"] if hints["PHASES"] > 1 else 0)
    programs = min(
        triton.cdiv(parameters, width),
        WARPS_PER_SM // config["num_warps"] * multiprocessors(g.device),
    )
    constants = {
        **hints,
        **config,
        "RAGGED": hints["PHASES"] > 1 or parameters % hints["ALIGN"] > 0,
        "maxnreg": REGISTERS,
        # Two lanes that hold the same sum would round it differently: a multiply-add of
        # the one's own square and the other's. Which of them is stored is chance.
        "enable_fp_fusion": False,
    }
    return Launch(programs, (batch, parameters, *places, 1 / batch), constants)


def _why_not(g):
    return (
        f"over {MOST_ROWS:,} samples: no 16 bytes of each are held at once"
        if len(g) > MOST_ROWS
        else None
    )


@grad_stats.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    supports=_why_not,
    builds_on="triton_two_pass",
    tunable=CONFIGS,
)
def triton_one_read(g):
    if g.numel() == 0:
        return without_elements(g)
    batch, parameters = g.shape
    launch = plan_launch(g, CONFIGS)
    mean = torch.empty(parameters, dtype=torch.float32, device=g.device)
    partial = torch.empty(
        (launch.programs, 2 * batch), dtype=torch.float32, device=g.device
    )
    stats_kernel[(launch.programs,)](
        g, mean, partial, *launch.numbers, **launch.constants
    )
    return mean, *finish(partial)
