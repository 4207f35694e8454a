"""What the library's grouped products ask of a batch of operands, A[B,M,K] and
B[B,K,N], for each entry is a group.

From PyTorch's sources (aten/src/ATen/native/GroupedMMUtils.h, cuda/GroupedBlas.cpp,
cuda/GroupMM.cu and cuda/ScaledGroupMM.cu; the Python side and the headers were read as
2.13 installs them).
"""

from __future__ import annotations

import torch

MOST_GROUPS = 1023
ALIGNED_BYTES = 16  # the TMA unit's


def why_not_grouped(
    a: torch.Tensor, b: torch.Tensor, function: str, capabilities: tuple[int, ...]
) -> str | None:
    """Why torch.nn.functional's `function` has no kernel of its own for these operands
    here, or None.

    Args:
        capabilities: the major compute capabilities that it has one for.
    """
    if not hasattr(torch.nn.functional, function):
        return (
            f"this PyTorch ({torch.__version__}) has no torch.nn.functional.{function}"
        )
    if (
        torch.cuda.is_available()
        and (major := torch.cuda.get_device_capability()[0]) not in capabilities
    ):
        chips = " and ".join(f"sm_{one}0" for one in capabilities)
        return f"{function} has kernels for {chips}, not for sm_{major}x"
    if len(a) > MOST_GROUPS:
        return f"{function} takes {MOST_GROUPS} entries at most"
    if not a.numel() or not b.numel():
        return f"{function} is for products that are not empty"
    if b.shape[2] * 2 % ALIGNED_BYTES:
        return f"{function} gives rows padded to {ALIGNED_BYTES} bytes: the result would not be dense"
    for name, tensor in (("A", a), ("B", b)):
        if why := _why_not_aligned(tensor):
            return f"{function} takes {name} {why}"
    return None


def _why_not_aligned(tensor: torch.Tensor) -> str | None:
    """What an operand has to be and is not, or None."""
    aligned = ALIGNED_BYTES // tensor.element_size()
    rows, columns = tensor.shape[1:]
    _, down, along = tensor.stride()
    if down == 1 and along >= max(1, rows):
        pitch = along
    elif along == 1 and down >= max(1, columns):
        pitch = down
    else:
        return "with rows or columns that are contiguous and do not overlap"
    if (
        pitch % aligned
        or tensor.stride(0) % aligned
        or tensor.storage_offset() % aligned
    ):
        return f"with rows (or columns) and entries that start at multiples of {ALIGNED_BYTES} bytes"
    return None
