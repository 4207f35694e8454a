"""Kernels that walk a piece of a GPU's L2 cache many times in one launch: what the
cache gives, with no gap in it.

Half of a 50 MB L2 is read in 5 µs at 5 TB/s. Between two such launches a microsecond or
so goes by, also in a CUDA graph, so a rate that is taken from them is too low by that
share. Here one launch moves 4 GiB, for most of a millisecond at that rate, so that its
start and end are less than a hundredth of it. torch has no such launch: a sum over an
expanded tensor reads element by element, and its blocks read the same lines at the same
time, which are then in L1. Here loads leave L1 out, and neighbouring programs are at
different places.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from batchline.kernels.backends import tl, triton, why_absent
from batchline.kernels.target import multiprocessors

SHARE = (
    4  # of the L2 that is walked on: it may hold a line once in each of its two halves
)
_BLOCK, _WARPS, _PROGRAMS_PER_SM = (
    4096,
    8,
    4,
)  # 64 bytes of loads in flight for each thread, and half of its registers


def why_not() -> str | None:
    """Why there is no such kernel here, or None."""
    return why_absent("triton")


@triton.jit
def _read_walk(source_ptr, sums_ptr, blocks, visits, BLOCK: tl.constexpr):
    """Each program adds up `visits` blocks of a source of so many, as many apart as
    there are programs.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    offsets = tl.arange(0, BLOCK)
    sums = tl.zeros((BLOCK,), tl.float32)
    place = program % blocks
    for _ in range(visits):
        sums += tl.load(source_ptr + place * BLOCK + offsets, cache_modifier=".cg")
        place = (place + programs) % blocks
    tl.store(sums_ptr + program, tl.sum(sums))


@triton.jit
def _copy_walk(source_ptr, target_ptr, blocks, visits, BLOCK: tl.constexpr):
    """Each program copies `visits` blocks likewise; two that are at one place write the
    same.
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    offsets = tl.arange(0, BLOCK)
    place = program % blocks
    for _ in range(visits):
        at = place * BLOCK + offsets
        tl.store(
            target_ptr + at,
            tl.load(source_ptr + at, cache_modifier=".cg"),
            cache_modifier=".cg",
        )
        place = (place + programs) % blocks


def reading(cache_bytes: int, least_bytes: int) -> tuple[Callable[[], object], int]:
    """A launch that reads `least_bytes` or a little more out of a share of such a
    cache, and how many those are.
    """
    source, programs = _walked(cache_bytes // SHARE)
    sums = torch.empty(programs, device="cuda")
    blocks, visits = len(source), _visits(least_bytes, programs)

    def launch() -> torch.Tensor:
        _read_walk[(programs,)](
            source, sums, blocks, visits, BLOCK=_BLOCK, num_warps=_WARPS
        )
        return sums

    return launch, programs * visits * _block_bytes()


def copying(cache_bytes: int, least_bytes: int) -> tuple[Callable[[], object], int]:
    """A launch that copies within a share of such a cache, and how many bytes it reads
    and writes, likewise.
    """
    source, programs = _walked(cache_bytes // SHARE // 2)
    target = torch.zeros_like(source)
    blocks, visits = len(source), _visits(least_bytes // 2, programs)

    def launch() -> torch.Tensor:
        _copy_walk[(programs,)](
            source, target, blocks, visits, BLOCK=_BLOCK, num_warps=_WARPS
        )
        return target

    return launch, 2 * programs * visits * _block_bytes()


def _walked(nbytes: int) -> tuple[torch.Tensor, int]:
    """fp32 [blocks, _BLOCK] of about so many bytes, and how many programs walk on it."""
    source = torch.ones(max(1, nbytes // _block_bytes()), _BLOCK, device="cuda")
    return source, _PROGRAMS_PER_SM * multiprocessors(source.device)


def _visits(nbytes: int, programs: int) -> int:
    return max(1, -(-nbytes // (programs * _block_bytes())))


def _block_bytes() -> int:
    return _BLOCK * torch.float32.itemsize
