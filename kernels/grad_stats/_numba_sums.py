"""What the Numba CUDA rungs share: n and d from the partial sums of many blocks."""

from __future__ import annotations

import torch

from batchline.kernels.grad_reduce.numba_cuda_vectorised import add_rows
from batchline.kernels.op import Tensors


def finish(partial: torch.Tensor) -> Tensors:
    """n[B] and d[B] from partial[blocks, 2·B], which has each block's share of n and
    then of d.
    """
    sums = torch.empty(partial.shape[1], dtype=torch.float32, device=partial.device)
    add_rows(partial, sums[None], 1)
    return tuple(sums.view(2, -1))
