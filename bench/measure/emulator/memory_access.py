"""Loads, stores and atomics of a warp, with the checks of each lane's address, and what
they count: sectors of global memory, passes of shared memory.
"""

from __future__ import annotations

from numba import int32, int64, uint8, uint16, uint32, uint64

from batchline.bench.measure.emulator import clusters, order
from batchline.bench.measure.emulator.layout import (
    HEADER,
    IS_READ_ONLY,
    LANES,
    LOCAL_WINDOW,
    RANK_SHIFT,
    SHARED_WINDOW,
    WINDOW_BYTES,
    Finding,
    Space,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import (
    check_unwritten,
    find_allocation,
    read_global,
    read_shared,
    report,
    write_global,
    write_shared,
    write_strong,
)
from batchline.bench.measure.emulator.raw import (
    bytes_at,
    count_ones,
    fill,
    longs_at,
    lowest_one,
    read8,
    read16,
    read32,
    read64,
    words_at,
    write8,
    write16,
    write32,
    write64,
)
from batchline.bench.measure.emulator.releases import synchronise
from batchline.bench.measure.emulator.shared_arrays import (
    is_in_shared,
    own_offset,
)

GENERIC, GLOBAL = int(Space.GENERIC), int(Space.GLOBAL)
SHARED, LOCAL = int(Space.SHARED), int(Space.LOCAL)
CLUSTER = int(Space.CLUSTER)
OUT_OF_BOUNDS = int(Finding.OUT_OF_BOUNDS)
PAST_THE_END = int(Finding.PAST_THE_END)
RACE_GLOBAL, RACE_SHARED = int(Finding.RACE_GLOBAL), int(Finding.RACE_SHARED)
MISALIGNED = int(Finding.MISALIGNED)
UNINITIALISED_LOCAL = int(Finding.UNINITIALISED_LOCAL)
MBARRIER_MISUSE = int(Finding.MBARRIER_MISUSE)

SECTOR_BYTES, BANKS = 32, 32
# Where the words of a LOAD, a STORE or an ATOMIC lie in their row.
SPACE, ELEMENTS, BYTES, REGISTER_BYTES, OFFSET, BASE_BYTES, SIGNED, ACTION = range(
    4, 12
)


@compile_native
def gather_addresses(m, registers, row, place, mask):
    """The lanes' addresses, from operand `place` of the row and its offset, to
    m.scratch.
    """
    addresses = longs_at(m.scratch, LANES)
    words = words_at(row, HEADER + place + 1)
    base = registers + int64(words[HEADER + place])
    offset = int64(words[OFFSET])
    if words[BASE_BYTES] == 8:
        for lane in range(LANES):
            addresses[lane] = int64(read64(base + lane * 8)) + offset
    elif words[BASE_BYTES] == 4:
        for lane in range(LANES):
            addresses[lane] = int64(read32(base + lane * 4)) + offset
    else:
        for lane in range(LANES):
            addresses[lane] = offset


@compile_native
def space_of(m, warp, space, mask):
    """Which memory the lanes' generic addresses lead to, all to the same (see
    `alike`); they become offsets in it. Of another block's shared memory, that block is
    at hand from now on: the caller has to turn home.
    """
    addresses = longs_at(m.scratch, LANES)
    if space == SHARED and m.cluster_blocks > 1:
        for each in range(LANES):
            addresses[each] = own_offset(m, addresses[each])
    if space != GENERIC and space != CLUSTER:
        return space
    lane = lowest_one(mask)
    window = _window_of(space, addresses[lane])
    if window == 0:
        return GLOBAL
    if window == LOCAL_WINDOW:
        _subtract(addresses, LOCAL_WINDOW)
        return LOCAL
    if space == GENERIC:
        _subtract(addresses, SHARED_WINDOW)
    named = addresses[lane] & ~int64((1 << RANK_SHIFT) - 1)
    if named > 0:
        offset = clusters.turn_to_address(m, warp, addresses[lane])
        _subtract(addresses, named if offset >= 0 else WINDOW_BYTES)
    return SHARED


@compile_native
def _subtract(addresses, number):
    for lane in range(LANES):
        addresses[lane] -= number


@compile_native
def _window_of(space, address):
    """Which addresses lead to the same memory: the same number for them. It is that of
    the window, with a block's rank for shared memory of a cluster; 0: global memory.
    """
    if space == CLUSTER:
        return SHARED_WINDOW + (address >> RANK_SHIFT)
    if SHARED_WINDOW <= address < SHARED_WINDOW + WINDOW_BYTES:
        return SHARED_WINDOW + ((address - SHARED_WINDOW) >> RANK_SHIFT)
    if LOCAL_WINDOW <= address < LOCAL_WINDOW + WINDOW_BYTES:
        return LOCAL_WINDOW
    return int64(0)


@compile_native
def alike(m, registers, row, place, mask):
    """The lanes whose addresses, from operand `place` of the row, lead to the same
    memory as that of the first of them.
    """
    space = words_at(row, HEADER)[SPACE]
    if space != GENERIC and space != CLUSTER:
        return mask
    gather_addresses(m, registers, row, place, mask)
    addresses = longs_at(m.scratch, LANES)
    first = _window_of(space, addresses[lowest_one(mask)])
    group = uint32(0)
    for lane in range(LANES):
        is_same = _window_of(space, addresses[lane]) == first
        group |= uint32(is_same) << uint32(lane)
    return group & mask


@compile_native
def local_of(m, warp, lane, offset, count):
    """The address of a byte of a thread's local memory; 0 outside of it."""
    if offset < 0 or offset + count > m.local_bytes:
        return 0
    return m.local + (warp * LANES + lane) * m.local_bytes + offset


@compile_native
def _read_local(m, pc, warp, lane, source, address, count):
    """Report a read of local memory, at `source` in this process, that the thread has
    not written all of.
    """
    written = bytes_at(m.local_written + source - m.local, count)
    for place in range(count):
        if not written[place]:
            report(m, UNINITIALISED_LOCAL, pc, warp, lane, address, -1)
            return


@compile_native
def why_outside(m, address, count):
    """The finding for a read of global memory that no allocation holds."""
    row = find_allocation(m, address)
    is_within_a_word = (address & 15) + count <= 16
    return PAST_THE_END if row and is_within_a_word else OUT_OF_BOUNDS


@compile_native
def locate(m, pc, warp, lane, space, address, count, may_overrun):
    """Where in this process the bytes of an access are (0: it is refused), and of
    global memory their allocation.

    It is 0 and the allocation for what ends behind it, within its last 16 aligned
    bytes, if that is allowed.
    """
    if address & (count - 1):
        report(m, MISALIGNED, pc, warp, lane, address, -1)
        return int64(0), int64(0)
    if space == GLOBAL:
        row = int64(find_allocation(m, address))
        if row:
            end = int64(read64(row + 8))
            if address + count <= end:
                return address, row
            if may_overrun and address + count <= (end + 15) & ~15:
                return int64(0), row
    elif space == SHARED:
        if is_in_shared(m, address, count):
            return m.shared + address, int64(0)
    else:
        target = int64(local_of(m, warp, lane, address, count))
        if target:
            return target, int64(0)
    report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
    return int64(0), int64(0)


@Handler
def load(machine, pc, warp, registers, row, mask):
    """ld: each lane's elements to its registers. A lane whose address is refused gets
    bytes of 0xFF.
    """
    m = machine_at(machine)
    elements = int64(words_at(row, HEADER)[ELEMENTS])
    while mask:
        group = alike(m, registers, row, elements, mask)
        mask &= ~group
        _load(m, pc, warp, registers, row, group)
        clusters.turn_home(m, warp)
    return DONE


@compile_native
def _load(m, pc, warp, registers, row, mask):
    words = words_at(row, HEADER + 9)
    elements, size = int64(words[ELEMENTS]), int64(words[BYTES])
    count = elements * size
    gather_addresses(m, registers, row, elements, mask)
    space = space_of(m, warp, words[SPACE], mask)
    addresses = longs_at(m.scratch, LANES)
    width, signed = words[REGISTER_BYTES], words[SIGNED]
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    if space == SHARED:
        lane = lowest_one(mask)
        clusters.reach(m, pc, warp, lane, warp, clock, addresses[lane])
    if m.is_counting:
        if space == GLOBAL:
            count_sectors(m, pc, mask, count, True)
        elif space == SHARED:
            count_passes(m, pc, mask, count)
    action = int64(words[ACTION])
    is_read_only = action & IS_READ_ONLY != 0
    is_strong = action & ~IS_READ_ONLY != 0 and space == GLOBAL
    for lane in range(LANES):
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        address = addresses[lane]
        source, allocation = locate(m, pc, warp, lane, space, address, count, True)
        if allocation:
            if is_read_only:
                check_unwritten(m, pc, warp, lane, allocation, address, count)
            if source:
                read_global(m, pc, warp, lane, allocation, address, count, is_strong)
            else:
                source = _read_past_the_end(
                    m, pc, warp, lane, allocation, address, count
                )
            if is_strong and m.seen:
                synchronise(m, warp, lane, address, action)
        elif source and space == SHARED:
            read_shared(m, pc, warp, lane, warp, clock, address, count)
        elif source and space == LOCAL:
            _read_local(m, pc, warp, lane, source, address, count)
        for element in range(elements):
            target = registers + int64(words[HEADER + element]) + lane * width
            if source:
                _move(source + element * size, size, target, width, signed)
            else:
                _poison(target, width)


@compile_native
def _read_past_the_end(m, pc, warp, lane, allocation, address, count):
    """A load that ends behind its allocation, within the last 16 aligned bytes: noted
    apart; what lies behind the end is poison.
    """
    report(m, PAST_THE_END, pc, warp, lane, address, -1)
    end = int64(read64(allocation + 8))
    scratch = m.scratch + LANES * 8
    for place in range(count):
        if address + place < end:
            write8(scratch + place, uint8(read8(address + place)))
        else:
            write8(scratch + place, uint8(255))
    read_global(m, pc, warp, lane, allocation, address, end - address)
    return scratch


@compile_native
def _move(source, size, target, width, signed):
    """One element from memory to a register that may be wider."""
    if size == 4:
        value = uint64(read32(source))
        if signed and width == 8:
            value = uint64(int64(int32(read32(source))))
    elif size == 8:
        value = read64(source)
    elif size == 2:
        value = uint64(read16(source))
        if signed and value >> uint64(15):
            value |= uint64(0xFFFFFFFFFFFF0000)
    else:
        value = uint64(read8(source))
        if signed and value >> uint64(7):
            value |= uint64(0xFFFFFFFFFFFFFF00)
    put(target, width, value)


@compile_native
def put(target, width, value):
    """Write the lowest `width` bytes of a uint64."""
    if width == 4:
        write32(target, uint32(value))
    elif width == 8:
        write64(target, value)
    elif width == 2:
        write16(target, uint16(value))
    else:
        write8(target, uint8(value))


@compile_native
def get(source, width):
    """Read `width` bytes as a uint64."""
    if width == 4:
        return uint64(read32(source))
    if width == 8:
        return read64(source)
    if width == 2:
        return uint64(read16(source))
    return uint64(read8(source))


@compile_native
def _poison(target, width):
    put(target, width, uint64(0xFFFFFFFFFFFFFFFF))


@Handler
def store(machine, pc, warp, registers, row, mask):
    """st: each lane's registers to its elements. A lane whose address is refused
    stores nothing.
    """
    m = machine_at(machine)
    while mask:
        group = alike(m, registers, row, 0, mask)
        mask &= ~group
        _store(m, pc, warp, registers, row, group)
        clusters.turn_home(m, warp)
    return DONE


@compile_native
def _store(m, pc, warp, registers, row, mask):
    words = words_at(row, HEADER + 9)
    elements, size = int64(words[ELEMENTS]), int64(words[BYTES])
    count = elements * size
    gather_addresses(m, registers, row, 0, mask)
    space = space_of(m, warp, words[SPACE], mask)
    addresses = longs_at(m.scratch, LANES)
    data = m.scratch + LANES * 8
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    if space == SHARED:
        lane = lowest_one(mask)
        clusters.reach(m, pc, warp, lane, warp, clock, addresses[lane])
    if m.is_counting:
        if space == GLOBAL:
            count_sectors(m, pc, mask, count, False)
        elif space == SHARED:
            count_passes(m, pc, mask, count)
    action = int64(words[ACTION])
    for lane in range(LANES):
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        address = addresses[lane]
        target, allocation = locate(m, pc, warp, lane, space, address, count, False)
        if allocation and action:
            write_strong(m, pc, warp, lane, allocation, address, count)
            if m.seen:
                synchronise(m, warp, lane, address, action)
        elif allocation:
            write_global(m, pc, warp, lane, allocation, address, count)
        elif target and space == SHARED:
            _collect(registers, words, lane, data)
            write_shared(m, pc, warp, lane, warp, clock, address, count, data)
        elif target and space == LOCAL:
            fill(m.local_written + target - m.local, uint8(1), count)
        if target:
            _collect(registers, words, lane, target)
    if space == GLOBAL or space == SHARED:
        _check_lanes(m, pc, warp, registers, words, mask, space)


@compile_native
def _check_lanes(m, pc, warp, registers, words, mask, space):
    """Report lanes of one store that write different bytes to one address: which of
    them stays is not defined.
    """
    addresses = longs_at(m.scratch, LANES)
    count = int64(words[ELEMENTS]) * int64(words[BYTES])
    mine, other = m.scratch + LANES * 8, m.scratch + LANES * 8 + 64
    highest = int64(-(1 << 62))
    for lane in range(LANES):
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        if addresses[lane] >= highest:
            highest = addresses[lane] + count
            continue
        for before in range(lane):
            if not (mask >> uint32(before)) & uint32(1):
                continue
            if addresses[before] != addresses[lane]:
                continue
            _collect(registers, words, lane, mine)
            _collect(registers, words, before, other)
            for place in range(count):
                if read8(mine + place) != read8(other + place):
                    kind = RACE_GLOBAL if space == GLOBAL else RACE_SHARED
                    report(m, kind, pc, warp, lane, addresses[lane], pc)
                    return
            break


@compile_native
def _collect(registers, words, lane, target):
    """Write a lane's elements of a store one behind the other."""
    size, width = int64(words[BYTES]), int64(words[REGISTER_BYTES])
    for element in range(int64(words[ELEMENTS])):
        source = registers + int64(words[HEADER + 1 + element]) + lane * width
        put(target + element * size, size, get(source, width))


# --- what is counted ----------------------------------------------------------------


@compile_native
def count_sectors(m, pc, mask, count, is_read):
    """Sectors of 32 bytes that a request touches, and how few would hold its bytes."""
    addresses = longs_at(m.scratch, LANES)
    seen = longs_at(m.scratch + 64 * 8, 2 * LANES * 16)
    sectors, distinct, latest = 0, 0, int64(-1)
    highest = int64(-1)
    for lane in range(LANES):
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        address = addresses[lane]
        if address >= highest:
            distinct += count
            highest = address + count
        elif not _has_address(addresses, lane, mask, address):
            distinct += count
        for sector in range(
            address // SECTOR_BYTES, (address + count - 1) // SECTOR_BYTES + 1
        ):
            if sector == latest:
                continue
            latest = sector
            is_new = True
            for known in range(sectors - 1, -1, -1):
                if seen[known] == sector:
                    is_new = False
                    break
            if is_new:
                seen[sectors] = sector
                sectors += 1
    write64(m.sectors + pc * 8, read64(m.sectors + pc * 8) + uint64(sectors))
    needed = (distinct + SECTOR_BYTES - 1) // SECTOR_BYTES
    write64(
        m.sectors_needed + pc * 8, read64(m.sectors_needed + pc * 8) + uint64(needed)
    )
    if is_read:
        m.read_bytes += distinct


@compile_native
def _has_address(addresses, before, mask, address):
    for lane in range(before):
        if (mask >> uint32(lane)) & uint32(1) and addresses[lane] == address:
            return True
    return False


@compile_native
def count_passes(m, pc, mask, count):
    """Passes of shared memory over the fewest that the request's bytes take: a pass
    serves each of 32 banks of 4 bytes one word. Requests of 8 and 16 bytes a lane are
    served by halves and quarters of a warp.
    """
    addresses = longs_at(m.scratch, LANES)
    lanes = LANES if count <= 4 else LANES * 4 // count
    words = (count + 3) // 4
    passes, fewest = 0, 0
    for first in range(0, LANES, lanes):
        group = (mask >> uint32(first)) & uint32(
            (uint64(1) << uint64(lanes)) - uint64(1)
        )
        if not group:
            continue
        fewest += 1
        passes += _worst_bank(m, addresses, first, lanes, mask, words)
    write64(m.passes + pc * 8, read64(m.passes + pc * 8) + uint64(passes))
    write64(m.requests + pc * 8, read64(m.requests + pc * 8) + uint64(fewest))


@compile_native
def _worst_bank(m, addresses, first, lanes, mask, words):
    """The largest number of different words of one bank."""
    held = words_at(m.scratch + 64 * 8, BANKS * (LANES + 1))
    for bank in range(BANKS):
        held[bank] = 0
    worst = 1
    for lane in range(first, first + lanes):
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        for number in range(words):
            word = int32((addresses[lane] >> 2) + number)
            bank = word & (BANKS - 1)
            count = held[bank]
            is_new = True
            for known in range(count):
                if held[BANKS + bank * LANES + known] == word:
                    is_new = False
                    break
            if is_new:
                held[BANKS + bank * LANES + count] = word
                held[bank] = count + 1
                if count + 1 > worst:
                    worst = count + 1
    return worst


@compile_native
def count_lanes(mask):
    return count_ones(mask)
