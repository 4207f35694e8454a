"""Element types: their names, their rounding, and the bytes of a tensor's elements."""
from __future__ import annotations

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """'float16' for torch.float16."""
    return str(dtype).removeprefix("torch.")


def unit_roundoff(dtype: torch.dtype) -> float:
    """u = eps/2, the largest relative error of rounding to nearest (Higham, Accuracy and Stability, §2.2)."""
    return torch.finfo(dtype).eps / 2


def subnormal_step(dtype: torch.dtype) -> float:
    """The spacing of the dtype's subnormal numbers: what rounding costs at worst where a result underflows."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def distinct_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements a tensor really holds: a dimension of stride 0 is one element, however often it is read."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()
