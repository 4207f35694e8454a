"""Copies of boxes of tensors, and of plain runs of bytes, between global and shared
memory; and the tensor maps that are made on the device (PTX ISA, "cp.async.bulk",
"cp.async.bulk.tensor", "tensormap.replace", "tensormap.cp_fenceproxy").
"""

from __future__ import annotations

from numba import int32, int64, uint8, uint32

from batchline.bench.measure.emulator import (
    clusters,
    copy_arrivals,
    mbarriers,
    order,
    tensor_commits,
)
from batchline.bench.measure.emulator.asynchronous import begin, commit, pending_at
from batchline.bench.measure.emulator.layout import (
    GROUPS,
    HEADER,
    LANES,
    PARAMETERS,
    RANK_SHIFT,
    SHADOW_WRITTEN,
    SHARED_WINDOW,
    BulkCopy,
    Finding,
    PendingKind,
)
from batchline.bench.measure.emulator.memory_access import get
from batchline.bench.measure.emulator.native import (
    AGAIN,
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import (
    check_visible,
    find_allocation,
    read_box,
    read_global,
    read_shared,
    report,
    update_global_by,
    write_global,
    write_global_by,
    write_shared,
    warp_at,
)
from batchline.bench.measure.emulator.raw import (
    bytes_at,
    copy,
    longs_at,
    read8,
    read16,
    read32,
    read64,
    words_at,
    write8,
)
from batchline.bench.measure.emulator.shared_arrays import (
    is_in_shared,
    own_offset,
)
from batchline.bench.measure.emulator.tensor_maps import (
    MAP_BYTES,
    box_bytes,
    box_pieces,
    element_type_of,
    load_box,
    rank_of,
    read_memory,
    reduce_box,
    reduce_elements,
    reduces,
    replace_field,
    store_box,
    type_bytes,
    why_invalid,
)

FREE = int(PendingKind.FREE)
LOAD_PENDING, STORE_PENDING = (
    int(PendingKind.TENSOR_LOAD),
    int(PendingKind.TENSOR_STORE),
)
BULK_PENDING = int(PendingKind.BULK_COPY)
ARRIVAL_PENDING = int(PendingKind.COPY_ARRIVAL)
COMMIT_PENDING = int(PendingKind.TENSOR_COMMIT)
STORE, LOAD = int(BulkCopy.STORE), int(BulkCopy.LOAD)
TO_BLOCK = int(BulkCopy.TO_BLOCK)
OUT_OF_BOUNDS, MISALIGNED = int(Finding.OUT_OF_BOUNDS), int(Finding.MISALIGNED)
BAD_DESCRIPTOR = int(Finding.BAD_DESCRIPTOR)
MBARRIER_MISUSE = int(Finding.MBARRIER_MISUSE)
MISSING_PROXY_FENCE = int(Finding.MISSING_PROXY_FENCE)
_P0 = PARAMETERS
_TENSOR_ALIGN = 128  # of a box in shared memory
_OFFSET_MASK = (1 << RANK_SHIFT) - 1


@Handler
def load_tensor(machine, pc, warp, registers, row, mask):
    """cp.async.bulk.tensor to shared memory, for each lane in the mask."""
    m = machine_at(machine)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            _start_box(m, pc, warp, lane, registers, row, True)
    return DONE


@Handler
def store_tensor(machine, pc, warp, registers, row, mask):
    """cp.async.bulk.tensor and cp.reduce.async.bulk.tensor from shared memory, for each
    lane in the mask.
    """
    m = machine_at(machine)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            _start_box(m, pc, warp, lane, registers, row, False)
    return DONE


@Handler
def copy_run(machine, pc, warp, registers, row, mask):
    """cp.async.bulk, for each lane in the mask."""
    m = machine_at(machine)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            _start_run(m, pc, warp, lane, registers, row)
    return DONE


@Handler
def commit_stores(machine, pc, warp, registers, row, mask):
    """cp.async.bulk.commit_group."""
    m = machine_at(machine)
    state = warp_at(m, warp)
    commit(m, warp, STORE_PENDING, state.bulk_groups)
    stored = words_at(order.clocks_of(m, m.store_agent + warp), m.agents)
    clocks = words_at(m.group_clocks + warp * GROUPS * 4, GROUPS)
    clocks[state.bulk_groups % GROUPS] = stored[m.store_agent + warp]
    state.bulk_groups += 1
    return DONE


@Handler
def wait_for_stores(machine, pc, warp, registers, row, mask):
    """cp.async.bulk.wait_group: until at most so many of the last groups are open. With
    .read what they read is read, and what they write is not known to be written.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER)
    is_read, left = words[_P0 + 1], int64(words[_P0])
    last = warp_at(m, warp).bulk_groups - left
    if not is_read and left < GROUPS and last > 0:
        clocks = words_at(m.group_clocks + warp * GROUPS * 4, GROUPS)
        written = clocks[(last - 1) % GROUPS]
        order.know(m, warp, m.store_agent + warp, int64(written))
    for number in range(m.first_pending, m.n_pending):
        one = pending_at(m, number)
        if one.kind == STORE_PENDING and one.warp == warp and -1 < one.group < last:
            land(m, one)
            order.know(m, warp, m.tensor_agent + warp, one.clock)
            one.kind = FREE
    return DONE


@Handler
def acquire_map(machine, pc, warp, registers, row, mask):
    """fence.proxy.tensormap: what was published may be used."""
    m = machine_at(machine)
    m.maps_acquired = m.maps_published
    return DONE


@compile_native
def _address(registers, row, place, offset, width, lane):
    """An operand's address in a lane; `width` 0: it is the offset alone."""
    if width == 0:
        return int64(offset)
    base = registers + int64(words_at(row, HEADER + place + 1)[HEADER + place])
    address = int64(get(base + lane * width, width)) + int64(offset)
    return address - SHARED_WINDOW if address >= SHARED_WINDOW else address


# --- tensors ------------------------------------------------------------------------


@compile_native
def _start_box(m, pc, warp, lane, registers, row, is_load):
    """cp.async.bulk.tensor: operands the shared address, the map's, the mbarrier's (of
    a load) and the coordinates. Parameter 6 is of a load the number of masks of blocks,
    of a store what PENDING's `reduction` is; 7 is whether a load may tell the mbarrier of
    the other block of a pair (.cta_group::2).
    """
    head = words_at(row, HEADER)
    rank = int64(head[_P0])
    shared = _address(registers, row, 0, head[_P0 + 1], head[_P0 + 4], lane)
    map_address = _address(registers, row, 1, head[_P0 + 2], 8, lane)
    if not _is_map_usable(m, pc, warp, lane, map_address, rank):
        return
    if shared % _TENSOR_ALIGN:
        report(m, MISALIGNED, pc, warp, lane, shared, -1)
        return
    if not is_load:
        shared = own_offset(m, shared)
        if shared >> RANK_SHIFT:
            report(m, OUT_OF_BOUNDS, pc, warp, lane, shared, -1)
            return
        _start_box_of(
            m, pc, warp, lane, registers, row, map_address, shared, -1, -1, True
        )
        return
    barrier = _address(registers, row, 2, head[_P0 + 3], head[_P0 + 5], lane)
    mask = int64(1) << min(clusters.rank_of(m, warp, shared), int64(62))
    if head[_P0 + 6]:
        words = words_at(row, HEADER + 4 + rank)
        mask = int64(read16(registers + int64(words[HEADER + 3 + rank]) + lane * 2))
    is_of_pair = head[_P0 + 7] != 0
    if not _are_in_cluster(m, pc, warp, lane, mask, shared, barrier, is_of_pair):
        return
    is_first = True
    for block in range(m.cluster_blocks):
        if (mask >> block) & 1:
            clusters.turn_to(m, block)
            told = block
            if is_of_pair:
                told = block & ~1 | clusters.rank_of(m, warp, barrier) & 1
            _start_box_of(
                m,
                pc,
                warp,
                lane,
                registers,
                row,
                map_address,
                shared,
                barrier,
                told,
                is_first,
            )
            is_first = False
    clusters.turn_home(m, warp)


@compile_native
def _are_in_cluster(m, pc, warp, lane, mask, shared, barrier, is_of_pair):
    """Whether all blocks in the mask that a copy is for are there, and the mbarrier lies
    in the block that it is for, or in the pair of that.
    """
    if mask >> m.cluster_blocks:
        report(m, OUT_OF_BOUNDS, pc, warp, lane, shared, -1)
        return False
    to, at = clusters.rank_of(m, warp, shared), clusters.rank_of(m, warp, barrier)
    if (to >> 1 != at >> 1) if is_of_pair else (to != at):
        report(m, MBARRIER_MISUSE, pc, warp, lane, barrier, -1)
        return False
    return True


@compile_native
def _start_box_of(
    m, pc, warp, lane, registers, row, map_address, shared, barrier, told, is_first
):
    """A box from or to the shared memory at hand; `barrier` -1: from it. The mbarrier is
    that of the block with rank `told`. Only the first of several reads global memory.
    """
    is_load = barrier >= 0
    rank = int64(words_at(row, HEADER)[_P0])
    words = words_at(row, HEADER + 3 + rank)
    tensor_map = bytes_at(map_address, MAP_BYTES)
    size = box_bytes(tensor_map)
    shared &= _OFFSET_MASK
    if not is_in_shared(m, shared, size):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, shared, -1)
        return
    number, block = int64(-1), int64(m.rank)
    if is_load:
        clusters.turn_to(m, told)
        number = _find_mbarrier(m, pc, warp, lane, barrier & _OFFSET_MASK)
        clusters.turn_to(m, block)
        if number < 0:
            return
    new = begin(m, LOAD_PENDING if is_load else STORE_PENDING, pc, warp, uint32(1))
    new.map = map_address
    new.shared = shared
    new.mbarrier = number
    new.bytes = uint32(size)
    new.clock = order.issue(m, m.tensor_agent + warp)
    if not is_load:
        new.reduction = int64(words_at(row, HEADER)[_P0 + 6])
        if new.reduction and not reduces(
            new.reduction - 1, element_type_of(tensor_map)
        ):
            report(m, BAD_DESCRIPTOR, pc, warp, lane, map_address, -1)
            new.landed = -1
            return
    for place in range(rank):
        row_of_coordinate = registers + int64(words[HEADER + 3 + place])
        new.coordinates[place] = int64(int32(read32(row_of_coordinate + lane * 4)))
    clusters.reach(m, pc, warp, lane, m.tensor_agent + warp, new.clock, shared)
    if is_load:
        new.mbarrier_rank = told
        clusters.turn_to(m, told)
        clusters.reach(m, pc, warp, lane, m.tensor_agent + warp, new.clock, barrier)
        clusters.turn_to(m, block)
    if not _check_box(m, pc, warp, lane, tensor_map, new, is_load, is_first):
        new.landed = -1  # its bytes must not be moved
    if m.is_early:
        land(m, new)


