"""Element types: their names, their rounding, and the bytes of a tensor's elements."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

_BLOCK = 2**22  # elements that a reference holds in fp64 at once


def dtype_name(dtype: torch.dtype) -> str:
    """'float16' for torch.float16."""
    return str(dtype).removeprefix("torch.")


def unit_roundoff(dtype: torch.dtype) -> float:
    """u = eps/2, the largest relative error of rounding to nearest (Higham, Accuracy
    and Stability, §2.2).
    """
    return torch.finfo(dtype).eps / 2


def subnormal_step(dtype: torch.dtype) -> float:
    """The spacing of the dtype's subnormal numbers: what rounding costs at worst where
    a result underflows.
    """
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps


def distinct_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements a tensor really holds: a dimension of stride 0 is one
    element, however often it is read.
    """
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()


def columns_in_fp64(g: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Blocks of whole columns of g[B,P] in fp64, each with where it is: all of g would
    be up to eight times its size.
    """
    width = max(1, _BLOCK // max(1, len(g)))
    for start in range(0, g.shape[1], width):
        columns = slice(start, start + width)
        yield columns, g[:, columns].double()


def mean_over_batch(
    g: torch.Tensor, of: Callable[[torch.Tensor], torch.Tensor] = lambda block: block
) -> torch.Tensor:
    """The mean over B of g[B,P], or of a function of its elements, in fp64; NaN where B
    is 0.
    """
    mean = torch.empty(g.shape[1], dtype=torch.float64, device=g.device)
    for columns, block in columns_in_fp64(g):
        mean[columns] = of(block).mean(dim=0)
    return mean


def rows_at_once(elements_per_row: int) -> int:
    """How many rows a reference holds in fp64 at once, at least 1."""
    return max(1, _BLOCK // max(1, elements_per_row))
