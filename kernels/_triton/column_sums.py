"""Sums over the rows of a tile whose rows lie in several warps."""

from __future__ import annotations

from batchline.kernels.backends import tl, triton

WARP, WORD_BYTES = 32, 16


@triton.jit
def column_sums(values, LEVELS: tl.constexpr):
    """values[ROWS, COLUMNS] → their sums[COLUMNS], in an order that is always the same.

    2**LEVELS rows are held by different threads, and a thread's own rows lie as many
    apart; it must divide ROWS. Those that a thread holds are added there. Then the
    others change places, whole words at a time, and halves are added to halves. tl.sum
    writes such rows one word each, in an order in which up to 32 lanes meet in a bank.
    """
    ROWS: tl.constexpr = values.shape[0]
    COLUMNS: tl.constexpr = values.shape[1]
    STACKED: tl.constexpr = 1 << LEVELS
    total = tl.sum(tl.reshape(values, (ROWS // STACKED, STACKED, COLUMNS)), axis=0)
    total = tl.trans(total)
    for level in tl.static_range(LEVELS):
        pairs = tl.reshape(total, (COLUMNS, STACKED >> (level + 1), 2))
        left, right = tl.split(pairs)
        total = left + right
    return tl.reshape(total, (COLUMNS,))


def levels_of(rows: int, columns: int, num_warps: int, element_size: int) -> int:
    """LEVELS of a tile that warps read in words of 16 bytes."""
    threads = columns * element_size // WORD_BYTES  # of a row
    stacked = min(rows, max(1, WARP * num_warps // max(1, threads)))
    return stacked.bit_length() - 1