@compile_native
def _find_mbarrier(m, pc, warp, lane, address):
    """The mbarrier at an address, which the warp must know of; -1 if none is there."""
    number = mbarriers.find(m, address)
    if number < 0:
        report(m, MBARRIER_MISUSE, pc, warp, lane, address, -1)
    else:
        clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
        read_shared(m, pc, warp, lane, warp, clock, address, 8)
    return number


@compile_native
def _is_map_usable(m, pc, warp, lane, address, rank):
    row = find_allocation(m, address)
    if not row or address + MAP_BYTES > int64(read64(row + 8)):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
        return False
    if address & 63:
        report(m, MISALIGNED, pc, warp, lane, address, -1)
        return False
    read_global(m, pc, warp, lane, row, address, MAP_BYTES)
    shadow = int64(read64(row + 16)) + address - int64(read64(row))
    if read8(shadow) & SHADOW_WRITTEN and m.maps_acquired < m.maps_published:
        report(m, MISSING_PROXY_FENCE, pc, warp, lane, address, -1)
    tensor_map = bytes_at(address, MAP_BYTES)
    if why_invalid(tensor_map) or rank_of(tensor_map) != rank:
        report(m, BAD_DESCRIPTOR, pc, warp, lane, why_invalid(tensor_map), -1)
        return False
    return True


