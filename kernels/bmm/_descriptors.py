"""What the rungs on TMA share: how an operand is described to it, and the walk of a
program over its tiles.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from batchline.kernels.backends import tl, triton
from batchline.kernels.bmm import output_dtype
from batchline.kernels.target import target_of

GROUP_M = 8
ROW_BYTES = 128  # of a tile along K: the widest row that TMA swizzles
_ALIGNMENT = 16  # bytes, of the base and of every stride (CUDA driver API, cuTensorMapEncodeTiled)
_MOST_STRIDE = 1 << 40  # bytes
_MOST_TILES = (
    1 << 30
)  # a tile's number has 32 bits, and the step past the last one must fit


@dataclass(frozen=True)
class Stored:
    """An operand [B, R, C] as its memory has it: `transposed` if that is [B, C, R].

    shape and strides (in elements) are of [entries, rows, columns] in memory. An
    operand that all entries share has one entry, and `step` 0 from an entry to the
    next: a stride of 0 is never described.
    """

    transposed: bool
    shape: tuple[int, int, int]
    strides: tuple[int, int, int]
    step: int


def stored(operand: torch.Tensor) -> Stored | None:
    """How a descriptor names this operand, one way round or the other, or None if it
    can't.
    """
    if operand.data_ptr() % _ALIGNMENT:
        return None
    aligned = _ALIGNMENT // operand.element_size()
    for transposed in (False, True):
        view = operand.mT if transposed else operand
        (entries, rows, columns), (by_entry, by_row, by_column) = (
            view.shape,
            view.stride(),
        )
        # The stride of a dimension of one element is never taken, and torch leaves it
        # arbitrary.
        by_row = by_row if rows > 1 else -(-columns // aligned) * aligned
        step = int(entries > 1 and by_entry != 0)
        by_entry = by_entry if step else by_row * rows
        legal = all(
            0 < stride * view.element_size() < _MOST_STRIDE and stride % aligned == 0
            for stride in (by_row, by_entry)
        )
        if legal and (by_column == 1 or columns == 1):
            return Stored(
                transposed,
                (entries if step else 1, rows, columns),
                (by_entry, by_row, 1),
                step,
            )
    return None


@dataclass(frozen=True)
class Operands:
    """A[B,M,K] and B[B,K,N] as the launchers of both rungs need them. How they are
    stored is asked of operands that are not empty.
    """

    a: torch.Tensor
    b: torch.Tensor

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """(B, M, N, K)."""
        batch, m, k = self.a.shape
        return batch, m, self.b.shape[2], k

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to multiply: the product is zeros, or nothing."""
        return 0 in self.sizes

    @functools.cached_property
    def a_stored(self) -> Stored:
        return stored(self.a)

    @functools.cached_property
    def b_stored(self) -> Stored:
        return stored(self.b)

    @property
    def constants(self) -> dict:
        """What both kernels are compiled for, beside the tile."""
        return {
            "A_TRANSPOSED": self.a_stored.transposed,
            "B_TRANSPOSED": self.b_stored.transposed,
            "GROUP_M": GROUP_M,
        }

    def new_product(self) -> torch.Tensor:
        """C[B,M,N], not written yet."""
        dtype = output_dtype(self.a.dtype)
        return torch.empty(self.sizes[:3], dtype=dtype, device=self.a.device)

    def tiles(self, config: Mapping) -> int:
        """How many of the configuration's tiles the product has."""
        return tiles(self.a, self.b, config["BLOCK_M"], config["BLOCK_N"])


def why_not(a: torch.Tensor, b: torch.Tensor) -> str | None:
    """Why TMA can't read these operands or write their product, or None. Empty ones
    launch nothing.
    """
    if reason := why_not_read(a, b):
        return reason
    row_bytes = b.shape[2] * output_dtype(a.dtype).itemsize
    if row_bytes % _ALIGNMENT and not Operands(a, b).is_empty:
        return "TMA writes rows of C whose length is a multiple of 16 bytes"
    return None


def why_not_read(a: torch.Tensor, b: torch.Tensor) -> str | None:
    """Why TMA can't read these operands, or None. Empty ones launch nothing."""
    batch, m, k = a.shape
    n = b.shape[2]
    target = target_of(a.device)
    if not target.tma:
        return f"needs TMA, which starts with sm_90: this is {target}"
    if 0 in (batch, m, n, k):
        return None
    for name, operand in (("A", a), ("B", b)):
        if stored(operand) is None:
            return f"TMA wants {name} with contiguous rows or columns, its base and other strides multiples of 16 bytes"
    if max(m, n, k) >= 1 << 31 or tiles(a, b, 64, 16) >= _MOST_TILES:
        return "a coordinate or a tile's number would pass 32 bits"
    return None


def tiles(a: torch.Tensor, b: torch.Tensor, block_m: int, block_n: int) -> int:
    """How many tiles the product has."""
    return a.shape[0] * -(-a.shape[1] // block_m) * -(-b.shape[2] // block_n)


@triton.jit
def place(tile, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """The entry, row and column of a tile: entry after entry, inside one in groups of
    GROUP_M rows of tiles.
    """
    entry = tile // (tiles_m * tiles_n)
    tile = tile % (tiles_m * tiles_n)
    first_m = tile // (GROUP_M * tiles_n) * GROUP_M
    group_rows = min(tiles_m - first_m, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    return entry, first_m + within % group_rows, within // group_rows
