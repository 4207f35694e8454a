"""What the Triton rungs share: sums within 16-byte words, and n and d from the partial
sums of many programs.
"""

from __future__ import annotations

import torch

from batchline.kernels.backends import tl, triton
from batchline.kernels.grad_reduce.triton_whole_words import sum_rows
from batchline.kernels.op import Tensors


@triton.jit
def within_words(
    values,
    GROUPS: tl.constexpr,
    PHASES: tl.constexpr,
    WORDS: tl.constexpr,
    WORD: tl.constexpr,
):
    """[GROUPS, PHASES, WORDS·WORD] → [GROUPS, PHASES, WORDS]. A thread holds whole
    words, so nothing moves.
    """
    return tl.sum(tl.reshape(values, (GROUPS, PHASES, WORDS, WORD)), axis=3)


def finish(partial: torch.Tensor) -> Tensors:
    """n[B] and d[B] from partial[programs, 2·B], which holds each program's share of n
    and then of d.
    """
    sums = torch.empty(partial.shape[1], dtype=torch.float32, device=partial.device)
    sum_rows(partial, sums, 1.0)
    return tuple(sums.view(2, -1))
