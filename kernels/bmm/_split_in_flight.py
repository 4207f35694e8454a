"""Products of bf16 parts that stay in flight: the operands of a step are split while
the products of the step before it run.

A program loads by TMA, a few steps ahead. The parts of A stay in registers. Those of B
go to one of two places in shared memory, from which wgmma reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from batchline.kernels._triton.product import long_side_first
from batchline.kernels.backends import (
    gl,
    gluon,
    hopper,
    mbarrier,
    tma,
)
from batchline.kernels.bmm._descriptors import (
    Operands,
    place,
    tiles,
    why_not_read,
)
from batchline.kernels.bmm._gluon import described_operand, place_of, why_no_wgmma
from batchline.kernels.bmm._split_bf16 import parts
from batchline.kernels.target import multiprocessors
from batchline.kernels.tuning import Tunable

_BLOCK_K = 32
# BLOCK_M, BLOCK_N, num_warps, num_stages, the largest first. A thread holds two sets of
# sums of 64 elements each at most, and the parts of two steps of A.
_TILES = (
    (128, 128, 8, 3),
    (64, 128, 4, 2),
    (64, 64, 4, 3),
    (64, 32, 4, 4),
    (64, 16, 4, 4),
)


@gluon.jit
def _fill(
    descriptors,
    stages,
    stage,
    at,
    step,
    steps,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
):
    """Begin to load the operands of a step into a stage, where there is such a step."""
    a_desc, b_desc = descriptors
    a_stages, b_stages, a_filled, b_filled = stages
    a_entry, first_m, b_entry, first_n = at
    BLOCK_K: gl.constexpr = a_desc.block_shape[1 if A_TRANSPOSED else 2]
    k = step * BLOCK_K
    a_place = place_of(a_entry, first_m, k, A_TRANSPOSED)
    b_place = place_of(b_entry, k, first_n, B_TRANSPOSED)
    is_one = step < steps
    a_barrier = a_filled.index(stage)
    b_barrier = b_filled.index(stage)
    mbarrier.expect(a_barrier, a_desc.block_type.nbytes, pred=is_one)
    mbarrier.expect(b_barrier, b_desc.block_type.nbytes, pred=is_one)
    tma.async_copy_global_to_shared(
        a_desc, a_place, a_barrier, a_stages.index(stage), pred=is_one
    )
    tma.async_copy_global_to_shared(
        b_desc, b_place, b_barrier, b_stages.index(stage), pred=is_one
    )


@gluon.jit
def _split_a(
    stages,
    stage,
    phase,
    A_TRANSPOSED: gl.constexpr,
    PRODUCTS: gl.constexpr,
    OF_A: gl.constexpr,
):
    """The parts of A in a stage, in registers: two for three products, three for six."""
    a_stages, b_stages, a_filled, b_filled = stages
    ROWS: gl.constexpr = a_stages.shape[2]
    COLUMNS: gl.constexpr = a_stages.shape[3]
    mbarrier.wait(a_filled.index(stage), phase)
    a = a_stages.index(stage).reshape([ROWS, COLUMNS])
    if A_TRANSPOSED:
        a = a.permute((1, 0))
    high, middle, low = parts(a.load(OF_A), PRODUCTS, gl.bfloat16)
    if PRODUCTS == 6:
        return high, middle, low
    else:
        return high, middle


@gluon.jit
def _split_b(
    stages,
    stage,
    phase,
    b_places,
    step,
    PRODUCTS: gl.constexpr,
    OF_B: gl.constexpr,
):
    """Write the parts of B in a stage to the places of a step."""
    a_stages, b_stages, a_filled, b_filled = stages
    ROWS: gl.constexpr = b_stages.shape[2]
    COLUMNS: gl.constexpr = b_stages.shape[3]
    mbarrier.wait(b_filled.index(stage), phase)
    b = b_stages.index(stage).reshape([ROWS, COLUMNS]).load(OF_B)
    high, middle, low = parts(b, PRODUCTS, gl.bfloat16)
    b_places[0].index(step % 2).store(high)
    b_places[1].index(step % 2).store(middle)
    if PRODUCTS == 6:
        b_places[2].index(step % 2).store(low)


@gluon.jit
def _at(places, step, TRANSPOSED: gl.constexpr):
    """A part of B [K, N] of a step, from the two places that its steps take in turn."""
    if TRANSPOSED:
        part = places.index(step % 2).permute((1, 0))
    else:
        part = places.index(step % 2)
    return part


@gluon.jit
def _multiply(
    a_parts,
    b_places,
    step,
    zeros,
    B_TRANSPOSED: gl.constexpr,
    PRODUCTS: gl.constexpr,
):
    """A @ B of a step from three products of parts, or six, the largest last. They are
    in flight when this returns, and no other thread may still be writing parts of B
    when it is called.
    """
    a_high = a_parts[0]
    a_middle = a_parts[1]
    b_high = _at(b_places[0], step, B_TRANSPOSED)
    b_middle = _at(b_places[1], step, B_TRANSPOSED)
    if PRODUCTS == 6:
        b_low = _at(b_places[2], step, B_TRANSPOSED)
        sums = hopper.warpgroup_mma(
            a_parts[2], b_high, zeros, use_acc=False, is_async=True
        )
        sums = hopper.warpgroup_mma(a_high, b_low, sums, is_async=True)
        sums = hopper.warpgroup_mma(a_middle, b_middle, sums, is_async=True)
        sums = hopper.warpgroup_mma(a_middle, b_high, sums, is_async=True)
    else:
        sums = hopper.warpgroup_mma(
            a_middle, b_high, zeros, use_acc=False, is_async=True
        )
    sums = hopper.warpgroup_mma(a_high, b_middle, sums, is_async=True)
    return hopper.warpgroup_mma(a_high, b_high, sums, is_async=True)


@gluon.jit
def _kernel(
    a_desc,
    b_desc,
    c_ptr,
    M,
    N,
    K,
    a_step,
    b_step,
    stride_cb,
    stride_cm,
    stride_cn,
    A_TRANSPOSED: gl.constexpr,
    B_TRANSPOSED: gl.constexpr,
    BLOCK_M: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    GROUP_M: gl.constexpr,
    STAGES: gl.constexpr,
    PRODUCTS: gl.constexpr,
    ALIGN_C: gl.constexpr,
):
    WARPS: gl.constexpr = gl.num_warps()
    SUMS: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[WARPS, 1], instr_shape=[16, BLOCK_N, 16]
    )
    OF_A: gl.constexpr = gl.DotOperandLayout(0, SUMS, 2)
    B_BLOCK: gl.constexpr = b_desc.block_shape[1:]
    LANES: gl.constexpr = min(32, B_BLOCK[1] // 4)  # along 16 bytes each of a row
    OF_B: gl.constexpr = gl.BlockedLayout(
        [1, 4], [32 // LANES, LANES], [WARPS, 1], [1, 0]
    )
    B_PLACE: gl.constexpr = gl.NVMMASharedLayout.get_default_for(B_BLOCK, gl.bfloat16)
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    a_stages = gl.allocate_shared_memory(
        gl.float32, [STAGES] + a_desc.block_shape, a_desc.layout
    )
    b_stages = gl.allocate_shared_memory(
        gl.float32, [STAGES] + b_desc.block_shape, b_desc.layout
    )
    b_high = gl.allocate_shared_memory(gl.bfloat16, [2] + B_BLOCK, B_PLACE)
    b_middle = gl.allocate_shared_memory(gl.bfloat16, [2] + B_BLOCK, B_PLACE)
    if PRODUCTS == 6:
        b_low = gl.allocate_shared_memory(gl.bfloat16, [2] + B_BLOCK, B_PLACE)
        b_places = b_high, b_middle, b_low
    else:
        b_places = b_high, b_middle
    # A and B of a stage have a barrier each: what is computed between two waits is not
    # moved past the second one, so A is split before B and not after the products.
    a_filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    b_filled = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BARRIER)
    for stage in gl.static_range(STAGES):
        mbarrier.init(a_filled.index(stage), count=1)
        mbarrier.init(b_filled.index(stage), count=1)
    hopper.fence_async_shared()

    descriptors = a_desc, b_desc
    stages = a_stages, b_stages, a_filled, b_filled
    entry, tile_m, tile_n = place(
        gl.program_id(0), gl.cdiv(M, BLOCK_M), gl.cdiv(N, BLOCK_N), GROUP_M
    )
    first_m = tile_m * BLOCK_M
    first_n = tile_n * BLOCK_N
    at = entry * a_step, first_m, entry * b_step, first_n
    steps = gl.cdiv(K, BLOCK_K)
    for step in gl.static_range(STAGES):
        _fill(descriptors, stages, step, at, step, steps, A_TRANSPOSED, B_TRANSPOSED)

    zeros = gl.zeros([BLOCK_M, BLOCK_N], gl.float32, SUMS)
    accumulator = zeros
    stage = 0
    phase = 0
    a_parts = _split_a(stages, stage, phase, A_TRANSPOSED, PRODUCTS, OF_A)
    _split_b(stages, stage, phase, b_places, 0, PRODUCTS, OF_B)
    for step in range(steps - 1):
        hopper.fence_async_shared()
        gl.barrier()  # all parts of B are written, and all of this stage has been read
        sums = _multiply(a_parts, b_places, step, zeros, B_TRANSPOSED, PRODUCTS)
        _fill(
            descriptors,
            stages,
            stage,
            at,
            step + STAGES,
            steps,
            A_TRANSPOSED,
            B_TRANSPOSED,
        )
        is_last = stage == STAGES - 1
        stage = 0 if is_last else stage + 1
        phase = phase ^ 1 if is_last else phase
        a_parts = _split_a(stages, stage, phase, A_TRANSPOSED, PRODUCTS, OF_A)
        _split_b(stages, stage, phase, b_places, step + 1, PRODUCTS, OF_B)
        held = hopper.warpgroup_mma_wait(0, deps=(sums,) + a_parts)
        a_parts = held[1:]
        # Tensor cores cut off what they add: in one accumulator that is a bias, which
        # grows with K.
        accumulator += held[0]
    hopper.fence_async_shared()
    gl.barrier()
    sums = _multiply(a_parts, b_places, steps - 1, zeros, B_TRANSPOSED, PRODUCTS)
    accumulator += hopper.warpgroup_mma_wait(0, deps=(sums,))

    rows = gl.arange(0, BLOCK_M, gl.SliceLayout(1, SUMS))
    columns = gl.arange(0, BLOCK_N, gl.SliceLayout(0, SUMS))
    in_m = rows < M - first_m
    in_n = columns < gl.multiple_of(N - first_n, ALIGN_C)
    c_rows = gl.multiple_of((first_m + rows).to(gl.int64) * stride_cm, ALIGN_C)
    c_columns = (first_n + columns).to(gl.int64) * stride_cn
    c_ptr += gl.multiple_of(entry.to(gl.int64) * stride_cb, ALIGN_C)
    gl.store(
        c_ptr + c_rows[:, None] + c_columns[None, :],
        accumulator,
        mask=in_m[:, None] & in_n[None, :],
    )


def why_not(a: torch.Tensor, b: torch.Tensor) -> str | None:
    """Why a product in flight can't multiply these, or None."""
    return why_no_wgmma(a.device) or why_not_read(a, b)


