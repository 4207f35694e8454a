"""Every GPU architecture that kernels are compiled for, and what each offers: the one
place that knows it.

No compiler and no torch is imported here, so the kernels, what measures them and what
judges them all read it.

Sources: CUDA C++ Programming Guide 13.0, "Compute Capabilities" (technical
specifications; the instructions of tensor cores, TMA and clusters are in the PTX ISA's
"Target ISA Notes"), and for blocks per multiprocessor and the steps of allocation the
CUDA toolkit's `cuda_occupancy.h`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

KIB = 1024
MMA_SYNC, WGMMA, TCGEN05 = "mma.sync", "wgmma", "tcgen05"


@dataclass(frozen=True)
class Architecture:
    """What a multiprocessor (SM) has, what a block and a thread may ask for, and in what
    steps they get it.

    Args:
        number: 90 of sm_90.
        tensor_cores: the widest kind of instruction that they have: MMA_SYNC, WGMMA or
            TCGEN05.
        warps_per_sm, blocks_per_sm: resident at once.
        shared_bytes_per_sm: shared memory. Each block takes what it asks for and
            `shared_bytes_reserved`.
        fp8: whether the tensor cores multiply it.
        tma: whether there is a tensor memory accelerator.
        clusters: whether blocks can form clusters.
        tensor_memory_columns: of 128 lanes of 4 bytes, per SM.
        suffix: "a" where the code is for this architecture alone, as wgmma and tcgen05
            require.
        registers_per_sm, registers_per_thread: of 4 bytes.
        shared_bytes_reserved: of shared memory, by the system, in each block.
        reserved_in_cubin: whether the linker counts those in a cubin's shared memory.
        shared_step: a block gets shared memory in multiples of so many bytes.
        register_step: a warp gets registers in multiples of this number.
        partitions: of an SM, each with an equal share of its registers and warps.
        chip: the number of a chip that is taken for this architecture, having no entry
            of its own; else None.
    """

    number: int
    tensor_cores: str
    warps_per_sm: int
    blocks_per_sm: int
    shared_bytes_per_sm: int
    fp8: bool = False
    tma: bool = False
    clusters: bool = False
    tensor_memory_columns: int = 0
    suffix: str = ""
    registers_per_sm: int = 65536
    registers_per_thread: int = 255
    threads_per_block: int = 1024
    threads_per_warp: int = 32
    shared_bytes_reserved: int = 1024
    reserved_in_cubin: bool = False
    shared_step: int = 128
    register_step: int = 256
    partitions: int = 4
    chip: int | None = None

    @property
    def shared_bytes_per_block(self) -> int:
        """The most that a block can have, where its launch asks for more than 48 KiB."""
        return self.shared_bytes_per_sm - self.shared_bytes_reserved

    @property
    def stages_in_registers(self) -> int:
        """Stages of a pipeline that are not in shared memory: mma.sync has the one that
        it multiplies in registers.
        """
        return 1 if self.tensor_cores == MMA_SYNC else 0

    @property
    def capability(self) -> tuple[int, int]:
        """(9, 0) of sm_90."""
        return divmod(self.number, 10)

    def __str__(self) -> str:
        return (
            f"sm_{self.number}"
            if self.chip is None
            else f"sm_{self.chip} (taken for sm_{self.number})"
        )


_TABLE = (
    Architecture(
        80, MMA_SYNC, warps_per_sm=64, blocks_per_sm=32, shared_bytes_per_sm=164 * KIB
    ),
    Architecture(
        86, MMA_SYNC, warps_per_sm=48, blocks_per_sm=16, shared_bytes_per_sm=100 * KIB
    ),
    Architecture(
        89,
        MMA_SYNC,
        warps_per_sm=48,
        blocks_per_sm=24,
        shared_bytes_per_sm=100 * KIB,
        fp8=True,
    ),
    Architecture(
        90,
        WGMMA,
        warps_per_sm=64,
        blocks_per_sm=32,
        shared_bytes_per_sm=228 * KIB,
        fp8=True,
        tma=True,
        clusters=True,
        suffix="a",
        reserved_in_cubin=True,
    ),
    Architecture(
        100,
        TCGEN05,
        warps_per_sm=64,
        blocks_per_sm=32,
        shared_bytes_per_sm=228 * KIB,
        fp8=True,
        tma=True,
        clusters=True,
        tensor_memory_columns=512,
        suffix="a",
        reserved_in_cubin=True,
    ),
    Architecture(
        120,
        MMA_SYNC,
        warps_per_sm=48,
        blocks_per_sm=24,
        shared_bytes_per_sm=100 * KIB,
        fp8=True,
        tma=True,
        clusters=True,
        suffix="a",
        reserved_in_cubin=True,
    ),
)
KNOWN = {architecture.number: architecture for architecture in _TABLE}
PINNED = (80, 90, 100)  # for which every variant's compiled code is pinned
WITHOUT_GPU = (
    90  # what kernels are compiled and interpreted for where nothing says another
)
_OF_NEWER_GENERATIONS = 89  # every later chip has at least its registers, shared memory, warps, blocks and instructions


def known(number: int) -> Architecture:
    """The entry of sm_`number`.

    Raises:
        ValueError: if it has none.
    """
    if number not in KNOWN:
        raise ValueError(
            f"sm_{number} is none of {', '.join(f'sm_{entry}' for entry in KNOWN)}"
        )
    return KNOWN[number]


def why_too_old(number: int) -> str | None:
    """Why no kernel here can run on sm_`number`, or None."""
    oldest = min(KNOWN)
    return (
        f"its kernels need sm_{oldest} or newer, and this is sm_{number}"
        if number < oldest
        else None
    )


def taken_for(number: int) -> Architecture:
    """The entry by which kernels are chosen on a chip: its own, or else another one,
    whose name then says so.

    The other one is the nearest below it of the same generation (its number's tens),
    whose code runs there too. For a generation that is not known it is sm_89.

    Raises:
        ValueError: if the chip is older than every entry.
    """
    if why := why_too_old(number):
        raise ValueError(why)
    if number in KNOWN:
        return KNOWN[number]
    same_generation = [
        entry for entry in KNOWN if entry < number and entry // 10 == number // 10
    ]
    return replace(
        KNOWN[max(same_generation, default=_OF_NEWER_GENERATIONS)], chip=number
    )
