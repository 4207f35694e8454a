"""Launches that were computed before on the same bytes: an interpreter takes up to
seconds for what they gave.

A kernel's result depends on nothing but the memory that its arguments lead to: whole
blocks of it, and those whose addresses are written in them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Mapping

import numpy as np

from batchline.bench.measure.stand_in import memory

_MOST_BYTES = 2**27  # of results that are kept
_MOST_WORDS = 4096  # of a block that is looked through for addresses


class Remembered:
    """What launches gave, the last ones used."""

    def __init__(self):
        self._known: OrderedDict[tuple, list[np.ndarray]] = OrderedDict()
        self._bytes = 0

    def compute(
        self, kernel: Hashable, words: Iterable[Hashable], interpret: Callable[[], None]
    ) -> None:
        """Do what `interpret` does to the memory that the addresses among a launch's
        `words` lead to.

        `kernel` and the other words are all else that its result depends on.
        """
        words = list(words)
        blocks = _led_to(word for word in words if type(word) is int)
        places = {block.ctypes.data: number for number, block in enumerate(blocks)}
        key = (
            kernel,
            tuple(_by_place(word, places) for word in words),
            tuple(
                (len(block), hashlib.blake2b(block, digest_size=16).digest())
                for block in blocks
            ),
        )
        if key in self._known:
            self._known.move_to_end(key)
            for block, content in zip(blocks, self._known[key]):
                block[:] = content
            return
        interpret()
        self._known[key] = [block.copy() for block in blocks]
        self._bytes += sum(map(len, blocks))
        while self._bytes > _MOST_BYTES:
            _, contents = self._known.popitem(last=False)
            self._bytes -= sum(map(len, contents))


def _led_to(addresses: Iterable[int]) -> list[np.ndarray]:
    """The blocks with these addresses, and those with the addresses that are written in
    them, in the order found.
    """
    found: dict[int, np.ndarray] = {}
    waiting = deque(addresses)
    while waiting:
        block = memory.block_at(waiting.popleft())
        if block is None or block.ctypes.data in found:
            continue
        found[block.ctypes.data] = block
        written = block[: 8 * _MOST_WORDS].view(np.int64)
        waiting += map(int, written[memory.may_be_addresses(written)])
    return list(found.values())


def _by_place(word: Hashable, places: Mapping[int, int]) -> Hashable:
    """An address as the number of its block and where in that; any other word as it is."""
    block = memory.block_at(word) if type(word) is int else None
    return (
        word
        if block is None
        else ("at", places[block.ctypes.data], word - block.ctypes.data)
    )