@compile_native
def _check_box(m, pc, warp, lane, tensor_map, new, is_load, is_counted):
    """Check all that the box touches; whether its bytes may be moved."""
    agent = m.tensor_agent + warp
    stored = int64(0) if is_load else int64(order.issue(m, m.store_agent + warp))
    pieces = box_pieces(tensor_map, new.coordinates, new.shared)
    is_right = True
    for place in range(len(pieces)):
        address, shared, count = pieces[place, 0], pieces[place, 1], pieces[place, 2]
        if address >= 0:
            row = find_allocation(m, address)
            if not row or address + count > int64(read64(row + 8)):
                report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
                is_right = False
            elif is_load:
                read_box(m, pc, warp, lane, row, address, count)
                check_visible(m, pc, warp, lane, row, address, count)
            else:
                _note_store(m, pc, warp, lane, new, stored, row, address, count)
        if is_load:
            write_shared(m, pc, warp, lane, agent, new.clock, shared, count, 0)
        else:
            read_shared(m, pc, warp, lane, agent, new.clock, shared, count)
    if m.is_counting and is_counted:
        _count_box(m, pc, pieces, is_load)
    return is_right


@compile_native
def _note_store(m, pc, warp, lane, new, stored, row, address, count):
    """Check what a copy to global memory writes, or combines as atomics do."""
    writer = m.store_agent + warp
    if new.reduction:
        update_global_by(m, pc, warp, lane, writer, stored, row, address, count, False)
    else:
        write_global_by(m, pc, warp, lane, writer, stored, row, address, count)


