"""One linear layer on Gaussian inputs: the gradient noise scale is known in closed
form, and tests all the rest.

x ~ N(0, I) and dy_t = (Eᵀx_t − ε_t)/T with ε ~ N(0, σ²) are the inputs and output
gradients of least squares over T tokens, E[I,O] how far the weight is from the best
one. Then ‖G‖² = ‖E‖² and tr Σ = ((I+1)‖E‖² + I·O·σ²)/T.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Linear:
    """T tokens a sample, I inputs, O outputs, σ of the targets' noise and ‖E‖ of the
    weight's error.
    """

    tokens: int
    inputs: int
    outputs: int
    sigma: float
    error: float = 1.0

    @property
    def square(self) -> float:
        """‖G‖² of the true gradient."""
        return self.error**2

    @property
    def trace(self) -> float:
        """tr Σ of one sample's gradient."""
        return (
            (self.inputs + 1) * self.square + self.inputs * self.outputs * self.sigma**2
        ) / self.tokens

    @property
    def noise_scale(self) -> float:
        """B_simple = tr Σ/‖G‖²."""
        return self.trace / self.square

    def draw(
        self, batch: int, generator: torch.Generator, dtype: torch.dtype = torch.float64
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x[B,T,I] and dy[B,T,O] of independent samples; every call's E is the same,
        and full of equal entries.
        """
        x = torch.randn(
            batch, self.tokens, self.inputs, generator=generator, dtype=dtype
        )
        noise = self.sigma * torch.randn(
            batch, self.tokens, self.outputs, generator=generator, dtype=dtype
        )
        error = self.error / (self.inputs * self.outputs) ** 0.5
        return x, (x.sum(2, keepdim=True) * error - noise) / self.tokens
