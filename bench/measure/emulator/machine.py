"""The loop that executes the blocks of a grid (or its clusters of blocks), one after
another, and the warps of a block in turns, each up to where it has to wait.

The lanes of a warp go on together from the lowest of their program counters, which
brings them together again where their paths meet.
"""

from __future__ import annotations

from numba import int64, uint8, uint32, uint64

from batchline.bench.measure.emulator import (
    asynchronous,
    atomics,
    clusters,
    copy_arrivals,
    matrix_units,
    mbarriers,
    memory_access,
    order,
    releases,
    tensor_commits,
    tensor_copies,
    tensor_memory,
    tensor_pairs,
    tensor_products,
    tensor_scales,
    warp_wide,
    wmma,
)
from batchline.bench.measure.emulator.layout import (
    BARRIER,
    BARRIERS,
    FEEDS_WGMMA,
    FLAGS,
    GUARD,
    GUARD_NEGATED,
    HEADER,
    KIND,
    LANES,
    OPERANDS,
    PARAMETERS,
    SLOT_SHIFT,
    Finding,
    Kind,
    PendingKind,
    Status,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_for_python,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import report, warp_at
from batchline.bench.measure.emulator.raw import (
    address_of,
    call,
    call_handler,
    copy,
    count_ones,
    fill,
    longs_at,
    lowest_one,
    read32,
    record_reader,
    words_at,
    write32,
)

ARITHMETIC, BRANCH, EXIT = int(Kind.ARITHMETIC), int(Kind.BRANCH), int(Kind.EXIT)
NOTHING, AT_A_BARRIER, WGMMA = int(Kind.NOTHING), int(Kind.BARRIER), int(Kind.WGMMA)

READY, AT_BARRIER = int(Status.READY), int(Status.AT_BARRIER)
AT_MBARRIER, ENDED = int(Status.AT_MBARRIER), int(Status.ENDED)
AT_CLUSTER = int(Status.AT_CLUSTER)
DIVERGENT_BARRIER = int(Finding.DIVERGENT_BARRIER)
DEADLOCK, HANG = int(Finding.DEADLOCK), int(Finding.HANG)
MISSING_WAIT, TRAP = int(Finding.MISSING_WAIT), int(Finding.TRAP)
TENSOR_STORE_PENDING = int(PendingKind.TENSOR_STORE)

SYNC, ARRIVE, COUNT, AND, OR = range(5)  # parameter 0 of a BARRIER
FULL = uint32(0xFFFFFFFF)
NO_PC = 1 << 40
_P0, _P1 = PARAMETERS, PARAMETERS + 1
_UNFINISHED_ROUNDS = 2000  # in which warps only ask: then it is a hang

_barrier = record_reader(BARRIER)
_BARRIER_BYTES = BARRIER.itemsize


@compile_native
def registers_of(m, warp):
    return m.registers + warp * m.register_bytes


@compile_native
def next_random(m):
    """A number from 0 to 2**31 - 1 (xorshift)."""
    value = uint64(m.random)
    value ^= value << uint64(13)
    value ^= value >> uint64(7)
    value ^= value << uint64(17)
    m.random = int64(value)
    return int64(value >> uint64(33))


# --- the lanes of a warp ------------------------------------------------------------


@compile_native
def regroup(m, state, pc):
    """Go on with the lanes at the lowest program counter; False if all wait.

    `pc` is where the lanes are that went on until now.
    """
    lane_pc = state.lane_pc
    for lane in range(LANES):
        if (state.mask >> uint32(lane)) & uint32(1):
            lane_pc[lane] = pc
    able = state.alive & ~state.parked
    lowest, second = int64(NO_PC), int64(NO_PC)
    mask = uint32(0)
    for lane in range(LANES):
        if not (able >> uint32(lane)) & uint32(1):
            continue
        place = int64(lane_pc[lane])
        if place < lowest:
            second = lowest
            lowest = place
            mask = uint32(1) << uint32(lane)
        elif place == lowest:
            mask |= uint32(1) << uint32(lane)
        elif place < second:
            second = place
    state.mask = mask
    state.pc = lowest
    state.other_pc = second
    state.is_split = 1 if mask != state.alive else 0
    return mask != 0


@Handler
def run_warp(machine, pc, warp, registers, row, mask):
    """Execute a warp until it waits, ends, or has had its turn. All but the machine and
    the warp is without meaning here.
    """
    m = machine_at(machine)
    state = warp_at(m, warp)
    registers = registers_of(m, warp)
    at = words_at(m.at, m.instructions + 1)
    functions = longs_at(m.functions, m.instructions)
    executed = longs_at(m.executed, m.instructions)
    lanes = longs_at(m.lanes, m.instructions)
    state.is_asking = 0
    if state.is_split and not regroup(m, state, state.pc):
        state.status = AT_MBARRIER
        return DONE
    pc, mask, other_pc = state.pc, state.mask, state.other_pc
    left = m.quantum
    while left > 0:
        left -= 1
        row = m.code + int64(at[pc]) * 4
        words = words_at(row, HEADER)
        kind = words[KIND]
        able = mask
        if words[GUARD] >= 0:
            guard = read32(registers + int64(words[GUARD]))
            able = mask & (~guard if words[FLAGS] & GUARD_NEGATED else guard)
        executed[pc] += 1
        lanes[pc] += count_ones(able)
        if state.products and able and kind != WGMMA:
            call_handler(m.require, machine, pc, warp, registers, row, able)
        if kind == ARITHMETIC:
            if able:
                call(functions[pc], registers, row + HEADER * 4, able)
                if words[FLAGS] & FEEDS_WGMMA:
                    call_handler(m.mark, machine, pc, warp, registers, row, able)
            pc += 1
        elif kind == BRANCH:
            target = int64(words[_P0])
            if able == mask:
                pc = target
            elif able == 0:
                pc += 1
            else:
                for lane in range(LANES):
                    if (able >> uint32(lane)) & uint32(1):
                        state.lane_pc[lane] = target
                state.mask = mask & ~able
                regroup(m, state, pc + 1)
                pc, mask, other_pc = state.pc, state.mask, state.other_pc
        elif kind == NOTHING:
            pc += 1
        else:
            state.pc = pc
            state.mask = mask
            if able or kind == AT_A_BARRIER:
                is_done = DONE == call_handler(
                    functions[pc], machine, pc, warp, registers, row, able
                )
                if words[FLAGS] & FEEDS_WGMMA:
                    call_handler(m.mark, machine, pc, warp, registers, row, able)
            else:
                is_done = True
            if state.status == ENDED:
                break
            if kind == EXIT and able:
                pc, mask, other_pc = state.pc, state.mask, state.other_pc
                if not mask:
                    break
                pc -= 1
            if not is_done:  # it is executed again
                if state.parked:
                    if not regroup(m, state, pc):
                        state.status = AT_MBARRIER
                        break
                    pc, mask, other_pc = state.pc, state.mask, state.other_pc
                continue
            pc += 1
            if state.status != READY or state.is_asking:
                break
        if state.is_split and pc >= other_pc:
            state.mask = mask
            regroup(m, state, pc)
            pc, mask, other_pc = state.pc, state.mask, state.other_pc
    m.steps += m.quantum - left
    if state.status != ENDED and mask:
        state.pc = pc
        state.mask = mask
    return DONE


@Handler
def trap(machine, pc, warp, registers, row, mask):
    """trap, of the lanes that end after it: on a GPU the launch fails."""
    report(machine_at(machine), TRAP, pc, warp, lowest_one(mask), 0, -1)
    return DONE


@Handler
def exit_lanes(machine, pc, warp, registers, row, mask):
    """ret and exit: the lanes end; the block's barriers no longer wait for them."""
    m = machine_at(machine)
    state = warp_at(m, warp)
    before = state.mask
    state.alive = state.alive & ~mask
    state.mask = before & ~mask
    if state.mask:
        state.pc = pc + 1
        state.is_split = 1 if state.mask != state.alive else 0
        return DONE
    if state.alive:
        if not regroup(m, state, pc):
            state.status = AT_MBARRIER
        return DONE
    state.status = ENDED
    if m.has_cluster_barrier:
        clusters.leave(m, pc, warp)
    if m.has_products:
        asynchronous.require_group(m, pc, warp)
    if m.has_tensor_memory:
        tensor_memory.require_freed(m, pc, warp)
    for number in range(m.first_pending, m.n_pending):
        one = asynchronous.pending_at(m, number)
        if one.kind == TENSOR_STORE_PENDING and one.warp == warp:
            report(m, MISSING_WAIT, one.pc, warp, -1, 0, pc)
            break
    for number in range(BARRIERS):
        release_if_complete(m, number)
    return DONE


# --- barriers of a block ------------------------------------------------------------


@compile_native
def barrier_at(m, number):
    return _barrier(m.barriers + number * _BARRIER_BYTES)


@compile_native
def _barrier_clocks(m, number, which):
    """The address of what has arrived at a barrier (0), of that what the asynchronous
    proxy may see (1), or of what had arrived when it last let warps go on (2).
    """
    return m.barrier_clocks + (number * 3 + which) * m.agents * 4


@compile_native
def _knows_last_use(m, warp, number):
    """Whether a warp knows that all have arrived that a barrier last waited for: else
    it could have been counted as one of them.
    """
    known = words_at(order.clocks_of(m, warp), m.agents)
    last = words_at(_barrier_clocks(m, number, 2), m.agents)
    for other in range(m.n_warps):
        # Some lanes may have handed on what their warp has done.
        if max(known[other], known[m.lane_agent + other]) < last[other]:
            return False
    return True


@Handler
def arrive_at_barrier(machine, pc, warp, registers, row, mask):
    """bar and barrier: operands its number, maybe the count of threads; of a reduction
    the result before them and the predicate behind. Whole warps arrive.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER + 4)
    state = warp_at(m, warp)
    mode = words[_P0]
    is_reduction = mode >= COUNT
    place = HEADER + (1 if is_reduction else 0)
    count = int64(words[OPERANDS]) - (2 if is_reduction else 0)
    if not mask and count > 1:
        return DONE  # not one of the warps that it counts
    if mask != state.alive:
        report(m, DIVERGENT_BARRIER, pc, warp, lowest_one(state.alive & ~mask), 0, -1)
        if not mask:
            return DONE
    lane = lowest_one(mask)
    number = int64(read32(registers + int64(words[place]) + lane * 4))
    expected = (
        int64(read32(registers + int64(words[place + 1]) + lane * 4))
        if count > 1
        else int64(0)
    )
    if number >= BARRIERS or expected % LANES:
        report(m, DIVERGENT_BARRIER, pc, warp, lane, number, -1)
        return DONE
    barrier = barrier_at(m, number)
    if not _knows_last_use(m, warp, number):
        report(m, DIVERGENT_BARRIER, pc, warp, lane, number, barrier.pc)
    if barrier.arrived == 0:
        barrier.expected = expected
        barrier.value = 1 if mode == AND else 0
        barrier.pc = pc
    elif barrier.expected != expected:
        report(m, DIVERGENT_BARRIER, pc, warp, lane, number, barrier.pc)
    if is_reduction:
        asked = read32(registers + int64(words[place + count])) & mask
        if words[_P1]:
            asked = ~asked & mask
        if mode == COUNT:
            barrier.value += count_ones(asked)
        elif mode == AND:
            barrier.value &= 1 if asked == mask else 0
        else:
            barrier.value |= 1 if asked else 0
    barrier.arrived += LANES
    order.join(m, _barrier_clocks(m, number, 0), order.clocks_of(m, warp))
    order.join(m, _barrier_clocks(m, number, 1), order.fenced_of(m, warp))
    if state.fenced and m.seen:
        barrier.fenced = 1
        order.join(m, releases.fenced_at(m, number), releases.fenced_of(m, warp))
    if mode == ARRIVE:
        order.tick(m, warp)
    else:
        barrier.warps = barrier.warps | (uint64(1) << uint64(warp))
        state.status = AT_BARRIER
        state.barrier_pc = pc
    release_if_complete(m, number)
    return DONE


@compile_native
def release_if_complete(m, number):
    """Let the warps of a barrier go on if all have arrived that it waits for."""
    barrier = barrier_at(m, number)
    if barrier.arrived == 0:
        return
    wanted = barrier.expected
    first = m.rank * m.block_warps
    if wanted == 0:
        for warp in range(first, first + m.block_warps):
            if warp_at(m, warp).status != ENDED:
                wanted += LANES
    if barrier.arrived < wanted:
        return
    for warp in range(first, first + m.block_warps):
        if not (barrier.warps >> uint64(warp)) & uint64(1):
            continue
        state = warp_at(m, warp)
        order.join(m, order.clocks_of(m, warp), _barrier_clocks(m, number, 0))
        order.join(m, order.fenced_of(m, warp), _barrier_clocks(m, number, 1))
        if barrier.fenced:
            state.fenced = FULL
            order.join(m, releases.fenced_of(m, warp), releases.fenced_at(m, number))
        order.sync_lanes(m, warp)
        _write_reduction(m, warp, state, barrier.value)
        state.status = READY
    copy(_barrier_clocks(m, number, 2), _barrier_clocks(m, number, 0), m.agents * 4)
    barrier.arrived = 0
    barrier.fenced = 0
    barrier.warps = uint64(0)


@compile_native
def _write_reduction(m, warp, state, value):
    """Its result, to each lane of a warp that waited at a reduction."""
    at = words_at(m.at, m.instructions + 1)
    row = m.code + int64(at[state.barrier_pc]) * 4
    words = words_at(row, HEADER + 1)
    if words[KIND] != AT_A_BARRIER or words[_P0] < COUNT:
        return
    registers = registers_of(m, warp)
    target = registers + int64(words[HEADER])
    if words[_P0] == COUNT:
        for lane in range(LANES):
            if (state.mask >> uint32(lane)) & uint32(1):
                write32(target + lane * 4, uint32(value))
    else:
        kept = read32(target) & ~state.mask
        write32(target, uint32(kept | state.mask) if value else uint32(kept))


# --- blocks -------------------------------------------------------------------------


@compile_native
def begin_block(m, block):
    """Reset all that a block, or a cluster of blocks, starts with."""
    m.block = block
    m.steps = 0
    m.first_pending = m.n_pending
    for rank in range(m.cluster_blocks):
        clusters.turn_to(m, rank)
        m.n_mbarriers = 0
        fill(m.shared, uint8(255), m.shared_bytes)
        fill(m.shared_state, uint8(0), m.shared_bytes)
        fill(m.barriers, uint8(0), BARRIERS * _BARRIER_BYTES)
    fill(m.local, uint8(255), m.local_bytes * LANES * m.n_warps)
    fill(m.local_written, uint8(0), m.local_bytes * LANES * m.n_warps)
    order.begin_block(m)
    if m.cluster_blocks > 1:
        clusters.begin(m)
    if m.has_tensor_memory:
        tensor_memory.begin_block(m)
    for rank in range(m.cluster_blocks):
        _number_block(m, block, rank)
    for warp in range(m.n_warps):
        _begin_warp(m, warp)
    if m.has_products:
        slots = (m.register_bytes >> SLOT_SHIFT) * m.n_warps
        fill(m.in_flight, uint8(0), slots)
        fill(m.dirty, uint8(0), slots * 4)


@compile_native
def _begin_warp(m, warp):
    state = warp_at(m, warp)
    threads = min(int64(LANES), m.threads - warp % m.block_warps * LANES)
    alive = FULL if threads == LANES else uint32((1 << threads) - 1)
    state.pc = 0
    state.other_pc = NO_PC
    state.mask = alive
    state.alive = alive
    state.parked = uint32(0)
    state.status = READY
    state.is_split = 0
    state.fenced = uint32(0)
    state.fenced_in_block = uint32(0)
    state.lanes_met = 0
    state.lanes_fenced = 0
    order.sync_lanes(m, warp)
    state.touched = 0
    state.acquired = 0
    state.copy_groups = 0
    state.bulk_groups = 0
    state.products = 0
    state.product_groups = 0
    state.product_trace = 0
    state.fences = 1
    state.is_asking = 0
    state.cluster_phase = 0


@compile_native
def _number_block(m, cluster, rank):
    """Note the number of the block with this rank in its cluster, and write its
    %ctaid and %clusterid.
    """
    across, down = m.grid_x // m.cluster_x, m.grid_y // m.cluster_y
    cluster_x, cluster_y = cluster % across, cluster // across % down
    cluster_z = cluster // (across * down)
    x = cluster_x * m.cluster_x + rank % m.cluster_x
    y = cluster_y * m.cluster_y + rank // m.cluster_x % m.cluster_y
    z = cluster_z * m.cluster_z + rank // (m.cluster_x * m.cluster_y)
    number = x + m.grid_x * (y + m.grid_y * z)
    longs_at(m.block_numbers, m.cluster_blocks)[rank] = number
    first = rank * m.block_warps
    for warp in range(first, first + m.block_warps):
        _write_special(m, warp, 0, x)
        _write_special(m, warp, 1, y)
        _write_special(m, warp, 2, z)
        _write_special(m, warp, 3, cluster_x)
        _write_special(m, warp, 4, cluster_y)
        _write_special(m, warp, 5, cluster_z)


@compile_native
def _write_special(m, warp, number, value):
    """The row of a special register, whose place `specials` has (or -1)."""
    place = longs_at(m.specials, 6)[number]
    if place < 0:
        return
    base = registers_of(m, warp) + place
    for lane in range(LANES):
        write32(base + lane * 4, uint32(value))


@compile_native
def run_block(m, block):
    """Execute one block, or the blocks of one cluster side by side, to their end, or to
    where nothing goes on.
    """
    begin_block(m, block)
    turns = longs_at(m.warp_order, m.n_warps)
    idle_rounds = 0
    while True:
        ran, only_asked, alive = 0, True, 0
        for turn in range(m.n_warps):
            warp = turns[turn]
            state = warp_at(m, warp)
            if state.status == ENDED:
                continue
            alive += 1
            if state.status != READY:
                continue
            ran += 1
            clusters.turn_home(m, warp)
            call_handler(m.run_warp, address_of(m), 0, warp, 0, 0, FULL)
            if not state.is_asking:
                only_asked = False
            if _hangs(m):
                _report_where(m, HANG)
                return
        if alive == 0:
            return
        if ran and not only_asked:
            idle_rounds = 0
            continue
        if m.land_one and DONE == call_handler(
            m.land_one, address_of(m), 0, 0, 0, 0, FULL
        ):
            continue
        idle_rounds += 1
        if ran == 0:
            _report_where(m, DEADLOCK)
            return
        if idle_rounds > _UNFINISHED_ROUNDS:
            _report_where(m, HANG)
            return


@compile_native
def _hangs(m):
    """Whether a warp is left after as many instructions as a block may take."""
    if m.steps <= m.most_steps:
        return False
    for warp in range(m.n_warps):
        if warp_at(m, warp).status != ENDED:
            return True
    return False


@compile_native
def _report_where(m, kind):
    """Report each place where a warp that is not done is."""
    for warp in range(m.n_warps):
        state = warp_at(m, warp)
        if state.status != ENDED:
            lane = lowest_one(state.alive)
            pc = state.pc if state.pc < NO_PC else int64(state.lane_pc[lane])
            if state.status == AT_BARRIER or state.status == AT_CLUSTER:
                pc = int64(state.barrier_pc)
            report(m, kind, pc, warp, lane, 0, -1)
    m.stop = 1


@compile_native
def shuffle_turns(m):
    """Draw the order in which the warps of a block take turns."""
    turns = longs_at(m.warp_order, m.n_warps)
    for place in range(m.n_warps - 1, 0, -1):
        other = next_random(m) % (place + 1)
        kept = turns[place]
        turns[place] = turns[other]
        turns[other] = kept


@compile_for_python
def run_grid(m, first, last):
    """Execute blocks `first` to `last` of the order in `block_order`."""
    blocks = longs_at(m.block_order, m.n_blocks)
    for warp in range(m.n_warps):
        copy(
            registers_of(m, warp),
            m.constants + warp * m.register_bytes,
            m.register_bytes,
        )
    for place in range(first, last):
        if m.random:
            shuffle_turns(m)
        run_block(m, blocks[place])
        m.longest_block = max(m.longest_block, m.steps)
        if m.stop or m.is_brief and order.has_fault(m):
            return


# What is done for each kind but the first few, which run_warp does itself.
HANDLERS: dict[Kind, Handler] = {
    Kind.EXIT: exit_lanes,
    Kind.TRAP: trap,
    Kind.BARRIER: arrive_at_barrier,
    Kind.WARP_SYNC: warp_wide.synchronise,
    Kind.LOAD: memory_access.load,
    Kind.STORE: memory_access.store,
    Kind.ATOMIC: atomics.update_memory,
    Kind.SHUFFLE: warp_wide.shuffle,
    Kind.VOTE: warp_wide.vote,
    Kind.MATCH: warp_wide.match,
    Kind.REDUX: warp_wide.redux,
    Kind.ELECT: warp_wide.elect,
    Kind.ACTIVE_MASK: warp_wide.active_mask,
    Kind.COPY: asynchronous.start_copy,
    Kind.COPY_COMMIT: asynchronous.commit_copies,
    Kind.COPY_WAIT: asynchronous.wait_for_copies,
    Kind.LDMATRIX: warp_wide.load_matrices,
    Kind.STMATRIX: warp_wide.store_matrices,
    Kind.MMA: matrix_units.multiply,
    Kind.WGMMA: asynchronous.start_product,
    Kind.WGMMA_FENCE: asynchronous.fence_products,
    Kind.WGMMA_COMMIT: asynchronous.commit_products,
    Kind.WGMMA_WAIT: asynchronous.wait_for_products,
    Kind.MBARRIER: mbarriers.act,
    Kind.TENSOR_LOAD: tensor_copies.load_tensor,
    Kind.TENSOR_STORE: tensor_copies.store_tensor,
    Kind.BULK_COMMIT: tensor_copies.commit_stores,
    Kind.BULK_WAIT: tensor_copies.wait_for_stores,
    Kind.FENCE_PROXY: order.fence_proxy,
    Kind.FENCE: releases.fence_memory,
    Kind.MAP_REPLACE: tensor_copies.replace_in_map,
    Kind.MAP_PUBLISH: tensor_copies.publish_map,
    Kind.MAP_ACQUIRE: tensor_copies.acquire_map,
    Kind.BULK_COPY: tensor_copies.copy_run,
    Kind.CLUSTER_BARRIER: clusters.act,
    Kind.COPY_ARRIVE: copy_arrivals.start_arrivals,
    Kind.WMMA: wmma.multiply,
    Kind.WMMA_LOAD: wmma.load_fragment,
    Kind.WMMA_STORE: wmma.store_fragment,
    Kind.TCGEN05_ALLOC: tensor_memory.allocate,
    Kind.TCGEN05_DEALLOC: tensor_memory.deallocate,
    Kind.TCGEN05_RELINQUISH: tensor_memory.relinquish,
    Kind.TCGEN05_LD: tensor_memory.load,
    Kind.TCGEN05_ST: tensor_memory.store,
    Kind.TCGEN05_WAIT: tensor_memory.wait,
    Kind.TCGEN05_MMA: tensor_products.start_product,
    Kind.TCGEN05_PAIR_MMA: tensor_pairs.start_product,
    Kind.TCGEN05_COMMIT: tensor_commits.commit,
    Kind.TCGEN05_CP: tensor_scales.start_copy,
}
