"""Random inputs for the ops: real random numbers, never zeros, which run faster on a GPU than data does."""
from __future__ import annotations

import torch


class Draw:
    """Tensors of one dtype and device from one seed; each call draws fresh values.

    On the meta device the tensors have shapes and strides and no values: enough to plan with.
    """

    def __init__(self, dtype: torch.dtype, device: str, seed: int):
        self.dtype = dtype
        self.device = device
        self._generator = None if device == "meta" else torch.Generator(device).manual_seed(seed)

    def uniform(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Uniform on [-scale, scale), contiguous."""
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        return out if self._generator is None else out.uniform_(-scale, scale, generator=self._generator)

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Normal with mean 0 and standard deviation `scale`, contiguous."""
        out = torch.empty(shape, dtype=self.dtype, device=self.device)
        return out if self._generator is None else out.normal_(0, scale, generator=self._generator)
