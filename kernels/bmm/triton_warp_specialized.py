"""Warps with one job each: one group issues the TMA loads, two groups multiply, and
only barriers join them.

In `triton_persistent_tma` the warps that multiply also issue the loads, and all of them
stop to write C. Here the compiler makes partitions of the warps
(`warp_specialize=True`), on sm_90 three of four warps: the loading ones give up their
registers (setmaxnreg 40) so that the multiplying ones can have 232 each, 128 of them
for a 64x256 half of the sums. The halves advance apart, so while one waits for its
wgmma, which it does after every step of K, or stores its rows, the other one can
multiply; and the loads of the next tile are already under way.

One program fills a multiprocessor: 384 threads of 168 registers, three stages of a
128x256x64 tile and C, 208 KiB. Nothing hides an epilogue that both halves reach
together, and a tile of fewer than 128 rows leaves a half idle. The partitions exist on
sm_90 and sm_100 (with Triton 3.6: sm_90 alone); elsewhere the kernel is declined.
"""

import torch

from batchline.kernels.architectures import MMA_SYNC
from batchline.kernels.backends import tl, triton
from batchline.kernels.bmm import bmm
from batchline.kernels.bmm._descriptors import (
    ROW_BYTES,
    Operands,
    place,
    stored,
    tiles,
)
from batchline.kernels.bmm._descriptors import (
    why_not as why_not_tma,
)
from batchline.kernels.target import multiprocessors, target_of
from batchline.kernels.tuning import Tunable, distinct

BLOCK_M = 128  # 64 rows for each of the two groups that multiply; no other height is partitioned


def provide_workspace() -> None:
    """Let launches allocate global memory, in a thread that has no allocator for it
    yet.
    """
    from triton.runtime import _allocation

    if isinstance(_allocation._allocator.get(), _allocation.NullAllocator):
        triton.set_allocator(_workspace)


def _workspace(size: int, alignment: int, stream: int | None) -> torch.Tensor:
    return torch.empty(
        size, dtype=torch.int8, device="cuda"
    )  # the current device is the launch's


