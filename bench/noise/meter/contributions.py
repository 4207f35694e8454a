"""What one call of a layer adds to each sample's gradient of a parameter, and {ḡ, n, d}
of what several calls add.

Of one call they come the layer's own compact way. Gradients of a parameter that is used
several times in a step add up before they are squared: the tokens of linear layers are
put after each other, as if they were one call's; any other mixture is written out, so
many samples at a time as fit a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch

from batchline.bench.noise.meter import kernel
from batchline.kernels.op import Tensors
from batchline.kernels.statistics import accumulator

_CHUNK = 2**23  # elements of per-sample gradients that exist at once


class Contribution(Protocol):
    """To the gradients of one parameter of P elements, by B samples."""

    dtype: torch.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        """[b, P] of these samples."""

    def statistics(self) -> Tensors:
        """ḡ[P] (in whatever shape), n[B] and d[B]; fp32, or fp64 for fp64."""


class Product(NamedTuple):
    """A linear layer's weight: sample b's gradient is dY_bᵀX_b, of X[B,T,I] and
    dY[B,T,O].
    """

    x: torch.Tensor
    dy: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.dy.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        wide = accumulator(self.dtype)
        return torch.bmm(
            self.dy[samples].to(wide).mT, self.x[samples].to(wide)
        ).flatten(1)

    def statistics(self) -> Tensors:
        return kernel.of_layer(self.x, self.dy)


class Rows(NamedTuple):
    """A parameter so small that its samples' gradients g[B,P] are kept: a bias, a
    normalisation's weight.
    """

    g: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.g.dtype

    def gradients(self, samples: slice) -> torch.Tensor:
        return self.g[samples].to(accumulator(self.dtype))

    def statistics(self) -> Tensors:
        return kernel.of_rows(self.g)


def combined(uses: Sequence[Contribution], batch: int, parameters: int) -> Tensors:
    """{ḡ, n, d} of all that the calls of a step added to one parameter's gradients."""
    if len(uses) == 1:
        return uses[0].statistics()
    if all(isinstance(use, Product) for use in uses):
        wide = accumulator(
            max((use.dtype for use in uses), key=lambda dtype: dtype.itemsize)
        )
        return Product(
            torch.cat([use.x.to(wide) for use in uses], 1),
            torch.cat([use.dy.to(wide) for use in uses], 1),
        ).statistics()
    return written_out(
        lambda samples: sum(use.gradients(samples) for use in uses), batch, parameters
    )


def written_out(
    gradients: Callable[[slice], torch.Tensor], batch: int, parameters: int
) -> Tensors:
    """{ḡ, n, d} of gradients(samples) → [b, P]: at once, or chunk by chunk and then
    again for d, which needs ḡ.
    """
    count = max(1, _CHUNK // max(1, parameters))
    if count >= batch:
        return kernel.of_rows(gradients(slice(0, batch)))
    chunks = [
        slice(start, min(start + count, batch)) for start in range(0, batch, count)
    ]
    total = 0
    n = []
    for chunk in chunks:
        g = gradients(chunk)
        total = total + g.sum(0, dtype=torch.float64)
        n.append(torch.linalg.vector_norm(g, dim=1, dtype=torch.float64).square())
    mean = total / batch
    d = [gradients(chunk).double() @ mean for chunk in chunks]
    return mean, torch.cat(n), torch.cat(d)
