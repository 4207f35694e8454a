"""How much of a GPU's ceiling a kernel can reach at most, from what its compiled code
did in emulation and the GPU's datasheet: a prediction, not a measurement.

Each part of the GPU has its own time: the work counted for it over its rate. They work
side by side, so a launch takes at least the longest of them. What no count knows, and
only makes it longer, is left out: latencies that nothing hides, the launch itself, a
clock that power lowers, stalls of a pipeline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from batchline.bench.stats.datasheets import Datasheet

MEMORY, L2, SHARED = "memory", "L2", "shared memory"
TENSOR_CORES, FP32, ISSUE = "tensor cores", "fp32 lanes", "issue"
# What tensor cores multiply of a dtype, by its name in PTX. fp32 is for the other lanes.
_MATRIX_TYPES = {"float16": "f16", "bfloat16": "bf16", "float8_e4m3fn": "e4m3"}
_SECTOR_BYTES = 32
_PASS_BYTES = 128  # of shared memory: 32 banks of 4 bytes
CAPTURED_MULTIPROCESSORS = 132  # a launcher is told so where there is no GPU


@dataclass(frozen=True)
class LaunchCounts:
    """What one launch did: `blocks` of its grid, and the counts of
    bench.measure.emulator.counts.Counts. `float_instructions` and `moves` are of their
    classes.
    """

    blocks: int
    instructions: int
    float_instructions: int
    moves: int
    sectors: int
    passes: int
    distinct_bytes: int
    written_bytes: int
    matrix_flops: Mapping[str, int]
    operand_bytes: int


@dataclass(frozen=True)
class CountedCall:
    """A call on a problem ("linear_forward/B16") that was executed in emulation for an
    architecture (90 of sm_90): the operations and least bytes of the problem, and what
    each launch did.
    """

    problem: str
    architecture: int
    flops: float
    least_bytes: float
    launches: tuple[LaunchCounts, ...]


@dataclass(frozen=True)
class Prediction:
    """Of a call on a `chip`, at the best.

    Args:
        bound_by: the part that takes longest.
        least_s: all of it takes.
        ceiling_s: the problem takes by the roofline of the datasheet.
    """

    chip: str
    bound_by: str
    least_s: float
    ceiling_s: float

    @property
    def share(self) -> float:
        """Of the ceiling, at most."""
        return self.ceiling_s / self.least_s


def predict(call: CountedCall, dtype: str, chip: Datasheet) -> Prediction:
    """Of a call, whose launches follow one another.

    The ceiling is the roofline's: the bytes at memory's rate or the operations at the
    rate of products in that dtype, whichever takes longer; fp32 is held against
    multiply-adds, so that a product made of narrower ones can pass 100%.

    Raises:
        KeyError: if the chip has no products of a type that was counted.
    """
    times = [part_times(launch, chip) for launch in call.launches]
    longest = [max(of_launch, key=of_launch.get) for of_launch in times]
    taken = [of_launch[part] for of_launch, part in zip(times, longest)]
    least_s = sum(taken)
    bound_by = longest[max(range(len(taken)), key=taken.__getitem__)]
    ceiling_s = ceiling(call.flops, call.least_bytes, dtype, chip)
    return Prediction(chip.name, bound_by, least_s, ceiling_s)


def ceiling(flops: float, least_bytes: float, dtype: str, chip: Datasheet) -> float:
    """The least seconds of a problem by the roofline of the datasheet."""
    element = _MATRIX_TYPES.get(dtype)
    rate = chip.matrix_flops_per_s[element] if element else chip.fma_flops_per_s
    return max(least_bytes / chip.memory_bytes_per_s, flops / rate)


def part_times(launch: LaunchCounts, chip: Datasheet) -> dict[str, float]:
    """Seconds of each part of the GPU. What multiprocessors do is taken at the rate of
    the one with most blocks.
    """
    cycles_per_s = chip.multiprocessors * chip.clock_hz / _unevenness(launch, chip)
    matrix_s = sum(
        flops / chip.matrix_flops_per_s[element]
        for element, flops in launch.matrix_flops.items()
    )
    # Most moves of PTX are none of the assembler's.
    issued = launch.instructions - launch.moves
    return {
        MEMORY: (launch.distinct_bytes + launch.written_bytes)
        / chip.memory_bytes_per_s,
        L2: launch.sectors * _SECTOR_BYTES / chip.l2_bytes_per_cycle / cycles_per_s,
        SHARED: (launch.passes + launch.operand_bytes / _PASS_BYTES) / cycles_per_s,
        TENSOR_CORES: matrix_s * _unevenness(launch, chip),
        FP32: launch.float_instructions / chip.float_warps_per_cycle / cycles_per_s,
        ISSUE: issued / chip.issued_per_cycle / cycles_per_s,
    }


def _unevenness(launch: LaunchCounts, chip: Datasheet) -> float:
    """The blocks of the busiest multiprocessor over the mean. A grid of whole multiples
    of the multiprocessors that it was captured for is one that follows the chip.
    """
    if launch.blocks % CAPTURED_MULTIPROCESSORS == 0:
        return 1.0
    most = math.ceil(launch.blocks / chip.multiprocessors)
    return most * chip.multiprocessors / launch.blocks
