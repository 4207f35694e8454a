"""One launch: the programs that come last add up what all of them have of n and d.

`triton_one_read` writes 528 parts of n and d, which a second launch adds on four
programs while 128 of 132 SMs are idle. Here √528 programs are a group. A program counts
itself once its part is written. The last of a group adds the group's 23 parts, and the
last of those last ones the 23 groups' sums. Which program that is is chance; what it
adds, and in which order, is not: the same bits on every call.

Blocks narrow as long as that takes an eighth off what the busiest SM reads: 2.3 MB in
blocks of 16 KB are 141 of them, and nine of 132 SMs read two. Over 1,024 samples the
last program of a group would read 200 KB, while a second launch has many programs for
that. Bound next by memory, and where P is small by round trips to L2.
"""

from __future__ import annotations

import math

import torch

from batchline.kernels._triton.column_sums import column_sums, levels_of
from batchline.kernels._triton.last_program import comes_last, counters
from batchline.kernels._triton.warps import ASSEMBLED
from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_stats import grad_stats
from batchline.kernels.grad_stats.triton_one_read import (
    CONFIGS as ONE_READ,
)
from batchline.kernels.grad_stats.triton_one_read import (
    least_row_bytes,
    plan_launch,
    stats_kernel,
    tile_of,
)
from batchline.kernels.statistics import without_elements
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable, distinct

MOST_SAMPLES, SUM_COLUMNS = 1024, 128
WORTH_NARROWING = 7 / 8  # of what the busiest SM reads


@triton.jit
def _add_rows(
    from_ptr,
    to_ptr,
    count,
    size,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
):
    """Write the sum of `count` rows of `size` numbers, ROWS at most."""
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    for left in range(0, size, COLUMNS):
        inside = left + columns < size
        values = tl.load(
            from_ptr + (rows * size)[:, None] + (left + columns)[None, :],
            mask=(rows < count)[:, None] & inside[None, :],
            other=0.0,
        )
        tl.store(to_ptr + left + columns, column_sums(values, LEVELS), mask=inside)


@triton.jit
def _one_launch_kernel(
    g_ptr,
    mean_ptr,
    partial_ptr,
    of_groups_ptr,
    sums_ptr,
    counts_ptr,
    group,
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
    MEMBERS: tl.constexpr,
    SUM_COLUMNS: tl.constexpr,
    LEVELS: tl.constexpr,
    ASSEMBLED: tl.constexpr,
):
    stats_kernel(
        g_ptr,
        mean_ptr,
        partial_ptr,
        B,
        P,
        base,
        stride_gb,
        stride_gp,
        scale,
        ROWS,
        COLUMNS,
        WORD,
        ALIGN,
        PHASES,
        RAGGED,
        STAGES,
    )
    own, size = tl.program_id(0) // group, 2 * B
    first = own * group
    members = tl.minimum(tl.num_programs(0) - first, group)
    if comes_last(counts_ptr + 1 + own, members, ASSEMBLED):
        of_own_ptr = of_groups_ptr + own * size
        _add_rows(
            partial_ptr + first * size,
            of_own_ptr,
            members,
            size,
            MEMBERS,
            SUM_COLUMNS,
            LEVELS,
        )
        groups = tl.cdiv(tl.num_programs(0), group)
        if comes_last(counts_ptr, groups, ASSEMBLED):
            _add_rows(
                of_groups_ptr, sums_ptr, groups, size, MEMBERS, SUM_COLUMNS, LEVELS
            )


def _rule(g, target):
    """The tile of `triton_one_read`, narrower where the busiest SM then reads an eighth
    less.
    """
    config = ONE_READ.rule(g, target=target)
    rows, row_bytes = config["ROWS"], config["COLUMNS"] * g.element_size()
    while row_bytes // 2 >= least_row_bytes(rows) and (
        _most_of_an_sm(g, row_bytes // 2)
        <= WORTH_NARROWING * _most_of_an_sm(g, row_bytes)
    ):
        row_bytes //= 2
    return tile_of(g, rows, row_bytes, target)


def _most_of_an_sm(g, row_bytes):
    """Bytes of each row that the busiest SM reads."""
    blocks = triton.cdiv(g.shape[1] * g.element_size(), row_bytes)
    return triton.cdiv(blocks, multiprocessors(g.device)) * row_bytes


def _candidates(g, target):
    return distinct([_rule(g, target), *ONE_READ.candidates(g, target=target)])


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def _why_not(g):
    return (
        f"over {MOST_SAMPLES:,} samples: a second launch adds their sums on more SMs"
        if len(g) > MOST_SAMPLES
        else None
    )


@grad_stats.variant(
    backend="triton",
    dtypes=("float16", "bfloat16", "float32"),
    needs="cuda",
    supports=_why_not,
    builds_on="triton_one_read",
    tunable=CONFIGS,
)
def triton_one_launch(g):
    if g.numel() == 0:
        return without_elements(g)
    batch, parameters = g.shape
    launch = plan_launch(g, CONFIGS)
    group = math.isqrt(launch.programs - 1) + 1
    groups = triton.cdiv(launch.programs, group)
    mean = torch.empty(parameters, dtype=torch.float32, device=g.device)
    sums = torch.empty(
        (launch.programs + groups + 1, 2 * batch),
        dtype=torch.float32,
        device=g.device,
    )
    members = triton.next_power_of_2(group)
    partial, of_groups, total = sums.split([launch.programs, groups, 1])
    _one_launch_kernel[(launch.programs,)](
        g,
        mean,
        partial,
        of_groups,
        total,
        counters(g.device, groups + 1),
        group,
        *launch.numbers,
        **launch.constants,
        MEMBERS=members,
        SUM_COLUMNS=SUM_COLUMNS,
        ASSEMBLED=ASSEMBLED,
        LEVELS=levels_of(
            members, SUM_COLUMNS, launch.constants["num_warps"], sums.element_size()
        ),
    )
    return mean, total[0, :batch], total[0, batch:]
