"""Atomics on global and shared memory (PTX ISA, "atom", "red")."""

from __future__ import annotations

import numpy as np
from numba import float64, int32, int64, uint32, uint64

from batchline.bench.measure.emulator import clusters, order
from batchline.bench.measure.emulator.layout import (
    HAS_RESULT,
    HEADER,
    IS_OF_BLOCK,
    LANES,
    FIRST_RANK,
    RANK_SHIFT,
    SHARED_WINDOW,
    Number,
    Space,
    Update,
)
from batchline.bench.measure.emulator.memory_access import (
    ACTION,
    BYTES,
    ELEMENTS,
    SIGNED,
    SPACE,
    alike,
    count_passes,
    count_sectors,
    gather_addresses,
    get,
    locate,
    put,
    space_of,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.number_formats import (
    decode_bf16,
    decode_f16,
    encode_bf16,
    encode_f16,
)
from batchline.bench.measure.emulator.order import update_global, update_shared
from batchline.bench.measure.emulator.raw import longs_at, lowest_one, words_at
from batchline.bench.measure.emulator.releases import is_ordering, synchronise

GLOBAL = int(Space.GLOBAL)
ADD, MIN, MAX, AND = (
    int(Update.ADD),
    int(Update.MIN),
    int(Update.MAX),
    int(Update.AND),
)
OR, XOR, EXCHANGE, COMPARE = (
    int(Update.OR),
    int(Update.XOR),
    int(Update.EXCHANGE),
    int(Update.COMPARE),
)
INCREMENT, DECREMENT = int(Update.INCREMENT), int(Update.DECREMENT)
SIGNED_NUMBER, FLOAT = int(Number.SIGNED), int(Number.FLOAT)
F16_PAIR, BF16_PAIR = int(Number.F16_PAIR), int(Number.BF16_PAIR)
F16, BF16 = int(Number.F16), int(Number.BF16)


@Handler
def update_memory(machine, pc, warp, registers, row, mask):
    """atom and red: operands the results (of an atom), the address, the values, one for
    each element, and of a compare-and-swap the new value. The lanes take their turns in
    order.
    """
    m = machine_at(machine)
    words = words_at(row, HEADER)
    place = int64(words[ELEMENTS]) if int64(words[ACTION]) & HAS_RESULT else int64(0)
    while mask:
        group = alike(m, registers, row, place, mask)
        mask &= ~group
        _update(m, pc, warp, registers, row, group)
        clusters.turn_home(m, warp)
    return DONE


@compile_native
def _update(m, pc, warp, registers, row, mask):
    words = words_at(row, HEADER)
    action = int64(words[ACTION])
    elements = int64(words[ELEMENTS])
    size = elements * int64(words[BYTES])
    place = elements if action & HAS_RESULT else int64(0)
    gather_addresses(m, registers, row, place, mask)
    space = space_of(m, warp, words[SPACE], mask)
    addresses = longs_at(m.scratch, LANES)
    clock = words_at(order.clocks_of(m, warp), m.agents)[warp]
    if m.is_counting:
        if space == GLOBAL:
            count_sectors(m, pc, mask, size, True)
        else:
            count_passes(m, pc, mask, size)
    is_of_block = action & IS_OF_BLOCK != 0
    if space != GLOBAL:
        lane = lowest_one(mask)
        clusters.reach(m, pc, warp, lane, warp, clock, addresses[lane])
    for lane in range(LANES):
        if not (mask >> uint32(lane)) & uint32(1):
            continue
        address = addresses[lane]
        target, allocation = locate(m, pc, warp, lane, space, address, size, False)
        if not target:
            continue
        if allocation:
            update_global(m, pc, warp, lane, allocation, address, size, is_of_block)
            if m.seen:
                synchronise(m, warp, lane, address, action)
        else:
            update_shared(m, pc, warp, lane, clock, address, size)
            if m.seen and is_ordering(m, warp, action):
                key = SHARED_WINDOW + ((m.rank + FIRST_RANK) << RANK_SHIFT) + address
                synchronise(m, warp, lane, key, action | IS_OF_BLOCK)
        for element in range(elements):
            _update_element(registers, row, place, lane, element, target)


@compile_native
def _update_element(registers, row, place, lane, element, target):
    """One element of a lane's atomic, of those that lie from the address `target` on;
    `place` is the address's among the operands.
    """
    words = words_at(row, HEADER + place + 3 + element)
    action, size = int64(words[ACTION]), int64(words[BYTES])
    update = action & 0xFF
    address, of_lane = target + element * size, lane * size
    before = get(address, size)
    first = HEADER + place + 1 + element
    value = get(registers + int64(words[first]) + of_lane, size)
    new = value
    if update == COMPARE:
        wanted = get(registers + int64(words[first + 1]) + of_lane, size)
        new = wanted if before == value else before
    elif update != EXCHANGE:
        new = _updated(update, int64(words[SIGNED]), size, before, value)
    put(address, size, new)
    if action & HAS_RESULT:
        put(registers + int64(words[HEADER + element]) + of_lane, size, before)


@compile_native
def _updated(update, number, size, before, value):
    if number == FLOAT:
        return _float_updated(update, size, before, value)
    if number == F16_PAIR or number == F16:
        return _halves_updated(update, True, size // 2, before, value)
    if number == BF16_PAIR or number == BF16:
        return _halves_updated(update, False, size // 2, before, value)
    if update == ADD:
        return uint64(before + value)
    if update == AND:
        return before & value
    if update == OR:
        return before | value
    if update == XOR:
        return before ^ value
    if update == INCREMENT:
        return uint64(0) if before >= value else uint64(before + uint64(1))
    if update == DECREMENT:
        is_over = before == uint64(0) or before > value
        return value if is_over else uint64(before - uint64(1))
    if number == SIGNED_NUMBER:
        if size == 4:
            is_less = int32(uint32(value)) < int32(uint32(before))
        else:
            is_less = int64(value) < int64(before)
    else:
        is_less = value < before
    return value if is_less == (update == MIN) else before


@compile_native
def _float_updated(update, size, before, value):
    if size == 4:
        old = float64(np.uint32(before).view(np.float32))
        given = float64(np.uint32(value).view(np.float32))
        new = _chosen(update, old, given)
        return uint64(np.float32(new).view(np.uint32))
    new = _chosen(
        update,
        np.uint64(before).view(np.float64),
        np.uint64(value).view(np.float64),
    )
    return np.float64(new).view(np.uint64)


@compile_native
def _chosen(update, old, given):
    if update == ADD:
        return old + given
    if update == MIN:
        return given if given < old or old != old else old
    return given if given > old or old != old else old


@compile_native
def _halves_updated(update, is_f16, count, before, value):
    """Of `count` numbers of 16 bits, the first in the lowest bits."""
    outcome = uint64(0)
    for half in range(count):
        shift = uint64(16 * half)
        old = uint32((before >> shift) & uint64(0xFFFF))
        given = uint32((value >> shift) & uint64(0xFFFF))
        if is_f16:
            new = _chosen(update, decode_f16(old), decode_f16(given))
            bits = encode_f16(new, 0, False)
        else:
            new = _chosen(update, decode_bf16(old), decode_bf16(given))
            bits = encode_bf16(new, 0, False)
        outcome |= uint64(bits) << shift
    return outcome
