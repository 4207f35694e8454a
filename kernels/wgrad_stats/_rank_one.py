"""Gradients of one token a sample, which have rank one."""

from __future__ import annotations

import torch

from batchline.kernels.statistics import accumulator


def why_not(x: torch.Tensor, dy: torch.Tensor) -> str | None:
    """Why the samples' gradients have no closed form, or None."""
    return (
        None
        if x.shape[1] == 1
        else f"{x.shape[1]} tokens a sample: its gradient has rank one for a single token"
    )


def squared_norms(x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """n[B] = ‖x_b‖²·‖dy_b‖² of x[B,1,I] and dy[B,1,O], in fp32 or fp64.

    The square of the norms' product: of one norm alone it could overflow where the
    other makes up for it.
    """
    dtype = accumulator(x.dtype)
    norms = [torch.linalg.vector_norm(one[:, 0], dim=1, dtype=dtype) for one in (x, dy)]
    return (norms[0] * norms[1]).square()