def product_in_flight(
    a: torch.Tensor, b: torch.Tensor, products: int, config: Mapping
) -> torch.Tensor:
    """C[B,M,N] of fp32 operands that TMA can read, from `products` (3 or 6) products of
    their bf16 parts.
    """
    operands = Operands(a, b)
    c = operands.new_product()
    if operands.is_empty:
        return c.zero_()
    _launch(*long_side_first(a, b, c), products, config)
    return c


def _launch(a, b, c, products, config):
    operands = Operands(a, b)
    block_m, block_n, block_k = config["BLOCK_M"], config["BLOCK_N"], config["BLOCK_K"]
    a_stored, b_stored = operands.a_stored, operands.b_stored
    _, m, n, k = operands.sizes
    _kernel[(operands.tiles(config),)](
        described_operand(a, a_stored, block_m, block_k),
        described_operand(b, b_stored, block_k, block_n),
        c,
        m,
        n,
        k,
        a_stored.step,
        b_stored.step,
        *c.stride(),
        **operands.constants,
        STAGES=config["num_stages"],
        PRODUCTS=products,
        ALIGN_C=math.gcd(4, n, c.stride(0), c.stride(1)),
        **config,
    )


def _rule(a, b, target):
    """The largest that gives every multiprocessor a program."""
    wide, tall, _ = long_side_first(a, b)
    configs = _fitting(a, b, target)
    full = (
        config
        for config in configs
        if tiles(wide, tall, config["BLOCK_M"], config["BLOCK_N"])
        >= multiprocessors(a.device)
    )
    return next(full, configs[-1])


def _fitting(a, b, target):
    """Tiles that C fills to more than a half, the largest first, and the smallest."""
    wide, tall, _ = long_side_first(a, b)
    m, n = wide.shape[1], tall.shape[2]
    return [
        {
            "BLOCK_M": block_m,
            "BLOCK_N": block_n,
            "BLOCK_K": _BLOCK_K,
            "num_warps": num_warps,
            "num_stages": num_stages,
        }
        for block_m, block_n, num_warps, num_stages in _TILES
        if block_m < max(65, 2 * m) and block_n < max(17, 2 * n)
    ]


def in_flight_tunable() -> Tunable:
    """The configurations of a product in flight, of three products or six."""
    return Tunable(rule=_rule, candidates=_fitting)