@triton.jit
def _kernel(
    a_ptr,
    b_ptr,
    c_ptr,
    B,
    M,
    N,
    K,
    a_rows,
    a_step,
    stride_a,
    b_entries,
    b_step,
    stride_bb,
    stride_br,
    A_TRANSPOSED: tl.constexpr,
    B_TRANSPOSED: tl.constexpr,
    C_BY_TMA: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    # Each group that multiplies takes half of A's and C's rows. The compiler can't
    # halve a tile that has the batch as a dimension of its own, so in these two an
    # entry starts some rows below the one before.
    if A_TRANSPOSED:
        a_desc = tl.make_tensor_descriptor(
            a_ptr, [a_rows, M], [stride_a, 1], [BLOCK_K, BLOCK_M]
        )
    else:
        a_desc = tl.make_tensor_descriptor(
            a_ptr, [a_rows, K], [stride_a, 1], [BLOCK_M, BLOCK_K]
        )
    if B_TRANSPOSED:
        b_desc = tl.make_tensor_descriptor(
            b_ptr, [b_entries, N, K], [stride_bb, stride_br, 1], [1, BLOCK_N, BLOCK_K]
        )
    else:
        b_desc = tl.make_tensor_descriptor(
            b_ptr, [b_entries, K, N], [stride_bb, stride_br, 1], [1, BLOCK_K, BLOCK_N]
        )
    c_desc = tl.make_tensor_descriptor(c_ptr, [B * M, N], [N, 1], [BLOCK_M, BLOCK_N])
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    for tile in tl.range(
        tl.program_id(0),
        B * tiles_m * tiles_n,
        tl.num_programs(0),
        warp_specialize=True,
    ):
        entry, tile_m, tile_n = place(tile, tiles_m, tiles_n, GROUP_M)
        first_m = tile_m * BLOCK_M
        first_n = tile_n * BLOCK_N
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        for k in range(0, K, BLOCK_K):
            if A_TRANSPOSED:
                a = a_desc.load([entry * a_step + k, first_m]).T
            else:
                a = a_desc.load([entry * a_step + first_m, k])
            if B_TRANSPOSED:
                b = (
                    b_desc.load([entry * b_step, first_n, k])
                    .reshape(BLOCK_N, BLOCK_K)
                    .T
                )
            else:
                b = b_desc.load([entry * b_step, k, first_n]).reshape(BLOCK_K, BLOCK_N)
            accumulator = tl.dot(a, b, accumulator)
        c = accumulator.to(c_ptr.dtype.element_ty)
        if C_BY_TMA:
            c_desc.store([entry * M + first_m, first_n], c)
        else:
            # first_m itself is no term of a row's number here: Triton 3.7.1 would add
            # the second group's 64 rows to it as well, where A's load has it for a
            # coordinate.
            rows = tl.arange(0, BLOCK_M)[:, None]
            offs_n = first_n + tl.arange(0, BLOCK_N)
            c_rows = c_ptr + (entry * M + first_m + rows).to(tl.int64) * N
            tl.store(
                c_rows + offs_n[None, :],
                c,
                mask=(rows < M - first_m) & (offs_n[None, :] < N),
            )


def _config(a, block_n, target):
    """One program fills an SM: 384 threads of 168 registers."""
    room = target.shared_bytes_per_block - BLOCK_M * block_n * 2
    return {
        "BLOCK_M": BLOCK_M,
        "BLOCK_N": block_n,
        "BLOCK_K": ROW_BYTES // a.element_size(),
        "num_warps": 4,
        "num_stages": min(6, room // ((BLOCK_M + block_n) * ROW_BYTES)),
    }


def _whole_rows(a):
    """Whether no tile of C reaches into the next entry."""
    return a.shape[0] == 1 or a.shape[1] % BLOCK_M == 0


def _widest(a):
    """Columns of a tile without spilling: with 256 there is no register for C's
    addresses, where TMA can't clip it.
    """
    return 256 if _whole_rows(a) else 128


def _rule(a, b, target):
    """The widest tile that leaves no SM without one."""
    block_n = min(_widest(a), max(16, triton.next_power_of_2(b.shape[2])))
    while block_n > 64 and tiles(a, b, BLOCK_M, block_n) < multiprocessors(a.device):
        block_n //= 2
    return _config(a, block_n, target)


def _candidates(a, b, target):
    n = b.shape[2]
    widths = [
        width
        for width in (256, 128, 64, 32, 16)
        if min(n, 256) <= 4 * width < max(65, 8 * n) and width <= _widest(a)
    ]
    configs = [_rule(a, b, target), *(_config(a, width, target) for width in widths)]
    return distinct(configs)


CONFIGS = Tunable(rule=_rule, candidates=_candidates)


def why_not(a, b):
    if reason := why_not_tma(a, b):
        return reason
    target = target_of(a.device)
    if target.tensor_cores == MMA_SYNC:
        return f"warps are specialised for wgmma (sm_90) and tcgen05 (sm_100), and {target} has {MMA_SYNC}"
    if a.numel() == 0 or b.numel() == 0:
        return None
    lies = stored(a)
    by_entry, by_row, _ = lies.strides
    if lies.step and by_entry % by_row:
        return "A's entries are not a whole number of rows apart"
    if lies.step and lies.transposed and a.shape[2] % (ROW_BYTES // a.element_size()):
        return "A is stored transposed and K is not whole tiles: the last would reach into the next entry"
    if (
        max(a.shape[0] * a.shape[1], lies.shape[0] * by_entry // by_row + lies.shape[1])
        >= 1 << 31
    ):
        return "a row's number would pass 32 bits"
    return None


@bmm.variant(
    backend="triton",
    dtypes=("float16", "bfloat16"),
    needs="cuda",
    supports=why_not,
    builds_on="triton_persistent_tma",
    tunable=CONFIGS,
)
def triton_warp_specialized(a, b):
    operands = Operands(a, b)
    c = operands.new_product()
    if operands.is_empty:
        return c.zero_()
    config = CONFIGS.choose(a, b)
    programs = min(operands.tiles(config), multiprocessors(a.device))
    a_stored, b_stored = operands.a_stored, operands.b_stored
    a_by_entry, a_by_row, _ = a_stored.strides
    a_step = a_stored.step * a_by_entry // a_by_row
    a_rows = (a_stored.shape[0] - 1) * a_step + a_stored.shape[1]
    provide_workspace()  # for the descriptors, which the kernel makes itself
    _kernel[(programs,)](
        a,
        b,
        c,
        *operands.sizes,
        a_rows,
        a_step,
        a_by_row,
        b_stored.shape[0],
        b_stored.step,
        *b_stored.strides[:2],
        C_BY_TMA=_whole_rows(a),
        **operands.constants,
        **config,
    )
    return c