@compile_native
def _count_box(m, pc, pieces, is_load):
    """Sectors of a box: pieces follow one another along its rows."""
    sectors, total, latest = 0, int64(0), int64(-1)
    for place in range(len(pieces)):
        address, count = pieces[place, 0], pieces[place, 2]
        if address < 0:
            continue
        total += count
        for sector in range(address >> 5, ((address + count - 1) >> 5) + 1):
            if sector != latest:
                sectors += 1
                latest = sector
    longs_at(m.sectors, m.instructions)[pc] += sectors
    longs_at(m.sectors_needed, m.instructions)[pc] += (total + 31) >> 5
    if is_load:
        m.read_bytes += total


@compile_native
def land(m, one):
    """Move the bytes of a copy, and tell its mbarrier."""
    if one.landed == 1:
        return
    before = m.rank
    clusters.turn_to(m, one.rank)
    if one.kind == ARRIVAL_PENDING:
        copy_arrivals.land(m, one)
    elif one.kind == COMMIT_PENDING:
        tensor_commits.land(m, one)
    else:
        _land_copy(m, one)
    clusters.turn_to(m, before)


@compile_native
def _land_copy(m, one):
    is_moved = one.landed == 0
    one.landed = 1
    shared = bytes_at(m.shared, m.shared_bytes)
    if one.kind == BULK_PENDING:
        if is_moved:
            copy(m.shared + one.shared, one.source[0], int64(one.bytes))
    elif one.kind == LOAD_PENDING:
        if is_moved:
            load_box(bytes_at(one.map, MAP_BYTES), one.coordinates, shared, one.shared)
    elif is_moved:
        _store(m, one, shared)
    if one.kind != STORE_PENDING:
        agent = m.tensor_agent + one.warp
        clusters.turn_to(m, one.mbarrier_rank)
        mbarriers.complete_bytes(m, one.mbarrier, int64(one.bytes), agent, one.clock)
        one.kind = FREE


@compile_native
def _store(m, one, shared):
    """Write what a copy has read of shared memory, or combine it with what is there."""
    if one.map == 0 and one.reduction:
        _reduce_run(m, one)
    elif one.map == 0:
        copy(one.target[0], m.shared + one.shared, int64(one.bytes))
    else:
        tensor_map = bytes_at(one.map, MAP_BYTES)
        if one.reduction:
            operation = one.reduction - 1
            reduce_box(operation, tensor_map, one.coordinates, shared, one.shared)
        else:
            store_box(tensor_map, one.coordinates, shared, one.shared)


