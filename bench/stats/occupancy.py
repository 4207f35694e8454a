"""How a launch fills a GPU: the warps of a kernel that fit on a multiprocessor at once,
and the waves of thread blocks that a batch takes.

The arithmetic of the first is that of the CUDA toolkit's `cuda_occupancy.h`; a kernel's
barriers are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchline.kernels.architectures import Architecture, known

REGISTERS = "registers"
SHARED = "shared memory"
BLOCKS = "blocks"
WARPS = "warps"


@dataclass(frozen=True)
class Occupancy:
    """Resident warps as a share of what the multiprocessor can hold, the blocks that
    makes, and what limits them.
    """

    share: float
    blocks: int
    limited_by: str


def occupancy(
    architecture: int, threads: int, registers: int, shared_bytes: int
) -> Occupancy:
    """For blocks of `threads`, each thread with `registers`, each block with
    `shared_bytes` (static and dynamic).

    Raises:
        ValueError: for an architecture whose limits are not known here, or a block that
        fits none.
    """
    target = known(architecture)
    warps = -(-threads // target.threads_per_warp)
    blocks = {
        WARPS: target.warps_per_sm // warps,
        BLOCKS: target.blocks_per_sm,
        REGISTERS: _blocks_by_registers(target, warps, registers),
        SHARED: target.shared_bytes_per_sm
        // _round_up(shared_bytes + target.shared_bytes_reserved, target.shared_step),
    }
    limited_by, fit = min(blocks.items(), key=lambda item: item[1])
    if not fit:
        raise ValueError(
            f"a block of {threads} threads with {registers} registers and {shared_bytes} B of shared "
            f"memory does not fit on sm_{architecture}"
        )
    return Occupancy(fit * warps / target.warps_per_sm, fit, limited_by)


def _blocks_by_registers(target: Architecture, warps: int, registers: int) -> int:
    """Blocks of so many warps whose registers fit: each partition holds whole warps of
    its own share.
    """
    if not registers:
        return target.blocks_per_sm
    of_a_warp = _round_up(registers * target.threads_per_warp, target.register_step)
    of_a_partition = target.registers_per_sm // target.partitions // of_a_warp
    return of_a_partition * target.partitions // warps


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step


@dataclass(frozen=True)
class Waves:
    """How a launch fills a GPU: thread blocks (CTAs) per sample, and how many the
    multiprocessors hold at once.

    Tested on synthetic curves; not yet seen on a GPU.
    """

    ctas_per_sample: int
    multiprocessors: int
    ctas_per_multiprocessor: int

    @property
    def samples(self) -> float:
        """Samples in a full wave."""
        return (
            self.multiprocessors * self.ctas_per_multiprocessor / self.ctas_per_sample
        )

    def count(self, batch: int) -> int:
        """Waves of a batch: ⌈B · CTAs per sample / (multiprocessors · CTAs on each)⌉."""
        return -(
            -int(batch)
            * self.ctas_per_sample
            // (self.multiprocessors * self.ctas_per_multiprocessor)
        )

    def filled(self, batch: int) -> float:
        """The batch rounded up to full waves."""
        return self.count(batch) * self.samples
