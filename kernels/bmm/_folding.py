"""Entries that share their right side, as one product: the batch folds into the rows of
A.
"""

from __future__ import annotations

import torch


def why_not_folded(a: torch.Tensor, b: torch.Tensor) -> str | None:
    """Why A[B,M,K] @ B[B,K,N] is not one [B·M, K] @ [K, N] on the same memory, or None."""
    if len(b) > 1 and b.stride(0) != 0:
        return "each entry has a right side of its own: there is nothing to fold"
    if len(a) > 1 and a.shape[1] > 1 and a.stride(0) != a.shape[1] * a.stride(1):
        return "A's rows don't go on from entry to entry: folding them would copy A"
    return None


def fold(tensor: torch.Tensor) -> torch.Tensor:
    """[B, M, K] as [B·M, K]: a view where the rows go on from entry to entry, a copy
    elsewhere.
    """
    return tensor.reshape(tensor.shape[0] * tensor.shape[1], tensor.shape[2])
