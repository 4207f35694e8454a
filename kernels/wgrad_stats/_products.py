"""Batched products by the library, with fp32 (fp64) results whatever their inputs are."""

from __future__ import annotations

import torch

from batchline.kernels.statistics import accumulator


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a[B,M,K] @ b[B,K,N] → [B,M,N], accumulated and returned in fp32 or fp64.

    On CUDA narrow inputs stay narrow for the tensor cores; on a CPU the library knows
    no such product, so they are widened first.
    """
    out = accumulator(a.dtype)
    if a.dtype != out and a.is_cuda:
        return torch.bmm(a, b, out_dtype=out)
    return torch.bmm(a.to(out), b.to(out))


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add a[B,M,K] @ b[B,K,N] to an fp32 `total`[B,M,N]; `a` and `b` as for `product`."""
    if a.is_cuda:
        torch.baddbmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total.baddbmm_(a.to(total.dtype), b.to(total.dtype))


def mean_gradient(x: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
    """ḡ[O,I]: one product over all B·T tokens, divided by B (NaN where there are no
    samples).
    """
    return product(dy.flatten(0, 1).mT[None], x.flatten(0, 1)[None])[0].div_(len(x))


def along_mean(x: torch.Tensor, dy: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """d[B] = Σ_t dy_t·(ḡ x_t): each sample's inner product with ḡ[O,I], its gradient
    never made.
    """
    out = mean.dtype
    projected = torch.matmul(x.to(out), mean.T)
    return (projected * dy).sum((1, 2))
