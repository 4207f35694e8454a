"""Random inputs for the ops: real random numbers, never zeros, which run faster on a
GPU than data does.

torch draws nothing in fp8, so that is drawn in fp32 and rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch


def with_nan(tensor: torch.Tensor) -> torch.Tensor:
    """The contiguous tensor with one NaN, at a third of its elements."""
    return _with(tensor, {tensor.numel() // 3: math.nan})


def with_infinities(tensor: torch.Tensor) -> torch.Tensor:
    """The contiguous tensor with −∞ at two thirds of its elements and +∞ in the last;
    fp8 has NaN for both.
    """
    return _with(
        tensor, {2 * tensor.numel() // 3: -math.inf, tensor.numel() - 1: math.inf}
    )


def _with(tensor: torch.Tensor, values: Mapping[int, float]) -> torch.Tensor:
    flat = tensor.view(-1)
    for place, value in values.items():
        flat[place] = value
    return tensor


class Draw:
    """Tensors of one dtype and device from one seed; each call draws fresh values.

    On the meta device the tensors have shapes and strides and no values: enough to plan
    with.
    """

    def __init__(self, dtype: torch.dtype, device: str, seed: int):
        self.dtype = dtype
        self.device = device
        self._is_fp8 = dtype.itemsize == 1
        self._generator = (
            None if device == "meta" else torch.Generator(device).manual_seed(seed)
        )

    def uniform(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Uniform on [-scale, scale), contiguous; in fp8 on the eighths of [-scale,
        scale], a power of two.

        fp8 tensor cores align the products that they add to the largest and keep 14
        bits of each (DeepSeek-V3, arXiv:2412.19437, §3.5.2). Products of eighths are
        multiples of 1/64, and while sums stay under 128 nothing is lost: on these
        inputs fp32 accumulation can be asked for on any chip.
        """
        out = self._empty(shape)
        if self._generator is None:
            return out
        out.uniform_(-scale, scale, generator=self._generator)
        return (
            out.mul_(8 / scale).round_().mul_(scale / 8).to(self.dtype)
            if self._is_fp8
            else out
        )

    def normal(self, *shape: int, scale: float = 1.0) -> torch.Tensor:
        """Normal with mean 0 and standard deviation `scale`, contiguous."""
        out = self._empty(shape)
        return (
            out
            if self._generator is None
            else out.normal_(0, scale, generator=self._generator).to(self.dtype)
        )

    def subnormal(self, *shape: int) -> torch.Tensor:
        """Numbers under the smallest normal one, of both signs; in bf16 from two to
        four times that.

        Matrix units of CPUs take bf16's subnormal numbers for zero (Intel's manual,
        VDPBF16PS and TDPBF16PS), and this is no fault of a kernel.
        """
        least = torch.finfo(self.dtype).smallest_normal
        if self.dtype == torch.bfloat16:
            return self.uniform(*shape, scale=least).add_(3 * least)
        return self.uniform(*shape, scale=least)

    def _empty(self, shape: tuple[int, ...]) -> torch.Tensor:
        drawn = torch.float32 if self._is_fp8 and self._generator else self.dtype
        return torch.empty(shape, dtype=drawn, device=self.device)
