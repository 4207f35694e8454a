"""Launches as they were captured instead of run: which there were, and what the
compilers made of each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MATRIX_INSTRUCTIONS = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b")


@dataclass(frozen=True)
class Launch:
    """A launch as it was captured: what `codegen.Compiled` says of it, and the code in
    which the rest stands.

    `shared_bytes` is None where the cubin knows all of it.
    """

    kernel: str
    config: str
    architecture: int
    threads: int
    shared_bytes: int | None
    warp_specialized: bool
    ptx: str
    cubin: bytes


class Launches:
    """What a launcher launched: how often, and what came of those that had not been
    seen.
    """

    def __init__(self, seen: set):
        self._seen = seen
        self.count = 0
        self.new: list[Launch] = []

    def is_new(self, *key) -> bool:
        self.count += 1
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def matrix_instruction(ptx: str) -> str | None:
    """The tensor-core instruction in the PTX: wgmma.mma_async, tcgen05.mma, mma.sync or
    None.
    """
    found = _MATRIX_INSTRUCTIONS.search(ptx)
    return found.group(1) if found else None
