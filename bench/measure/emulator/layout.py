"""How a program and a machine lie in memory: what program.py writes and the compiled
code reads.

An instruction is a row of int32 words: a header of HEADER words, then the byte offsets
of its operands' rows in a warp's registers. The header is kind, offset of the guard's
word (-1: none), flags, count of operands, and up to eight parameters of its kind.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

HEADER = 12
KIND, GUARD, FLAGS, OPERANDS, PARAMETERS = range(5)
GUARD_NEGATED = 1
FEEDS_WGMMA = 2  # it writes a register that a wgmma reads or accumulates in
WRITTEN_SHIFT = 8  # of the flags: how many of the first operands it writes
SLOT_SHIFT = 6  # a register's slot in the tables of what is in flight: 64 bytes each
LANES = 32

# Generic addresses of shared and local memory: no process has memory there.
SHARED_WINDOW = 1 << 56
LOCAL_WINDOW = 1 << 57
WINDOW_BYTES = 1 << 32
RANK_SHIFT = 24  # of shared memory: the bits above name a block of the cluster
FIRST_RANK = 2  # which is there of rank 0; 0 names no block: it is the own one


class Kind(IntEnum):
    """What the machine does for an instruction."""

    ARITHMETIC = 0
    BRANCH = 1
    EXIT = 2
    NOTHING = 3
    BARRIER = 4
    WARP_SYNC = 5
    LOAD = 6
    STORE = 7
    ATOMIC = 8
    SHUFFLE = 9
    VOTE = 10
    MATCH = 11
    REDUX = 12
    ELECT = 13
    ACTIVE_MASK = 14
    COPY = 15
    COPY_COMMIT = 16
    COPY_WAIT = 17
    LDMATRIX = 18
    STMATRIX = 19
    MMA = 20
    WGMMA = 21
    WGMMA_FENCE = 22
    WGMMA_COMMIT = 23
    WGMMA_WAIT = 24
    MBARRIER = 25
    TENSOR_LOAD = 26
    TENSOR_STORE = 27
    BULK_COMMIT = 28
    BULK_WAIT = 29
    FENCE_PROXY = 30
    FENCE = 31
    MAP_REPLACE = 32
    MAP_PUBLISH = 33
    MAP_ACQUIRE = 34
    BULK_COPY = 35
    COPY_ARRIVE = 36
    WMMA = 37
    WMMA_LOAD = 38
    WMMA_STORE = 39
    CLUSTER_BARRIER = 40
    TCGEN05_ALLOC = 41
    TCGEN05_DEALLOC = 42
    TCGEN05_RELINQUISH = 43
    TCGEN05_LD = 44
    TCGEN05_ST = 45
    TCGEN05_WAIT = 46
    TCGEN05_MMA = 47
    TCGEN05_COMMIT = 48
    TRAP = 49
    TCGEN05_PAIR_MMA = 50
    TCGEN05_CP = 51


class Space(IntEnum):
    """Where an address points to."""

    GENERIC = 0
    GLOBAL = 1
    SHARED = 2
    LOCAL = 3
    CLUSTER = 4  # shared memory of any block of the cluster


class Status(IntEnum):
    """What a warp waits for."""

    READY = 0
    AT_BARRIER = 1
    AT_MBARRIER = 2
    ENDED = 3
    AT_CLUSTER = 4


class BulkCopy(IntEnum):
    """What cp.async.bulk copies from where."""

    STORE = 0  # from shared memory to global memory
    LOAD = 1  # from global memory to shared memory, of this block or others
    TO_BLOCK = 2  # from shared memory to that of a block of the cluster


class MbarrierAction(IntEnum):
    INIT = 0
    INVAL = 1
    ARRIVE = 2
    ARRIVE_EXPECT = 3
    EXPECT = 4
    COMPLETE = 5
    TEST = 6
    TRY = 7
    DROP = 8  # an arrival of threads that later phases do not wait for


class Update(IntEnum):
    """What an atomic does with the value in memory."""

    ADD = 0
    MIN = 1
    MAX = 2
    AND = 3
    OR = 4
    XOR = 5
    EXCHANGE = 6
    COMPARE = 7
    INCREMENT = 8
    DECREMENT = 9


class Number(IntEnum):
    """How an atomic reads the bits in memory."""

    UNSIGNED = 0
    SIGNED = 1
    FLOAT = 2
    F16_PAIR = 3
    BF16_PAIR = 4
    F16 = 5
    BF16 = 6


RELEASES, ACQUIRES, HAS_RESULT = 1 << 8, 1 << 9, 1 << 10  # beside an atomic's Update
IS_OF_BLOCK, IS_STRONG = 1 << 11, 1 << 12  # of scope .cta; ordered like an atomic
IS_READ_ONLY = 1 << 13  # ld.global.nc: of what the launch does not write
SYNCS = 256  # addresses of atomics that order blocks
GROUPS = 64  # of bulk stores, whose clocks are kept
MOST_ORDERED_BLOCKS = 4096


class Finding(IntEnum):
    """What a check found; `execution.WORDS` has the word and the sentence of each."""

    NONE = 0
    OUT_OF_BOUNDS = 1
    PAST_THE_END = 2
    MISALIGNED = 3
    UNINITIALISED_GLOBAL = 4
    UNINITIALISED_SHARED = 5
    RACE_SHARED = 6
    RACE_GLOBAL = 7
    MISSING_WAIT = 8
    MISSING_FENCE = 9
    MISSING_PROXY_FENCE = 10
    DIVERGENT_BARRIER = 11
    DEADLOCK = 12
    MBARRIER_MISUSE = 13
    BAD_DESCRIPTOR = 14
    HANG = 15
    UNSUPPORTED = 16
    UNINITIALISED_LOCAL = 17
    BLOCK_LIFETIME = 18
    UNINITIALISED_TENSOR = 19
    RACE_TENSOR = 20
    TENSOR_ALLOCATION = 21
    TRAP = 22


# int64: start, end, shadow, writers, readers, flags, granule shift, none
ALLOCATION_WORDS = 8
SHADOW_INITIALISED, SHADOW_READ, SHADOW_WRITTEN = 1, 2, 4
SHARED_WRITTEN, SHARED_MBARRIER = 1, 2  # of a byte of shared memory
ALLOCATION_INITIALISED, ALLOCATION_WRITTEN, ALLOCATION_CHECKED = 1, 2, 4

FINDINGS_KEPT = 256
FINDING = np.dtype(
    [
        ("kind", np.int64),
        ("pc", np.int64),
        ("block", np.int64),
        ("warp", np.int64),
        ("lane", np.int64),
        ("address", np.int64),
        ("other_pc", np.int64),
        ("times", np.int64),
    ]
)

WARP = np.dtype(
    [
        ("pc", np.int64),
        ("other_pc", np.int64),  # the lowest of those where its other lanes are
        ("mask", np.uint32),
        ("alive", np.uint32),
        ("parked", np.uint32),  # lanes that wait for a phase of an mbarrier
        ("parked_at", np.int32),
        ("parked_parity", np.int32),
        ("status", np.int32),
        ("is_split", np.int32),
        ("spins", np.int32),  # it has asked in vain since it last got on
        ("fenced", np.uint32),  # lanes that have made a memory fence
        ("fenced_in_block", np.uint32),  # or one of the block's scope
        ("copies", np.int32),  # cp.async issued since the last commit
        ("copy_groups", np.int32),
        ("bulk_groups", np.int32),
        ("bulk_open", np.int32),
        ("products", np.int32),  # wgmma in flight
        ("product_groups", np.int32),
        ("product_trace", np.int32),  # a hash of the wgmma that it has executed
        ("fences", np.int32),  # wgmma.fence so far, plus one
        ("barrier_pc", np.int32),  # of the barrier it waits at, or waited at last
        (
            "touched",
            np.int32,
        ),  # 1 + the number of the atomic that it used last, unfenced
        ("acquired", np.int32),  # its clock when it first acquired; 0: it has not
        ("is_asking", np.int32),  # its last instruction asked an mbarrier in vain
        ("lanes_synced", np.int32),  # its clock when its lanes last waited for all
        ("lanes_met", np.int32),  # and when they last executed an instruction together
        ("lanes_fenced", np.int32),  # and when all of them last made a memory fence
        ("copies_synced", np.int32),  # clock of its copies that all its lanes know of
        ("cluster_phase", np.int32),  # whether it has arrived at the cluster's barrier
        ("lane_pc", np.int32, (LANES,)),
    ],
    align=True,
)

BARRIERS = 16
BARRIER = np.dtype(
    [
        ("arrived", np.int64),  # threads
        ("expected", np.int64),  # threads; 0: all of the block
        ("warps", np.uint64),  # those that wait, a bit for each
        ("value", np.int64),  # of a reduction, so far
        ("pc", np.int64),
        ("fenced", np.int64),  # whether a warp that arrived had made a memory fence
    ]
)

MBARRIERS = 256
MBARRIER = np.dtype(
    [
        ("address", np.int64),
        ("is_valid", np.int64),
        ("expected", np.int64),
        ("pending", np.int64),
        ("bytes", np.int64),  # still to come in this phase
        ("phase", np.int64),
    ]
)

# What a block of a cluster has of its own; see clusters.py.
VIEW = np.dtype(
    [
        (name, np.int64)
        for name in (
            "shared shared_state writers reads barriers barrier_clocks "
            "barrier_fenced mbarriers mbarrier_clocks n_mbarriers"
        ).split()
    ]
)

# Tensor memory of a block: lanes of 32-bit columns, in four parts of as many lanes as a
# warp has; and the warps that reach one part, of 32 in a block.
TENSOR_LANES, TENSOR_COLUMNS, TENSOR_PARTS, TENSOR_WARPS = 128, 512, 4, 8
TENSOR_PLACES = TENSOR_PARTS * TENSOR_COLUMNS

PENDING_MOST = 4096


class PendingKind(IntEnum):
    FREE = 0
    COPY = 1
    TENSOR_LOAD = 2
    TENSOR_STORE = 3
    PRODUCT = 4
    BULK_COPY = 5
    COPY_ARRIVAL = 6
    TENSOR_READ = 7  # tcgen05.ld
    TENSOR_PRODUCT = 8  # tcgen05.mma
    TENSOR_COMMIT = 9  # tcgen05.commit
    PAIR_PRODUCT = 10  # tcgen05.mma of both blocks of a pair
    TENSOR_COPY = 11  # tcgen05.cp


PENDING = np.dtype(
    [
        ("kind", np.int64),
        ("warp", np.int64),
        ("group", np.int64),  # -1: not committed yet
        ("pc", np.int64),
        ("mask", np.uint32),
        ("told", np.uint32),  # of the mask: lanes that an mbarrier counts
        ("bytes", np.uint32),
        ("mbarrier", np.int64),
        ("rank", np.int64),  # of the block whose shared memory it is about
        ("mbarrier_rank", np.int64),  # and of the one whose mbarrier it tells
        ("map", np.int64),
        ("clock", np.int64),
        ("shared", np.int64),
        ("coordinates", np.int64, (5,)),
        ("descriptors", np.int64, (2,)),
        ("accumulates", np.int64),
        ("reduction", np.int64),  # 1 + how a bulk store is combined; 0: it is stored
        ("element_type", np.int64),  # of such a run of bytes, as tensor maps number it
        ("landed", np.int64),
        ("target", np.int64, (LANES,)),
        ("source", np.int64, (LANES,)),
        ("count", np.int64, (LANES,)),
        ("read", np.int64, (LANES,)),
    ],
    align=True,
)

_ADDRESSES = (
    "code at functions registers warps shared shared_state writers reads clocks fenced "
    "allocations findings barriers barrier_clocks mbarriers mbarrier_clocks pending "
    "local local_written shared_arrays scratch executed lanes sectors sectors_needed requests passes in_flight dirty "
    "require mark run_warp land_one constants specials block_order warp_order seen "
    "sync_places sync_sets sync_clocks released released_lanes lane_released "
    "lane_clocks "
    "memory_fenced barrier_fenced group_clocks views block_numbers start_clocks "
    "cluster_clocks cluster_fenced reach_clocks reach_places "
    "reach_lanes tensor_values tensor_written tensor_writers tensor_readers "
    "tensor_product_readers tensor_allocated tensor_flops tensor_operand_bytes"
)
_NUMBERS = (
    "instructions register_bytes n_constants n_specials n_warps threads shared_bytes "
    "granule_shift agents copy_agent tensor_agent product_agent store_agent lane_agent "
    "readers n_allocations "
    "last_allocation n_findings n_mbarriers n_pending local_bytes grid_x grid_y grid_z "
    "block_x block_y block_z n_shared_arrays array_start array_end "
    "n_blocks block first_block steps most_steps quantum random "
    "is_early architecture barrier_granule narrow_shift accumulator_words stop "
    "has_products is_counting first_pending random_landing "
    "is_brief read_bytes distinct n_syncs has_atomics maps_published maps_acquired "
    "longest_block rank block_warps cluster_blocks cluster_x cluster_y cluster_z "
    "has_cluster_barrier has_tensor_memory"
)
MACHINE = np.dtype(
    [(name, np.int64) for name in f"{_ADDRESSES} {_NUMBERS}".split()], align=True
)
