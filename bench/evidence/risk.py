"""Which GPU variants are tried first where time may run out: those whose code a
compiler or a chip breaks soonest.
"""

from __future__ import annotations

RISKIEST = ("warp_specialized", "persistent", "mma", "one_read", "whole_words")
"""Parts of variants' names. None of these features is shown by an interpreter: warps with roles of their own and their
barriers, tensor memory access, tensor-core fragments, one pass that keeps what it read, loads of 16 bytes."""


def rank(name: str) -> int:
    """The place of a variant's name among RISKIEST, 0 for the riskiest; behind them all
    for any other.
    """
    return next(
        (place for place, part in enumerate(RISKIEST) if part in name), len(RISKIEST)
    )