@compile_native
def _reduce_run(m, one):
    size = type_bytes(one.element_type)
    for place in range(0, int64(one.bytes), size):
        target = one.target[0] + place
        left = read_memory(target, size)
        right = read_memory(m.shared + one.shared + place, size)
        new = reduce_elements(one.reduction - 1, one.element_type, left, right)
        for byte in range(size):
            write8(target + byte, uint8(new >> (8 * byte) & 0xFF))


@Handler
def land_one(machine, pc, warp, registers, row, mask):
    """Complete a load that is under way; AGAIN if there is none."""
    m = machine_at(machine)
    chosen, ready = int64(-1), 0
    for number in range(m.first_pending, m.n_pending):
        one = pending_at(m, number)
        if one.kind in (
            LOAD_PENDING,
            BULK_PENDING,
            ARRIVAL_PENDING,
            COMMIT_PENDING,
        ):
            ready += 1
            if chosen < 0 or (m.random and (m.steps + number) % ready == 0):
                chosen = number
    if chosen < 0:
        return AGAIN
    land(m, pending_at(m, chosen))
    return DONE


# --- runs of bytes ------------------------------------------------------------------


@compile_native
def _start_run(m, pc, warp, lane, registers, row):
    """cp.async.bulk: operands the target, the source, the bytes, and but for a store
    the mbarrier and maybe the mask of blocks; parameter 0 is a BulkCopy. Parameters 3
    and 7 of a store are PENDING's `reduction` and `element_type`.
    """
    head = words_at(row, HEADER)
    words = words_at(row, HEADER + 5)
    to = _address(registers, row, 0, head[_P0 + 1], head[_P0 + 4], lane)
    source = _address(registers, row, 1, head[_P0 + 2], head[_P0 + 5], lane)
    size = int64(read32(registers + int64(words[HEADER + 2]) + lane * 4))
    if (to | source | size) & 15:
        report(m, MISALIGNED, pc, warp, lane, source, -1)
        return
    if head[_P0] != LOAD:
        source = own_offset(m, source)
    if head[_P0] == STORE:
        reduction, element_type = int64(head[_P0 + 3]), int64(head[_P0 + 7])
        _start_store(m, pc, warp, lane, to, source, size, reduction, element_type)
        return
    if head[_P0] == TO_BLOCK:
        if not is_in_shared(m, source, size):
            report(m, OUT_OF_BOUNDS, pc, warp, lane, source, -1)
            return
    elif not _is_allocated(m, pc, warp, lane, source, size):
        return
    barrier = _address(registers, row, 3, head[_P0 + 3], head[_P0 + 6], lane)
    mask = int64(1) << min(clusters.rank_of(m, warp, to), int64(62))
    if head[_P0 + 7]:
        mask = int64(read16(registers + int64(words[HEADER + 4]) + lane * 2))
    if not _are_in_cluster(m, pc, warp, lane, mask, to, barrier, False):
        return
    clock = int64(order.issue(m, m.tensor_agent + warp))
    data = source
    if head[_P0] == TO_BLOCK:
        data = m.shared + source
        _read_run(m, pc, warp, lane, source, size, clock)
    for block in range(m.cluster_blocks):
        if (mask >> block) & 1:
            clusters.turn_to(m, block)
            _start_run_to(m, pc, warp, lane, to, data, size, barrier, clock)
    clusters.turn_home(m, warp)


@compile_native
def _is_allocated(m, pc, warp, lane, address, size):
    """Whether a run of global memory lies in one allocation; reported if not."""
    allocation = find_allocation(m, address)
    if allocation and address + size <= int64(read64(allocation + 8)):
        return True
    report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
    return False


@compile_native
def _read_run(m, pc, warp, lane, source, size, clock):
    """Check what a copy reads of the shared memory at hand."""
    agent = m.tensor_agent + warp
    for place in range(0, size, 16):
        read_shared(m, pc, warp, lane, agent, clock, source + place, 16)


