"""The stand-in devices' memory: blocks of host memory that are handed out filled with
NaN, and again when freed.

Like torch's allocator it keeps what is freed for the next one, in sizes of 512 bytes,
and counts both.
"""

from __future__ import annotations

import bisect
import weakref
from collections import defaultdict
from collections.abc import Callable

import numpy as np
import torch

_STEP_BYTES = 512
CAPACITY_BYTES = 2**30
_ALIGNMENT = 256
PINNED = -1  # the "device" of host memory that is pinned


class Pool:
    """One device's memory."""

    def __init__(self, device: int):
        self.device = device
        self.allocated = self.peak = self.reserved = self.peak_reserved = 0
        self.graphs: weakref.WeakSet = weakref.WeakSet()  # those that own memory
        self._free: dict[tuple[int, int], list[np.ndarray]] = defaultdict(
            list
        )  # by owner and size

    def storage(
        self, nbytes: int, owner: int, before_freeing: Callable[[], None] = lambda: None
    ):
        """A torch.UntypedStorage, all NaN (every byte 255); freed when it is, for
        another one of the same owner.

        An owner is a stream's number, or a graph's: what was captured is written to
        again by every replay.

        `before_freeing` is called before free memory is given back to the host to make
        room.

        Raises:
            torch.OutOfMemoryError: where the device has not so much left.
        """
        size = -(-max(nbytes, 1) // _STEP_BYTES) * _STEP_BYTES
        free = self._free[owner, size]
        block = free.pop() if free else self._new_block(size, nbytes, before_freeing)
        block.fill(255)
        view = block[: max(nbytes, 1)]
        weakref.finalize(view, self._take_back, block, owner)
        self.allocated += size
        self.peak = max(self.peak, self.allocated)
        return torch.from_numpy(view).untyped_storage()

    def empty_cache(self) -> None:
        """Give back what is free, but what a graph still owns."""
        owners = {graph.number for graph in self.graphs}
        for owner, size in [key for key in self._free if key[0] not in owners]:
            blocks = self._free.pop((owner, size))
            self.reserved -= size * len(blocks)
            for block in blocks:
                _REGISTRY.remove(block)

    def _new_block(
        self, size: int, nbytes: int, before_freeing: Callable[[], None]
    ) -> np.ndarray:
        if self.reserved + size > CAPACITY_BYTES:
            before_freeing()
            self.empty_cache()
        if self.reserved + size > CAPACITY_BYTES:
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {nbytes} bytes. GPU {self.device} has "
                f"a total capacity of {CAPACITY_BYTES} bytes of which "
                f"{CAPACITY_BYTES - self.reserved} bytes are free."
            )
        whole = np.empty(size + _ALIGNMENT, np.uint8)
        start = -whole.ctypes.data % _ALIGNMENT
        block = whole[start : start + size]
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        _REGISTRY.add(block, self.device)
        return block

    def _take_back(self, block: np.ndarray, owner: int) -> None:
        self.allocated -= len(block)
        self._free[owner, len(block)].append(block)


class _Registry:
    """Which addresses are which device's."""

    def __init__(self):
        self._starts: list[int] = []
        self._blocks: dict[int, tuple[np.ndarray, int]] = (
            {}
        )  # by its start: a block, and its device

    def add(self, block: np.ndarray, device: int) -> None:
        start = block.ctypes.data
        bisect.insort(self._starts, start)
        self._blocks[start] = block, device

    def remove(self, block: np.ndarray) -> None:
        start = block.ctypes.data
        del self._starts[bisect.bisect_left(self._starts, start)]
        del self._blocks[start]

    def block_at(self, address: int) -> np.ndarray | None:
        """The block that has this address, or None."""
        return self._at(address)[0]

    def device_at(self, address: int) -> int | None:
        """The device with memory at this address, or None."""
        return self._at(address)[1]

    def may_be_addresses(self, words: np.ndarray) -> np.ndarray:
        """Of each word whether it is between the least and the largest address that
        there is.
        """
        if not self._starts:
            return np.zeros(len(words), bool)
        return (words >= self._starts[0]) & (
            words < self._starts[-1] + len(self._blocks[self._starts[-1]][0])
        )

    def _at(self, address: int) -> tuple[np.ndarray | None, int | None]:
        place = bisect.bisect_right(self._starts, address) - 1
        if place < 0:
            return None, None
        block, device = self._blocks[self._starts[place]]
        return (
            (block, device)
            if address < self._starts[place] + len(block)
            else (None, None)
        )


_REGISTRY = _Registry()
block_at, device_at, may_be_addresses = (
    _REGISTRY.block_at,
    _REGISTRY.device_at,
    _REGISTRY.may_be_addresses,
)
