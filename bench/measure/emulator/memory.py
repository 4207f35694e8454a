"""The global memory that a launch may touch: allocations of this process, at their own
addresses, each with a shadow that says of every byte what is known of it.
"""

from __future__ import annotations

import bisect
import mmap
from dataclasses import dataclass

import numpy as np

INITIALISED = 1  # bit of a shadow byte, and of an allocation's flags: all of it is
_NO_RESERVE = 0x4000  # Linux' MAP_NORESERVE, which the module mmap has no name for
_ALIGN = 256  # bytes
_LARGE = 2**28  # bytes from which a shadow reserves no memory before it is touched


@dataclass(frozen=True, eq=False)
class Allocation:
    """`size_bytes` of memory from the address `start`. Allocations that touch stay
    separate.

    `shadow` is uint8[size_bytes], one byte for each of memory: bit 0 says that it has
    been written; the other bits belong to whoever executes. Where
    `initialised` is true all of it counts as written, whatever the shadow says.
    """

    start: int
    size_bytes: int
    name: str
    initialised: bool
    shadow: np.ndarray

    @property
    def end(self) -> int:
        return self.start + self.size_bytes


class GlobalMemory:
    """Allocations in the order of their addresses; none overlaps another."""

    def __init__(self):
        self._by_start: dict[int, Allocation] = {}
        self._starts: list[int] = []
        self._table: np.ndarray | None = None
        self._variables: dict[tuple[str, str], np.ndarray] = {}

    def add(
        self, start: int, size_bytes: int, name: str, initialised: bool
    ) -> Allocation:
        """From now on the `size_bytes` from `start` may be touched.

        Raises:
            ValueError: if it has no bytes or overlaps another allocation.
        """
        if size_bytes <= 0:
            raise ValueError(f"{name} has {size_bytes} bytes: nothing to touch")
        place = bisect.bisect_right(self._starts, start)
        before = self._by_start[self._starts[place - 1]] if place else None
        if before is not None and before.end > start:
            raise ValueError(f"{name} at {start:#x} lies in {before.name}")
        if place < len(self._starts) and self._starts[place] < start + size_bytes:
            after = self._by_start[self._starts[place]]
            raise ValueError(f"{name} at {start:#x} reaches into {after.name}")
        added = Allocation(
            start, size_bytes, name, initialised, untouched_zeros(size_bytes)
        )
        self._starts.insert(place, start)
        self._by_start[start] = added
        self._table = None
        return added

    def forget(self, start: int) -> None:
        """The allocation from `start` may not be touched any longer.

        Raises:
            KeyError: if none begins there.
        """
        del self._by_start[start]
        self._starts.remove(start)
        self._table = None

    def variable(
        self, module: str, name: str, size_bytes: int, initial: bytes | None
    ) -> np.ndarray:
        """uint8[size_bytes]: a variable of the module with this text. It is `initial`,
        or zeros, when it is first asked for, and keeps what launches write to it.
        """
        known = self._variables.get((module, name))
        if known is None:
            known = _aligned_zeros(size_bytes)
            if initial is not None:
                known[:] = np.frombuffer(initial, np.uint8)
            self.add(known.ctypes.data, size_bytes, f"the variable {name}", True)
            self._variables[module, name] = known
        return known

    def at(self, address: int) -> Allocation | None:
        """The allocation in which the address lies, or None."""
        place = bisect.bisect_right(self._starts, address)
        found = self._by_start[self._starts[place - 1]] if place else None
        return found if found is not None and address < found.end else None

    def mark_initialised(self, start: int, size_bytes: int) -> None:
        """The `size_bytes` from the address `start`, all in one allocation, have been
        written.

        Raises:
            ValueError: if they are not in one allocation.
        """
        found = self.at(start)
        if found is None or start + size_bytes > found.end:
            raise ValueError(f"{size_bytes} bytes at {start:#x} are not allocated")
        if not found.initialised:
            first = start - found.start
            found.shadow[first : first + size_bytes] |= INITIALISED

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """In the order of their addresses."""
        return tuple(self._by_start[start] for start in self._starts)

    @property
    def starts(self) -> np.ndarray:
        """int64[n]: the first address of each, ascending."""
        return self.table[:, 0]

    @property
    def ends(self) -> np.ndarray:
        """int64[n]: the address behind the last one of each."""
        return self.table[:, 1]

    @property
    def table(self) -> np.ndarray:
        """int64[n, 4], C order, by address: start, end, address of the shadow, flags
        (INITIALISED or 0). It is right until an allocation is added or forgotten.
        """
        if self._table is None:
            rows = [
                (one.start, one.end, one.shadow.ctypes.data, int(one.initialised))
                for one in self.allocations
            ]
            self._table = np.array(rows, np.int64).reshape(len(rows), 4)
        return self._table


def _aligned_zeros(size_bytes: int) -> np.ndarray:
    """From an address that is a multiple of what the driver gives memory by."""
    held = np.zeros(size_bytes + _ALIGN, np.uint8)
    first = -held.ctypes.data % _ALIGN
    return held[first : first + size_bytes]


def untouched_zeros(size_bytes: int) -> np.ndarray:
    """uint8[size_bytes] of zeros that takes no memory before it is touched."""
    if size_bytes < _LARGE:
        return np.zeros(size_bytes, np.uint8)
    return np.frombuffer(reserve(size_bytes), np.uint8)


def reserve(size_bytes: int) -> mmap.mmap:
    """Zeros at addresses of their own, many more than the machine has memory for: what
    is not touched costs nothing.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    return mmap.mmap(-1, size_bytes, flags=flags)
