"""Sharpness: the largest eigenvalue of the training loss' Hessian, by power iteration
on Hessian-vector products.

Keskar et al. 2016, arXiv:1609.04836, ask whether large batches end in sharp minima.
They measure the largest rise of the loss in a box; for a quadratic bowl the largest
eigenvalue says the same, and it needs no box to be chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_TOLERANCE, _MOST_ITERATIONS = 0.01, 100


@dataclass(frozen=True)
class Eigenvalue:
    """`value`, and `residual` = ‖Hv − λv‖: a symmetric H has an eigenvalue within that
    of `value`.
    """

    value: float
    residual: float


def sharpness(
    loss: torch.Tensor, parameters: Sequence[torch.Tensor], seed: int = 0
) -> Eigenvalue:
    """The largest eigenvalue (not the largest in magnitude) of the Hessian of `loss`, a
    scalar with a graph.

    Iterates until the residual is 1% of the eigenvalue, or a hundred times.

    Raises:
        ValueError: of a loss that is not finite.
    """
    if not bool(torch.isfinite(loss)):
        raise ValueError(f"no sharpness of a loss of {loss.item()}: it must be finite")
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    shapes = [parameter.shape for parameter in parameters]
    sizes = [parameter.numel() for parameter in parameters]

    def hessian(vector: torch.Tensor) -> torch.Tensor:
        pieces = [
            piece.view(shape) for piece, shape in zip(vector.split(sizes), shapes)
        ]
        curved = [pair for pair in zip(gradients, pieces) if pair[0].requires_grad]
        if not curved:  # a loss that is linear in everything
            return torch.zeros_like(vector)
        of, along = zip(*curved)
        products = torch.autograd.grad(
            of, parameters, along, retain_graph=True, materialize_grads=True
        )
        return torch.cat([product.flatten() for product in products])

    start = torch.randn(sum(sizes), generator=torch.Generator().manual_seed(seed)).to(
        loss
    )
    found = _dominant(hessian, start)
    if found.value >= 0:
        return found
    # the dominant one is negative: with it taken off the diagonal, the largest is
    shifted = _dominant(lambda vector: hessian(vector) - found.value * vector, start)
    return Eigenvalue(shifted.value + found.value, shifted.residual)


def _dominant(
    matrix: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor
) -> Eigenvalue:
    """The eigenvalue largest in magnitude."""
    vector = start / start.norm()
    for _ in range(_MOST_ITERATIONS):
        product = matrix(vector)
        value, norm = float(vector @ product), float(product.norm())
        residual = float((product - value * vector).norm())
        if residual <= _TOLERANCE * abs(value):
            break
        vector = product / norm
    return Eigenvalue(value, residual)
