"""Execute a launch: bind its program to memory and arguments, run all blocks, and say
what was found and counted.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from batchline.bench.measure.emulator import (
    alu,
    asynchronous,
    machine,
    program,
    ptx,
    tcgen05,
    tensor_copies,
    tensor_memory,
)
from batchline.bench.measure.emulator.counts import Counts, count
from batchline.bench.measure.emulator.launch import KernelLaunch, LaunchRefused
from batchline.bench.measure.emulator.layout import (
    ALLOCATION_CHECKED,
    ALLOCATION_INITIALISED,
    ALLOCATION_WORDS,
    BARRIER,
    BARRIERS,
    FINDING,
    FIRST_RANK,
    RANK_SHIFT,
    FINDINGS_KEPT,
    GROUPS,
    LANES,
    MACHINE,
    MBARRIER,
    MBARRIERS,
    MOST_ORDERED_BLOCKS,
    PENDING,
    PENDING_MOST,
    SHADOW_INITIALISED,
    SLOT_SHIFT,
    SYNCS,
    VIEW,
    WARP,
    Finding,
    Kind,
)
from batchline.bench.measure.emulator.memory import GlobalMemory, untouched_zeros
from batchline.bench.measure.emulator.program import Program
from batchline.bench.measure.emulator.rows import Place

# The word of each finding, and what it says.
WORDS: Mapping[Finding, tuple[str, str]] = {
    Finding.OUT_OF_BOUNDS: ("out-of-bounds", "outside of every allocation"),
    Finding.PAST_THE_END: (
        "past-the-end",
        "past the end of an allocation, within its last 16 aligned bytes",
    ),
    Finding.MISALIGNED: ("misaligned", "not a multiple of the bytes of the access"),
    Finding.UNINITIALISED_GLOBAL: (
        "uninitialised-global",
        "global memory that nothing has written",
    ),
    Finding.UNINITIALISED_SHARED: (
        "uninitialised-shared",
        "shared memory that nothing has written in this block",
    ),
    Finding.UNINITIALISED_LOCAL: (
        "uninitialised-local",
        "local memory that this thread has not written",
    ),
    Finding.RACE_SHARED: (
        "shared-race",
        "two warps with no barrier between them, or two lanes at once",
    ),
    Finding.RACE_GLOBAL: ("global-race", "two accesses that nothing orders"),
    Finding.MISSING_WAIT: (
        "missing-wait",
        "what an asynchronous copy or wgmma still reads or writes",
    ),
    Finding.MISSING_FENCE: (
        "missing-fence",
        "wgmma's registers were written, and no wgmma.fence came after it",
    ),
    Finding.MISSING_PROXY_FENCE: (
        "missing-proxy-fence",
        "written by ordinary stores, read asynchronously, and no fence.proxy between",
    ),
    Finding.DIVERGENT_BARRIER: (
        "divergent-barrier",
        "not all threads that it is for execute it, or not alike",
    ),
    Finding.DEADLOCK: ("deadlock", "this is waited for, and nothing can go on"),
    Finding.MBARRIER_MISUSE: (
        "mbarrier-misuse",
        "no mbarrier is there, or more arrive than it expects",
    ),
    Finding.BAD_DESCRIPTOR: ("bad-descriptor", "a descriptor that no chip accepts"),
    Finding.HANG: ("hang", "it is still running after as long as it may"),
    Finding.BLOCK_LIFETIME: (
        "block-lifetime",
        "shared memory of another block of the cluster, which may not have started or "
        "have ended",
    ),
    Finding.TRAP: ("trap", "an assertion failed, or the kernel gave up"),
    Finding.UNINITIALISED_TENSOR: (
        "uninitialised-tensor",
        "tensor memory that nothing has written since it was allocated",
    ),
    Finding.RACE_TENSOR: (
        "tensor-race",
        "two warps use tensor memory, one of them writes, and nothing orders them",
    ),
    Finding.TENSOR_ALLOCATION: (
        "tensor-allocation",
        "columns of tensor memory that can't be had, are not to be freed, or were not "
        "freed when the block ended",
    ),
    Finding.UNSUPPORTED: ("unsupported", "more than this emulator keeps track of"),
}
# Told apart, and no fault: on a GPU no allocation ends within 16 aligned bytes, and a
# variant may mean to read whole words.
NOTED = frozenset({WORDS[Finding.PAST_THE_END][0]})

# What goes on by itself, when no warp can.
_LANDING = {
    Kind.TENSOR_LOAD,
    Kind.BULK_COPY,
    Kind.COPY_ARRIVE,
    Kind.TCGEN05_COMMIT,
}
_MOST_CLUSTER_WARPS = 42  # order.py keeps 8 bits of an agent, of which a warp has 6
_MOST_STEPS = 50_000_000  # warp instructions of a block
_SMALL_BYTES = 2**24  # allocations up to it have every read noted
_SHORT_TURN = 61  # instructions: warps are changed often where order is to be tried


@dataclass(frozen=True)
class Schedule:
    """In which order things happen that the program does not order.

    Args:
        seed: 0 is the order of their numbers; any other number draws the order of
            blocks and of warps, and how long a warp's turn is.
        is_early: whether asynchronous work is done as soon as it is issued, or else
            as late as is allowed.
        is_counting: whether sectors and bank conflicts are counted.
        is_brief: whether no block is executed after one in which a fault was found.
        most_steps: after how many instructions of its warps a block hangs.
    """

    seed: int = 0
    is_early: bool = False
    is_counting: bool = True
    is_brief: bool = False
    most_steps: int = _MOST_STEPS


LATE, EARLY, SHUFFLED = Schedule(), Schedule(is_early=True), Schedule(seed=1)


@dataclass(frozen=True)
class Found:
    """Something that a check found at an instruction: its word, where in the source,
    and how often.
    """

    word: str
    source: str
    instruction: str
    ptx_line: int
    times: int
    block: int
    warp: int
    lane: int
    address: int
    other: str | None

    @property
    def is_fault(self) -> bool:
        return self.word not in NOTED

    def __str__(self) -> str:
        says = next(text for word, text in WORDS.values() if word == self.word)
        against = f", against {self.other}" if self.other else ""
        often = "once" if self.times == 1 else f"{self.times} times"
        return (
            f"{self.word} at {self.source}{against}: {says} "
            f"({often}, first in block {self.block}, warp {self.warp}; {self.instruction})"
        )


@dataclass(frozen=True, eq=False)
class Execution:
    """What a launch did.

    `executed` counts, for each row of the program, the warps that executed it, and
    `lanes` their threads; `sectors` those of 32 bytes of global memory that it touched,
    `sectors_needed` how few would have held the bytes; `passes` and `requests` those of
    shared memory; `tensor_flops` and `tensor_operand_bytes` are of tcgen05.mma, whose
    sizes only its descriptor says. `read_bytes` were asked for and `distinct_bytes` are different ones.
    `longest_block` is the most instructions that the warps of a block executed.
    """

    launch: KernelLaunch
    program: Program
    findings: tuple[Found, ...]
    executed: np.ndarray
    lanes: np.ndarray
    sectors: np.ndarray
    sectors_needed: np.ndarray
    passes: np.ndarray
    requests: np.ndarray
    tensor_flops: np.ndarray
    tensor_operand_bytes: np.ndarray
    read_bytes: int
    distinct_bytes: int
    longest_block: int
    seconds: float

    @property
    def warp_instructions(self) -> int:
        return int(self.executed.sum())

    @functools.cached_property
    def counts(self) -> Counts:
        """All that it did, summed."""
        return count(
            self.program,
            self.executed,
            self.sectors,
            self.sectors_needed,
            self.passes,
            self.requests,
            self.tensor_flops,
            self.tensor_operand_bytes,
            self.read_bytes,
            self.distinct_bytes,
        )


@functools.lru_cache(maxsize=256)
def decoded(text: str, entry: str) -> Program:
    """The program of an entry of a PTX text.

    Raises:
        ValueError, or UnknownOpcode: see `program.decode`.
    """
    return program.decode(ptx.parse(text), entry)


def execute(
    launch: KernelLaunch, memory: GlobalMemory, schedule: Schedule = LATE
) -> Execution:
    """Run all blocks of a launch on `memory`, which it changes.

    Raises:
        UnknownOpcode: for an instruction that is not known. LaunchRefused: for clusters
        that are not those of the PTX, or of too many warps.
    """
    code = decoded(launch.ptx, launch.entry)
    _require_cluster(launch, code)
    bound = _Bound(launch, code, memory, schedule)
    started = time.perf_counter()
    machine.run_grid(bound.machine[0], 0, launch.clusters)
    seconds = time.perf_counter() - started
    return bound.execution(seconds)


def _require_cluster(launch: KernelLaunch, code: Program) -> None:
    required = code.kernel.required_cluster
    if required not in (None, launch.cluster):
        raise LaunchRefused(
            f"{launch.kernel} has clusters of {launch.cluster} blocks, and its PTX "
            f"requires {required}"
        )
    blocks, warps = math.prod(launch.cluster), -(-launch.threads // LANES)
    if blocks > 1 and blocks * warps > _MOST_CLUSTER_WARPS:
        raise LaunchRefused(
            f"{launch.kernel} has clusters of {blocks * warps} warps: the emulator "
            f"keeps track of {_MOST_CLUSTER_WARPS}"
        )
    _require_pairs(launch, code, blocks, warps)
    if blocks > 1 and Kind.WGMMA in code.kinds and warps % 4:
        raise LaunchRefused(
            f"{launch.kernel} has wgmma in clusters of blocks of {warps} warps: the "
            "emulator knows multiples of 4"
        )


def _require_pairs(
    launch: KernelLaunch, code: Program, blocks: int, warps: int
) -> None:
    """Refuse what no pair of blocks can execute, or what is not kept track of."""
    opcodes = [
        one.opcode for one in code.kernel.instructions if "tcgen05" in one.opcode
    ]
    of_one, of_pair = (any(group in one for one in opcodes) for group in tcgen05.GROUPS)
    if of_one and of_pair:
        raise LaunchRefused(
            f"{launch.kernel} has tcgen05 of one block and of a pair of blocks, which "
            "PTX leaves undefined"
        )
    if of_pair and blocks % 2:
        raise LaunchRefused(
            f"{launch.kernel} has tcgen05 of pairs of blocks (cta_group::2), and its "
            f"clusters of {blocks} are no pairs"
        )
    if opcodes and blocks * warps > LANES:
        raise LaunchRefused(
            f"{launch.kernel} has tcgen05 in clusters of {blocks * warps} warps: the "
            f"emulator keeps track of {LANES}"
        )


class _Bound:
    """A program with its memory: the arrays that the machine's record points to."""

    def __init__(self, launch, code: Program, memory: GlobalMemory, schedule: Schedule):
        self._launch, self._code, self._schedule = launch, code, schedule
        self._kept: list[np.ndarray] = []
        self.machine = np.zeros(1, MACHINE)
        self._record = self.machine[0]
        self._block_warps = -(-launch.threads // LANES)
        self._blocks = math.prod(launch.cluster)  # that are executed side by side
        self._warps = self._blocks * self._block_warps
        self._bind_code()
        self._bind_memory(memory)
        self._bind_block()
        self._bind_counts()
        self._bind_schedule()
        self._bind_registers()

    def _set(self, name: str, array: np.ndarray) -> np.ndarray:
        self._kept.append(array)
        self._record[name] = array.ctypes.data
        return array

    def _set_for_each_block(self, name: str, array: np.ndarray) -> None:
        """As _set, with a copy for each block that is executed side by side."""
        for rank in reversed(range(self._blocks)):
            own = self._set(name, _aligned_like(array) if rank else array)
            self._views[rank][name] = own.ctypes.data

    def _bind_code(self) -> None:
        code, record = self._code, self._record
        native = alu.addresses([form for form in code.forms if form is not None])
        functions = np.array(
            [
                self._handler(row) if form is None else native[form.key]
                for row, form in enumerate(code.forms)
            ],
            np.int64,
        )
        self._set("code", code.words)
        self._set("at", code.starts)
        self._set("functions", functions)
        record["instructions"] = len(code.forms)
        record["register_bytes"] = code.register_bytes
        in_flight = {Kind.WGMMA, Kind.TCGEN05_LD} & code.kinds
        record["has_products"] = bool(in_flight)
        record["has_tensor_memory"] = bool(tcgen05.ALL & code.kinds)
        record["has_atomics"] = code.has_atomics

        record["run_warp"] = machine.run_warp.address
        if in_flight:
            record["require"] = asynchronous.require_not_in_flight.address
            record["mark"] = asynchronous.mark_dirty.address
        if code.kinds & _LANDING:
            record["land_one"] = tensor_copies.land_one.address

    def _handler(self, row: int) -> int:
        kind = Kind(int(self._code.words[self._code.starts[row]]))
        return machine.HANDLERS[kind].address if kind in machine.HANDLERS else 0

    def _bind_memory(self, memory: GlobalMemory) -> None:
        code, record = self._code, self._record
        shift = int(code.narrowest_global).bit_length() - 1
        rows = []
        self._variables = {
            one.name: memory.variable(
                self._launch.ptx, one.name, one.size_bytes, one.initial
            )
            for one in code.variables.values()
            if one.space == "global" and one.size_bytes
        }
        for one in memory.allocations:
            granules = (one.size_bytes >> shift) + 1
            is_checked = one.size_bytes <= _SMALL_BYTES or not one.initialised
            writers = untouched_zeros(32 * granules)
            readers = untouched_zeros(32 * granules if is_checked else 32)
            self._kept += [writers, readers]
            if one.size_bytes <= 2**28:
                one.shadow[:] &= SHADOW_INITIALISED
            flags = ALLOCATION_INITIALISED if one.initialised else 0
            flags |= ALLOCATION_CHECKED if is_checked else 0
            rows.append(
                (
                    one.start,
                    one.end,
                    one.shadow.ctypes.data,
                    writers.ctypes.data if is_checked else 0,
                    readers.ctypes.data if is_checked else 0,
                    flags,
                    shift,
                    0,
                )
            )
        for variable in code.variables.values():
            if variable.space == "const" and variable.size_bytes:
                data = _aligned(variable.size_bytes, 256)
                data[:] = 0
                if variable.initial is not None:
                    data[:] = np.frombuffer(variable.initial, np.uint8)
                self._variables[variable.name] = data
                rows.append(self._own_row(data, variable.size_bytes))
        parameters = code.kernel.parameters
        size = max((one.offset + one.size_bytes for one in parameters), default=0)
        self._arguments = _aligned(max(size, 64), 256)
        for one, value in zip(parameters, self._launch.arguments, strict=True):
            self._arguments[one.offset : one.offset + len(value)] = np.frombuffer(
                value, np.uint8
            )
        rows.append(self._own_row(self._arguments, len(self._arguments)))
        rows.sort()
        table = np.array(rows, np.int64).reshape(len(rows), ALLOCATION_WORDS)
        self._set("allocations", table)
        record["n_allocations"] = len(rows)

    def _own_row(self, data: np.ndarray, size: int) -> tuple[int, ...]:
        shadow = np.full(size, SHADOW_INITIALISED, np.uint8)
        self._kept += [data, shadow]
        start = data.ctypes.data
        return (
            start,
            start + size,
            shadow.ctypes.data,
            0,
            0,
            ALLOCATION_INITIALISED,
            0,
            0,
        )

    def _bind_block(self) -> None:
        launch, code, record = self._launch, self._code, self._record
        agents, readers = 6 * self._warps, 4 * self._warps  # see order.py
        record["n_warps"], record["threads"] = self._warps, launch.threads
        record["agents"], record["readers"] = agents, readers
        record["copy_agent"] = self._warps
        record["tensor_agent"] = 2 * self._warps
        record["product_agent"] = 3 * self._warps
        record["store_agent"] = 4 * self._warps
        record["lane_agent"] = 5 * self._warps
        record["grid_x"], record["grid_y"], record["grid_z"] = launch.grid
        record["block_x"], record["block_y"], record["block_z"] = launch.block
        record["n_blocks"] = launch.clusters
        record["block_warps"] = self._block_warps
        record["cluster_blocks"] = self._blocks
        record["cluster_x"], record["cluster_y"], record["cluster_z"] = launch.cluster
        record["has_cluster_barrier"] = (
            self._blocks > 1 or Kind.CLUSTER_BARRIER in code.kinds
        )
        self._views = self._set("views", np.zeros(self._blocks, VIEW))
        self._set("block_numbers", np.zeros(self._blocks, np.int64))
        self._set("start_clocks", np.zeros(self._warps, np.int32))
        self._set("cluster_clocks", np.zeros((4, agents), np.int32))
        self._set("cluster_fenced", np.zeros((self._warps, agents), np.int32))
        self._set("reach_clocks", np.zeros((self._blocks, agents), np.int32))
        self._set("reach_places", np.zeros((self._blocks, agents), np.int32))
        self._set("reach_lanes", np.zeros((self._blocks, agents), np.int32))
        arrays = code.shared.with_dynamic(launch.dynamic_shared_bytes)
        shared = max((end for _, end in arrays), default=0)
        self._set("shared_arrays", np.array(arrays, np.int64).reshape(-1, 2))
        record["n_shared_arrays"] = len(arrays)
        shift = min(2, int(code.narrowest_shared).bit_length() - 1)
        granules = (shared >> shift) + 1
        record["shared_bytes"], record["granule_shift"] = shared, shift
        reads = np.zeros(granules * (readers + self._warps), np.int32)
        for name, array in (
            ("shared", _aligned(shared + 16, 1024)),
            ("shared_state", np.zeros(shared + 16, np.uint8)),
            ("writers", np.zeros(2 * granules, np.int64)),
            ("reads", reads),
            ("barriers", np.zeros(BARRIERS, BARRIER)),
            ("barrier_clocks", np.zeros((BARRIERS, 3, agents), np.int32)),
            ("barrier_fenced", np.zeros((BARRIERS, agents), np.int32)),
            ("mbarriers", np.zeros(MBARRIERS, MBARRIER)),
            ("mbarrier_clocks", np.zeros((MBARRIERS, 4, agents), np.int32)),
        ):
            self._set_for_each_block(name, array)
        if record["has_tensor_memory"]:
            for name, of_block in tensor_memory.BYTES_OF_BLOCK.items():
                self._set(name, np.zeros(self._blocks * of_block, np.uint8))
        self._set("lane_released", np.zeros((self._warps, LANES), np.int32))
        self._set("lane_clocks", np.zeros((self._warps, LANES, LANES), np.int32))
        self._set("group_clocks", np.zeros((self._warps, GROUPS), np.int32))
        self._set("clocks", np.zeros((agents, agents), np.int32))
        self._set("fenced", np.zeros((agents, agents), np.int32))
        self._set("warps", np.zeros(self._warps, WARP))
        self._set("pending", np.zeros(PENDING_MOST, PENDING))
        record["local_bytes"] = code.local_bytes
        local_bytes = max(1, code.local_bytes * LANES * self._warps)
        self._set("local", np.zeros(local_bytes, np.uint8))
        self._set("local_written", np.zeros(local_bytes, np.uint8))
        self._set("scratch", np.zeros(2048, np.int64))
        slots = (code.register_bytes >> SLOT_SHIFT) * self._warps
        self._set("in_flight", np.zeros(slots, np.uint8))
        self._set("dirty", np.zeros(slots, np.int32))
        if record["has_atomics"] and launch.clusters <= MOST_ORDERED_BLOCKS:
            words = (launch.clusters + 63) // 64
            self._set("seen", np.zeros((launch.clusters, words), np.uint64))
            self._set("sync_places", np.zeros(SYNCS, np.int64))
            self._set("sync_sets", np.zeros((SYNCS, words), np.uint64))
            self._set("sync_clocks", np.zeros((SYNCS, agents), np.int32))
            self._set("released", np.zeros((launch.clusters, agents), np.int32))
            self._set(
                "released_lanes", np.zeros((launch.clusters, self._warps), np.uint32)
            )
            self._set("memory_fenced", np.zeros((self._warps, agents), np.int32))

    def _bind_counts(self) -> None:
        rows = len(self._code.forms)
        self._counts = {
            name: self._set(name, np.zeros(rows, np.int64))
            for name in (
                "executed",
                "lanes",
                "sectors",
                "sectors_needed",
                "passes",
                "requests",
                "tensor_flops",
                "tensor_operand_bytes",
            )
        }
        self._findings = self._set("findings", np.zeros(FINDINGS_KEPT, FINDING))
        self._record["is_counting"] = self._schedule.is_counting

    def _bind_schedule(self) -> None:
        record, schedule = self._record, self._schedule
        blocks = np.arange(self._launch.clusters, dtype=np.int64)
        if schedule.seed:
            np.random.default_rng(schedule.seed).shuffle(blocks)
        self._set("block_order", blocks)
        self._set("warp_order", np.arange(self._warps, dtype=np.int64))
        record["is_early"] = schedule.is_early
        record["random"] = schedule.seed
        record["quantum"] = _SHORT_TURN if schedule.seed else schedule.most_steps
        record["is_brief"] = schedule.is_brief
        record["most_steps"] = schedule.most_steps

    def _bind_registers(self) -> None:
        code = self._code
        images = np.full((self._warps, code.register_bytes), 0xFF, np.uint8)
        for offset, size, elements, value in code.constants:
            for rank in range(self._blocks):
                bits = self._value(value, rank) & ((1 << (8 * size)) - 1)
                one = np.frombuffer(bits.to_bytes(size, "little"), np.uint8)
                own = images[rank * self._block_warps : (rank + 1) * self._block_warps]
                own[:, offset : offset + elements * size] = np.tile(one, elements)
        for name, offset in code.specials.items():
            values = self._special(name)
            size = values.dtype.itemsize * LANES
            images[:, offset : offset + size] = values.view(np.uint8)
        self._set("constants", images)
        registers = _aligned(images.size, 64)
        self._set("registers", registers)
        places = [
            code.specials.get(f"%{name}.{axis}", -1)
            for name in ("ctaid", "clusterid")
            for axis in "xyz"
        ]
        self._set("specials", np.array(places, np.int64))

    def _value(self, value: int | Place, rank: int) -> int:
        """A constant's bits, in the block with this rank in its cluster."""
        if isinstance(value, int):
            return value
        if value.what == "shared":
            named = FIRST_RANK + rank if self._blocks > 1 else 0
            return value.offset + (named << RANK_SHIFT)
        if value.what == "parameter":
            return self._arguments.ctypes.data + value.offset
        if value.what == "variable":
            return self._variables[value.name].ctypes.data + value.offset
        data = bytes(self._arguments[value.offset : value.offset + value.bytes])
        return int.from_bytes(data, "little", signed=value.is_signed)

    def _special(self, name: str) -> np.ndarray:
        """uint32 or uint64[warps, 32] of a special register."""
        launch = self._launch
        block_threads = self._block_warps * LANES
        numbers = np.arange(self._warps * LANES).reshape(self._warps, LANES)
        threads, rank = numbers % block_threads, numbers // block_threads
        lane, x, y = threads % LANES, launch.block[0], launch.block[1]
        across, down, _ = launch.cluster
        one = np.uint64(1)
        below = (one << lane.astype(np.uint64)) - one
        everything = np.uint64(0xFFFFFFFF)
        known = {
            "%tid.x": threads % x,
            "%tid.y": threads // x % y,
            "%tid.z": threads // (x * y),
            "%laneid": lane,
            "%warpid": threads // LANES,
            "%nwarpid": np.full_like(threads, self._block_warps),
            "%cluster_ctarank": rank,
            "%cluster_nctarank": np.full_like(threads, self._blocks),
            "%cluster_ctaid.x": rank % across,
            "%cluster_ctaid.y": rank // across % down,
            "%cluster_ctaid.z": rank // (across * down),
            "%nsmid": np.full_like(threads, 132),
            "%lanemask_lt": below,
            "%lanemask_le": below * np.uint64(2) + one,
            "%lanemask_eq": one << lane.astype(np.uint64),
            "%lanemask_ge": everything - below,
            "%lanemask_gt": everything - (below * np.uint64(2) + one),
            "%dynamic_smem_size": np.full_like(threads, launch.dynamic_shared_bytes),
            "%total_smem_size": np.full_like(
                threads, launch.dynamic_shared_bytes + self._code.shared.static_bytes
            ),
        }
        for place, axis in enumerate("xyz"):
            known[f"%ntid.{axis}"] = np.full_like(threads, launch.block[place])
            known[f"%nctaid.{axis}"] = np.full_like(threads, launch.grid[place])
            in_cluster = launch.cluster[place]
            known[f"%cluster_nctaid.{axis}"] = np.full_like(threads, in_cluster)
            known[f"%nclusterid.{axis}"] = known[f"%nctaid.{axis}"] // in_cluster
        values = known.get(name, np.zeros_like(threads))
        width = np.uint64 if program.special_width(name) == 64 else np.uint32
        return np.ascontiguousarray(values.astype(width)).reshape(self._warps, -1)

    def execution(self, seconds: float) -> Execution:
        record = self._record
        found = [
            self._found(one) for one in self._findings[: int(record["n_findings"])]
        ]
        return Execution(
            self._launch,
            self._code,
            tuple(found),
            **{name: array.copy() for name, array in self._counts.items()},
            read_bytes=int(record["read_bytes"]),
            distinct_bytes=int(record["distinct"]),
            longest_block=int(record["longest_block"]),
            seconds=seconds,
        )

    def _found(self, one) -> Found:
        instruction = self._code.instruction(one["pc"])
        other = None
        if one["other_pc"] >= 0:
            other = _place_of(self._code.instruction(one["other_pc"]))
        return Found(
            WORDS[Finding(int(one["kind"]))][0],
            _place_of(instruction),
            instruction.text,
            instruction.ptx_line,
            *(int(one[name]) for name in ("times", "block", "warp", "lane", "address")),
            other,
        )


def _place_of(instruction: ptx.Instruction) -> str:
    if instruction.source is None:
        return f"line {instruction.ptx_line} of the PTX"
    return instruction.source.user_line


def _aligned_like(array: np.ndarray) -> np.ndarray:
    """A copy, from an address that is a multiple of 1024 as shared memory's must be."""
    copy = _aligned(array.nbytes, 1024)
    copy[:] = array.reshape(-1).view(np.uint8)
    return copy


def _aligned(size: int, align: int) -> np.ndarray:
    """uint8[size] zeros from an address that is a multiple of `align`."""
    data = np.zeros(size + align, np.uint8)
    first = -data.ctypes.data % align
    return data[first : first + size]