@compile_native
def _start_run_to(m, pc, warp, lane, to, data, size, barrier, clock):
    """A run to the shared memory at hand, of bytes at the address `data` of this
    process, which is that of global memory or of a block's shared memory.
    """
    shared = to & _OFFSET_MASK
    if not is_in_shared(m, shared, size):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, shared, -1)
        return
    number = _find_mbarrier(m, pc, warp, lane, barrier & _OFFSET_MASK)
    if number < 0:
        return
    agent = m.tensor_agent + warp
    clusters.reach(m, pc, warp, lane, agent, clock, shared)
    new = begin(m, BULK_PENDING, pc, warp, uint32(1))
    new.map = 0
    new.shared = shared
    new.mbarrier = number
    new.bytes = uint32(size)
    new.source[0] = data
    new.clock = clock
    allocation = find_allocation(m, data)
    for place in range(0, size, 16):
        if allocation:
            read_global(m, pc, warp, lane, allocation, data + place, 16)
            check_visible(m, pc, warp, lane, allocation, data + place, 16)
        write_shared(m, pc, warp, lane, agent, clock, shared + place, 16, 0)
    if m.is_early:
        land(m, new)


@compile_native
def _start_store(m, pc, warp, lane, to, source, size, reduction, element_type):
    """A run from the shared memory at hand to global memory."""
    if not is_in_shared(m, source, size):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, source, -1)
        return
    if not _is_allocated(m, pc, warp, lane, to, size):
        return
    new = begin(m, STORE_PENDING, pc, warp, uint32(1))
    new.map = 0
    new.shared = source
    new.bytes = uint32(size)
    new.target[0] = to
    new.reduction = reduction
    new.element_type = element_type
    new.clock = order.issue(m, m.tensor_agent + warp)
    stored = int64(order.issue(m, m.store_agent + warp))
    allocation = find_allocation(m, to)
    for place in range(0, size, 16):
        _note_store(m, pc, warp, lane, new, stored, allocation, to + place, 16)
    _read_run(m, pc, warp, lane, source, size, new.clock)
    if m.is_early:
        land(m, new)


# --- maps made on the device --------------------------------------------------------


@Handler
def replace_in_map(machine, pc, warp, registers, row, mask):
    """tensormap.replace: operands the map's address and the value; parameters the
    field, its ordinal, offset and width of the address, whether in shared memory, and
    the value's bytes.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER + 2)
    width = int64(words[_P0 + 5])
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    for lane in range(LANES):
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        address = _address(registers, row, 0, words[_P0 + 2], words[_P0 + 3], lane)
        value = get(registers + int64(words[HEADER + 1]) + lane * width, width)
        if words[_P0 + 4]:
            address = own_offset(m, address)
            if not is_in_shared(m, address, MAP_BYTES):
                report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
                continue
            write_shared(m, pc, warp, lane, warp, clock, address, MAP_BYTES, 0)
            target = m.shared + address
        else:
            allocation = find_allocation(m, address)
            if not allocation or address + MAP_BYTES > int64(read64(allocation + 8)):
                report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
                continue
            write_global(m, pc, warp, lane, allocation, address, MAP_BYTES)
            target = address
            m.maps_published += 1
        replace_field(
            bytes_at(target, MAP_BYTES),
            int64(words[_P0]),
            int64(words[_P0 + 1]),
            int64(value),
        )
    return DONE


@Handler
def publish_map(machine, pc, warp, registers, row, mask):
    """tensormap.cp_fenceproxy: copy a map from shared to global memory. The warp does
    it together, once.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER + 2)
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    lane = 0
    while not (mask >> uint32(lane)) & uint32(1):
        lane += 1
    to = _address(registers, row, 0, words[_P0 + 1], words[_P0 + 3], lane)
    source = _address(registers, row, 1, words[_P0 + 2], words[_P0 + 4], lane)
    source = own_offset(m, source)
    allocation = find_allocation(m, to)
    if not allocation or to + MAP_BYTES > int64(read64(allocation + 8)):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, to, -1)
        return DONE
    if not is_in_shared(m, source, MAP_BYTES):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, source, -1)
        return DONE
    read_shared(m, pc, warp, lane, warp, clock, source, MAP_BYTES)
    write_global(m, pc, warp, lane, allocation, to, MAP_BYTES)
    copy(to, m.shared + source, MAP_BYTES)
    m.maps_published += 1
    return DONE
