"""Which ceiling binds a result, how much of it was reached, the floor that no honest
result goes under, and how a launch fills a GPU.

Pure arithmetic on a record's facts and the run's ceilings (S. Williams et al.,
Roofline, CACM 52(4), 2009). The warps of a kernel that fit on a multiprocessor at once,
and with them the waves of thread blocks that a batch takes, are computed as the CUDA
toolkit's `cuda_occupancy.h` does; a kernel's barriers are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from batchline.bench import units
from batchline.kernels.architectures import Architecture, known

LAUNCH = "launch"
CACHE = "cache"
MEMORY = "memory"
COMPUTE = "compute"
_MOSTLY_READS = 0.1  # a result that writes under this share of its bytes is held against the read-only rate
# Ceilings are measured too: a stream may have met a slower moment than the result did.
_FLOOR_MARGIN = 0.75
REGISTERS = "registers"
SHARED = "shared memory"
BLOCKS = "blocks"
WARPS = "warps"


@dataclass(frozen=True)
class Bound:
    """The binding ceiling, that of the largest floor: its regime, the floor, and the
    share of it that was reached.
    """

    regime: str
    least_s: float
    share: float


def bound(
    facts: Mapping, dtype: str, clock: str, median_s: float, ceilings: Mapping
) -> Bound:
    """What binds a result of `median_s` by `clock`; `facts` has flops, least_bytes and
    output_bytes.
    """
    regime, least_s = max(
        floors(facts, dtype, clock, ceilings).items(), key=lambda item: item[1]
    )
    return Bound(regime, least_s, least_s / median_s)


def floors(
    facts: Mapping, dtype: str, clock: str, ceilings: Mapping
) -> dict[str, float]:
    """The least seconds by each ceiling, by regime: LAUNCH, CACHE or MEMORY, COMPUTE.

    An empty launch on the same clock; the bytes at the rate of the last cache where
    they fit into it and the clock leaves them there, or else at memory's (copy, or
    read-only where little is written); the operations at the rate of the vendor's
    product or of multiply-adds in that dtype, whichever is higher.
    """
    moved = facts["least_bytes"]
    if moved <= ceilings["cache_bytes"] and not is_cold(clock):
        data = CACHE, moved / ceilings["cache_bytes_per_s"]
    else:
        mostly_reads = facts["output_bytes"] < _MOSTLY_READS * moved
        data = (
            MEMORY,
            moved
            / ceilings["read_bytes_per_s" if mostly_reads else "copy_bytes_per_s"],
        )
    rates = [
        ceilings[kind][dtype]
        for kind in ("matmul_flops_per_s", "fma_flops_per_s")
        if dtype in ceilings[kind]
    ]
    return dict(
        [
            (LAUNCH, ceilings["launch_s"].get(clock, 0.0)),
            data,
            (COMPUTE, facts["flops"] / max(rates) if rates else 0.0),
        ]
    )


def why_impossible(facts: Mapping, median_s: float, ceilings: Mapping) -> str | None:
    """Why a result can't have done its work in `median_s`, or None.

    The floor takes the best of everything: the fastest sample of the fastest dtype's
    product (an op may compute in a narrower one), and of the fastest stream, with as
    much in the cache as it holds.
    """
    best = ceilings["best"]
    cached = min(facts["least_bytes"], ceilings["cache_bytes"])
    memory_rate = max(best["copy_bytes_per_s"], best["read_bytes_per_s"])
    cache_rate = max(memory_rate, best["cache_bytes_per_s"])
    limits = (
        (
            facts["flops"] / best["matmul_flops_per_s"],
            f"{facts['flops']:.3g} FLOP at the {best['matmul_flops_per_s']:.3g} FLOP/s of the best product",
        ),
        (
            cached / cache_rate + (facts["least_bytes"] - cached) / memory_rate,
            f"{units.size(facts['least_bytes'])} at the {units.size(cache_rate)}/s of the cache and the "
            f"{units.size(memory_rate)}/s of memory",
        ),
    )
    floor_s, work = max(limits)
    if median_s >= _FLOOR_MARGIN * floor_s:
        return None
    return (
        f"{units.duration(median_s)} is faster than its work allows: {work} take {units.duration(floor_s)}, "
        "so it can't have done it"
    )


def raised_by(ceilings: Mapping, facts: Mapping, median_s: float) -> dict:
    """The ceilings with their `best` no lower than what a trusted result reached: a
    baseline, the vendor's library.
    """
    bytes_per_s = facts["least_bytes"] / median_s
    cached = facts["least_bytes"] <= ceilings["cache_bytes"]
    reached = {
        "matmul_flops_per_s": facts["flops"] / median_s,
        "cache_bytes_per_s" if cached else "read_bytes_per_s": bytes_per_s,
    }
    return {**ceilings, "best": best_of(ceilings["best"], reached)}


def best_of(one: Mapping, other: Mapping, better: Callable = max) -> dict:
    """The best of two measurements of the ceilings: of rates the larger, of launches
    the smaller.
    """
    merged = {}
    for name in {**one, **other}:
        values = [side[name] for side in (one, other) if side.get(name) is not None]
        if len(values) == 2 and isinstance(values[0], Mapping):
            merged[name] = best_of(
                *values, better=min if name == "launch_s" else better
            )
        else:
            merged[name] = better(values) if len(values) == 2 else values[0]
    return merged


def is_cold(clock: str) -> bool:
    """Whether a clock's samples start from emptied caches."""
    return clock.endswith("_cold")


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
