"""tcgen05.commit: mbarriers are told when all products are over that a thread has issued
(PTX ISA, "tcgen05.commit"). With a mask of blocks those at the same address in each of
them are, one arrival each.
"""

from __future__ import annotations

from numba import int64, uint32

from batchline.bench.measure.emulator import (
    clusters,
    mbarriers,
    order,
    tensor_memory,
    tensor_pairs,
    tensor_products,
    tensor_scales,
)
from batchline.bench.measure.emulator.asynchronous import begin, pending_at
from batchline.bench.measure.emulator.layout import (
    HEADER,
    LANES,
    PARAMETERS,
    RANK_SHIFT,
    Finding,
    PendingKind,
)
from batchline.bench.measure.emulator.native import (
    DONE,
    Handler,
    compile_native,
    machine_at,
)
from batchline.bench.measure.emulator.order import read_shared, report
from batchline.bench.measure.emulator.raw import read16, words_at
from batchline.bench.measure.emulator.shared_arrays import is_in_shared

OUT_OF_BOUNDS, MISALIGNED = int(Finding.OUT_OF_BOUNDS), int(Finding.MISALIGNED)
MBARRIER_MISUSE = int(Finding.MBARRIER_MISUSE)
FREE, COMMIT = int(PendingKind.FREE), int(PendingKind.TENSOR_COMMIT)
PRODUCT = int(PendingKind.TENSOR_PRODUCT)
PAIR_PRODUCT, COPY = int(PendingKind.PAIR_PRODUCT), int(PendingKind.TENSOR_COPY)
_HAS_MASK, _OFFSET, _WIDTH = range(PARAMETERS, PARAMETERS + 3)
_OFFSET_MASK = (1 << RANK_SHIFT) - 1


@Handler
def commit(machine, pc, warp, registers, row, mask):
    """tcgen05.commit, for each lane in the mask: operands the mbarrier's address and, of
    a multicast, the mask of blocks.
    """
    m = machine_at(machine)
    for lane in range(LANES):
        if (mask >> uint32(lane)) & uint32(1):
            _commit(m, pc, warp, lane, registers, row)
    return DONE


@compile_native
def _commit(m, pc, warp, lane, registers, row):
    words = words_at(row, HEADER + 2)
    address = tensor_memory.address_of_operand(
        registers, row, 0, words[_OFFSET], words[_WIDTH], lane
    )
    blocks = int64(1) << min(clusters.rank_of(m, warp, address), int64(62))
    if words[_HAS_MASK]:
        blocks = int64(read16(registers + int64(words[HEADER + 1]) + lane * 2))
    if blocks >> m.cluster_blocks:
        report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
        return
    for block in range(m.cluster_blocks):
        if (blocks >> block) & 1:
            clusters.turn_to(m, block)
            _commit_to(m, pc, warp, lane, address & _OFFSET_MASK)
    clusters.turn_home(m, warp)


@compile_native
def _commit_to(m, pc, warp, lane, address):
    """Commit to the mbarrier at an address of the block at hand."""
    if address & 7:
        report(m, MISALIGNED, pc, warp, lane, address, -1)
        return
    if not is_in_shared(m, address, 8):
        report(m, OUT_OF_BOUNDS, pc, warp, lane, address, -1)
        return
    number = mbarriers.find(m, address)
    if number < 0:
        report(m, MBARRIER_MISUSE, pc, warp, lane, address, -1)
        return
    known = words_at(order.clocks_of(m, warp), m.agents)
    read_shared(m, pc, warp, lane, warp, int64(known[warp]), address, 8)
    new = begin(m, COMMIT, pc, warp, uint32(1) << uint32(lane))
    new.mbarrier = number
    agent = m.product_agent + warp
    new.clock = words_at(order.clocks_of(m, agent), m.agents)[agent]
    clusters.reach(m, pc, warp, lane, agent, new.clock, address)
    for other in range(m.n_warps):  # what its products have waited for is over, too
        new.source[other] = known[m.tensor_agent + other]
        new.target[other] = known[m.product_agent + other]
    if m.is_early:
        land(m, new)


@compile_native
def land(m, one):
    """Execute, in order, the products and copies that a commit is for, and arrive at its
    mbarrier, which the block at hand has.
    """
    for number in range(m.first_pending, m.n_pending):
        _land_started(m, pending_at(m, number), one)
    for other in range(m.n_warps):
        mbarriers.hand_on_event(
            m, one.mbarrier, m.tensor_agent + other, one.source[other]
        )
        mbarriers.hand_on_event(
            m, one.mbarrier, m.product_agent + other, one.target[other]
        )
    one.kind = FREE
    agent = m.product_agent + one.warp
    mbarriers.arrive_for(m, one.pc, one.warp, one.mbarrier, 1, agent, one.clock)


@compile_native
def _land_started(m, started, one):
    """Execute a product or a copy of scales, if the commit is for it."""
    if started.warp != one.warp or started.clock > one.clock:
        return
    if started.kind == PRODUCT:
        tensor_products.land(m, started)
    elif started.kind == PAIR_PRODUCT:
        tensor_pairs.land(m, started)
    elif started.kind == COPY:
        tensor_scales.land(m, started)
    else:
        return
    started.kind = FREE
