"""Where the arrays of a block's shared memory lie: apart, with a red zone behind each,
so that an index that leaves one array does not reach the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchline.bench.measure.emulator import ptx
from batchline.bench.measure.emulator.layout import FIRST_RANK, RANK_SHIFT
from batchline.bench.measure.emulator.native import compile_native
from batchline.bench.measure.emulator.raw import longs_at

# Also the modulus that offsets keep: no bank and no swizzled row changes its place.
RED_ZONE_BYTES = 1024
_DYNAMIC_ALIGN = 16


@dataclass(frozen=True)
class SharedLayout:
    """Offsets and sizes in bytes.

    `offsets` are by name; arrays without a size (`extern`) share that of the dynamic
    memory, `dynamic_offset`. `arrays` are (offset, size) of those with a size.
    `static_bytes` is what they take on a GPU, where no red zone is between them.
    """

    offsets: dict[str, int]
    arrays: tuple[tuple[int, int], ...]
    dynamic_offset: int
    static_bytes: int

    def with_dynamic(self, dynamic_bytes: int) -> tuple[tuple[int, int], ...]:
        """(start, end) of all arrays of a launch with so much dynamic memory."""
        arrays = list(self.arrays)
        if dynamic_bytes:
            arrays.append((self.dynamic_offset, dynamic_bytes))
        return tuple((start, start + size) for start, size in arrays)


def lay_out_shared(variables: Sequence[ptx.Variable]) -> SharedLayout:
    """Where these arrays lie, in their order."""
    offsets: dict[str, int] = {}
    arrays: list[tuple[int, int]] = []
    packed_end = 0  # where the last one ends without red zones
    for one in variables:
        if one.is_extern:
            continue
        packed = _round_up(packed_end, one.align)
        offsets[one.name] = _apart(arrays, packed, one.align)
        arrays.append((offsets[one.name], one.size_bytes))
        packed_end = packed + one.size_bytes
    dynamic = [one for one in variables if one.is_extern]
    align = max([_DYNAMIC_ALIGN, *(one.align for one in dynamic)])
    dynamic_offset = _apart(arrays, _round_up(packed_end, align), align)
    offsets |= {one.name: dynamic_offset for one in dynamic}
    return SharedLayout(offsets, tuple(arrays), dynamic_offset, packed_end)


def _apart(arrays: Sequence[tuple[int, int]], packed: int, align: int) -> int:
    """The first offset behind the red zone of the last array that is that of the packed
    array, modulo the red zone and the alignment.
    """
    if not arrays:
        return packed
    step = max(RED_ZONE_BYTES, align)
    first = sum(arrays[-1]) + RED_ZONE_BYTES
    return first + (packed - first) % step


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


@compile_native
def own_offset(m, address):
    """An address in shared memory, without the rank of the block at hand if it has that;
    one with another rank stays as it is, and is in no array.
    """
    if address >> RANK_SHIFT == m.rank + FIRST_RANK:
        return address & ((1 << RANK_SHIFT) - 1)
    return address


@compile_native
def is_in_shared(m, address, count):
    """Whether these bytes lie in one array of the block's shared memory."""
    if m.array_start <= address and address + count <= m.array_end:
        return True
    return _find_array(m, address, count)


@compile_native
def _find_array(m, address, count):
    """Likewise of any array, which is then the one that is asked first."""
    arrays = longs_at(m.shared_arrays, 2 * m.n_shared_arrays)
    for number in range(m.n_shared_arrays):
        start, end = arrays[2 * number], arrays[2 * number + 1]
        if start <= address and address + count <= end:
            m.array_start = start
            m.array_end = end
            return True
    return False
