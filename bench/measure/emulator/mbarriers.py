"""Barriers in shared memory that count arrivals and bytes (PTX ISA, "mbarrier").

The eight bytes in shared memory are opaque; what they stand for is kept beside them.
Each has four vector clocks: what has arrived in this phase, and what had when the last
phase was completed; of both what is known, and what the asynchronous proxy may see.
"""

from __future__ import annotations

from numba import int64, uint32, uint64

from batchline.bench.measure.emulator import clusters, order
from batchline.bench.measure.emulator.layout import (
    HEADER,
    LANES,
    MBARRIER,
    MBARRIERS,
    PARAMETERS,
    SHARED_MBARRIER,
    SHARED_WINDOW,
    Finding,
    MbarrierAction,
    Status,
)
from batchline.bench.measure.emulator.memory_access import get, put
from batchline.bench.measure.emulator.native import (
    AGAIN,
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import (
    read_shared,
    report,
    write_shared,
    warp_at,
)
from batchline.bench.measure.emulator.raw import (
    bytes_at,
    copy,
    count_ones,
    lowest_one,
    read32,
    record_reader,
    words_at,
    write32,
)
from batchline.bench.measure.emulator.shared_arrays import (
    is_in_shared,
    own_offset,
)

MISUSE = int(Finding.MBARRIER_MISUSE)
UNSUPPORTED = int(Finding.UNSUPPORTED)
MISALIGNED = int(Finding.MISALIGNED)
OUT_OF_BOUNDS = int(Finding.OUT_OF_BOUNDS)
INIT, INVAL = int(MbarrierAction.INIT), int(MbarrierAction.INVAL)
ARRIVE, ARRIVE_EXPECT = int(MbarrierAction.ARRIVE), int(MbarrierAction.ARRIVE_EXPECT)
EXPECT, COMPLETE = int(MbarrierAction.EXPECT), int(MbarrierAction.COMPLETE)
TEST, TRY = int(MbarrierAction.TEST), int(MbarrierAction.TRY)
DROP = int(MbarrierAction.DROP)
READY, AT_MBARRIER = int(Status.READY), int(Status.AT_MBARRIER)

# Where the parameters of an MBARRIER lie in its row.
(
    ACTION,
    OFFSET,
    BASE_BYTES,
    HAS_STATE,
    HAS_COUNT,
    BY_PARITY,
    IN_CLUSTER,
    IS_RELAXED,
) = range(PARAMETERS, PARAMETERS + 8)

_mbarrier = record_reader(MBARRIER)
_BYTES = MBARRIER.itemsize
_LARGEST_COUNT = (1 << 20) - 1
_MOST_BYTES = (1 << 20) - 1


@compile_native
def mbarrier_at(m, number):
    return _mbarrier(m.mbarriers + number * _BYTES)


@compile_native
def find(m, address):
    """The number of the valid mbarrier at an address of shared memory; -1 if none."""
    for number in range(m.n_mbarriers):
        known = mbarrier_at(m, number)
        if known.address == address and known.is_valid:
            return number
    return -1


@compile_native
def overlaps(m, address, count):
    """Whether a valid mbarrier lies in these bytes of shared memory."""
    for number in range(m.n_mbarriers):
        known = mbarrier_at(m, number)
        if known.is_valid and known.address < address + count:
            if address < known.address + 8:
                return True
    return False


@compile_native
def _clocks(m, number, which):
    return m.mbarrier_clocks + (number * 4 + which) * m.agents * 4


@compile_native
def _complete_phase_if_done(m, number):
    """Begin the next phase if nothing is awaited, and wake who waits for it."""
    known = mbarrier_at(m, number)
    if known.pending or known.bytes:
        return
    known.phase += 1
    known.pending = known.expected
    copy(_clocks(m, number, 2), _clocks(m, number, 0), 2 * m.agents * 4)
    first = m.rank * m.block_warps
    for warp in range(first, first + m.block_warps):
        state = warp_at(m, warp)
        if state.parked and state.parked_at == number:
            if (known.phase & 1) != state.parked_parity:
                state.parked = uint32(0)
                if state.status == AT_MBARRIER:
                    state.status = READY


@compile_native
def complete_bytes(m, number, count, agent, clock):
    """`count` bytes that an asynchronous copy has brought (its agent, its clock)."""
    known = mbarrier_at(m, number)
    for which in range(2):
        row = words_at(_clocks(m, number, which), m.agents)
        if row[agent] < clock:
            row[agent] = clock
    known.bytes -= count
    _complete_phase_if_done(m, number)


@compile_native
def hand_on_event(m, number, agent, clock):
    """What arrives in this phase knows event `clock` of an agent."""
    row = words_at(_clocks(m, number, 0), m.agents)
    row[agent] = max(int64(row[agent]), clock)


@compile_native
def arrive_for(m, pc, warp, number, count, agent, clock):
    """`count` threads of a warp arrive on behalf of an agent, whose event `clock` is
    all that they hand on.
    """
    hand_on_event(m, number, agent, clock)
    known = mbarrier_at(m, number)
    known.pending -= count
    if known.pending < 0:
        report(m, MISUSE, pc, warp, -1, known.address, -1)
        known.pending = 0
    _complete_phase_if_done(m, number)


@compile_native
def _arrive(m, pc, warp, mask, number, count, expected_bytes, is_relaxed):
    """Threads of a warp arrive. That releases what they have done before, unless it is
    relaxed and they have made no fence.
    """
    known = mbarrier_at(m, number)
    if not is_relaxed or warp_at(m, warp).fenced & mask == mask:
        order.hand_on(m, warp, mask, _clocks(m, number, 0), order.clocks_of(m, warp))
        order.join(m, _clocks(m, number, 1), order.fenced_of(m, warp))
    known.bytes += expected_bytes
    known.pending -= count
    if known.pending < 0 or abs(known.bytes) > _MOST_BYTES:
        report(m, MISUSE, pc, warp, -1, known.address, -1)
        known.pending = 0
    _complete_phase_if_done(m, number)


@compile_native
def _init(m, pc, warp, address, count):
    number = find(m, address)  # compilers do make one anew without an inval
    if number < 0 and overlaps(m, address, 8) or not 1 <= count <= _LARGEST_COUNT:
        report(m, MISUSE, pc, warp, -1, address, -1)
        return
    for free in range(m.n_mbarriers):
        if number < 0 and not mbarrier_at(m, free).is_valid:
            number = free
    if number < 0:
        if m.n_mbarriers == MBARRIERS:
            report(m, UNSUPPORTED, pc, warp, -1, address, -1)
            return
        number = m.n_mbarriers
        m.n_mbarriers += 1
    made = mbarrier_at(m, number)
    made.address = address
    made.is_valid = 1
    made.expected = count
    made.pending = count
    made.bytes = 0
    made.phase = 0
    for which in range(4):
        row = words_at(_clocks(m, number, which), m.agents)
        for agent in range(m.agents):
            row[agent] = 0


@compile_native
def _mark(m, address, is_there):
    """Note for each byte whether an mbarrier is there."""
    state = bytes_at(m.shared_state, m.shared_bytes)
    for place in range(address, address + 8):
        if is_there:
            state[place] |= SHARED_MBARRIER
        else:
            state[place] &= ~SHARED_MBARRIER


@Handler
def act(machine, pc, warp, registers, row, mask):
    """An mbarrier instruction of the lanes in `mask`; AGAIN if the warp has to wait
    and execute it again. Lanes that name different mbarriers take turns.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER + 2)
    is_test = words[ACTION] == TEST or words[ACTION] == TRY
    place = HEADER + (1 if is_test or words[HAS_STATE] else 0)
    base, width = registers + int64(words[place]), words[BASE_BYTES]
    left = mask
    while left:
        first = get(base + lowest_one(left) * width, width)
        alike = uint32(0)
        for lane in range(LANES):
            if (left >> uint32(lane)) & uint32(1):
                if get(base + lane * width, width) == first:
                    alike |= uint32(1) << uint32(lane)
        if is_test and alike != mask:
            report(m, UNSUPPORTED, pc, warp, lowest_one(mask), int64(first), -1)
            return DONE
        answer = _act_on_one(m, pc, warp, registers, row, alike)
        clusters.turn_home(m, warp)
        if answer != DONE:
            return AGAIN
        left &= ~alike
    return DONE


@compile_native
def _act_on_one(m, pc, warp, registers, row, mask):
    """Those of `act` for lanes that all name one mbarrier.

    Operands: the state (where HAS_STATE), the address, then a count or bytes (where
    HAS_COUNT), or of a test the predicate, the address and the parity or state.
    """
    words = words_at(row, HEADER + 4)
    action = words[ACTION]
    is_test = action == TEST or action == TRY
    place = HEADER + (1 if is_test or words[HAS_STATE] else 0)
    lane = lowest_one(mask)
    base = registers + int64(words[place])
    width = words[BASE_BYTES]
    address = int64(get(base + lane * width, width)) + int64(words[OFFSET])
    if address >= SHARED_WINDOW:
        address -= SHARED_WINDOW
    if address & 7:
        report(m, MISALIGNED, pc, warp, lane, address, -1)
        return DONE
    address = own_offset(m, address)
    if words[IN_CLUSTER]:
        address = clusters.turn_to_address(m, warp, address)
    if not is_in_shared(m, address, 8):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
        return DONE
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    clusters.reach(m, pc, warp, lane, warp, clock, address)
    operand = (
        int64(read32(registers + int64(words[place + 1]) + lane * 4))
        if words[HAS_COUNT]
        else int64(1)
    )
    if action == INIT:
        if find(m, address) >= 0:
            _mark(m, address, False)
            write_shared(m, pc, warp, lane, warp, clock, address, 8, 0)
        elif not overlaps(m, address, 8):
            write_shared(m, pc, warp, lane, warp, clock, address, 8, 0)
        _init(m, pc, warp, address, operand)
        _mark(m, address, True)
        return DONE
    number = find(m, address)
    if number < 0:
        report(m, MISUSE, pc, warp, lane, address, -1)
        if is_test:
            _answer(registers + int64(words[HEADER]), True, mask)
        return DONE
    if action == INVAL:
        _mark(m, address, False)
        write_shared(m, pc, warp, lane, warp, clock, address, 8, 0)
        mbarrier_at(m, number).is_valid = 0
        return DONE
    read_shared(m, pc, warp, lane, warp, clock, address, 8)
    if is_test:
        return DONE if _test(m, warp, registers, row, mask, number) else AGAIN
    lanes = count_ones(mask)
    known = mbarrier_at(m, number)
    if words[HAS_STATE]:
        target = registers + int64(words[HEADER])
        for each in range(32):
            if (mask >> uint32(each)) & uint32(1):
                put(target + each * 8, 8, uint64(known.phase))
    is_relaxed = words[IS_RELAXED] != 0
    if action == ARRIVE or action == DROP:
        if action == DROP:
            known.expected -= operand * lanes
        _arrive(m, pc, warp, mask, number, operand * lanes, 0, is_relaxed)
        order.tick(m, warp)
    elif action == ARRIVE_EXPECT:
        _arrive(m, pc, warp, mask, number, lanes, operand * lanes, is_relaxed)
        order.tick(m, warp)
    elif action == EXPECT:
        known.bytes += operand * lanes
    else:
        known.bytes -= operand * lanes
        _complete_phase_if_done(m, number)
    return DONE


@compile_native
def _answer(address, is_done, mask):
    before = read32(address) & ~mask
    write32(address, uint32(before | mask) if is_done else uint32(before))


@compile_native
def _test(m, warp, registers, row, mask, number):
    """test_wait and try_wait: whether the phase with a parity, or of a state, is
    complete. A try_wait whose phase is not parks its lanes.
    """
    words = words_at(row, HEADER + 3)
    known = mbarrier_at(m, number)
    lane = lowest_one(mask)
    if words[BY_PARITY]:
        asked = int64(read32(registers + int64(words[HEADER + 2]) + lane * 4)) & 1
        is_done = (known.phase & 1) != asked
    else:
        asked = int64(get(registers + int64(words[HEADER + 2]) + lane * 8, 8))
        is_done = known.phase > asked
    state = warp_at(m, warp)
    if is_done:
        order.join(m, order.clocks_of(m, warp), _clocks(m, number, 2))
        handed = words_at(_clocks(m, number, 2), m.agents)
        state.lanes_synced = max(state.lanes_synced, handed[warp] + 1)
        copied = handed[m.copy_agent + warp]
        state.copies_synced = max(state.copies_synced, copied)
        order.join(m, order.fenced_of(m, warp), _clocks(m, number, 3))
    elif words[ACTION] == TRY and not state.parked:
        state.parked = mask
        state.parked_at = number
        state.parked_parity = asked & 1
        return False
    else:
        state.is_asking = 1
    _answer(registers + int64(words[HEADER]), is_done, mask)
    return True
