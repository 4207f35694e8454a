"""What a call of each GPU variant does on a problem that fills a GPU, counted in
emulation: what bench.stats.prediction divides by a datasheet's rates.

The problem is the variant's example with all its samples, or with as many as take no
more than 2^24 instructions of warps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from batchline.bench.measure.compiled.static_facts import variant_of
from batchline.bench.measure.emulated.counted import LEAST_BATCH, why_declined
from batchline.bench.measure.emulator import execution
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.execution import Execution
from batchline.bench.stats.prediction import CountedCall, LaunchCounts
from batchline.kernels.op import Variant

_MOST_INSTRUCTIONS = 2**24


def count_filling(variant_id: str, dtype: str, architecture: int) -> list[CountedCall]:
    """The call, alone in a list; [] if the variant declines the problem there, or could
    not be executed (the counts of its example say why).
    """
    torch.set_num_threads(1)
    variant = variant_of(variant_id)
    scenario, most = variant.example
    least = min(LEAST_BATCH, most)
    first = _count(variant, (scenario, least, dtype), architecture)
    if first is None:
        return []
    batch = filling_batch(first.launches, least, most)
    if batch > least:
        whole = _count(variant, (scenario, batch, dtype), architecture)
        first = whole or first
    return [first]


def filling_batch(launches: Sequence[LaunchCounts], least: int, most: int) -> int:
    """The most samples up to `most`, `least` times a power of two, that should take no
    more than 2^24 instructions, where `least` take those of `launches`.
    """
    instructions = sum(launch.instructions for launch in launches)
    batch = least
    while 2 * batch <= most and 2 * instructions <= _MOST_INSTRUCTIONS:
        batch, instructions = 2 * batch, 2 * instructions
    return batch


def _count(variant: Variant, problem: tuple, architecture: int) -> CountedCall | None:
    """The call on (scenario, batch, dtype), or None where it came to none."""
    if why_declined(variant, problem, architecture):
        return None
    inputs = variant.op.make_inputs(*problem, "cpu")
    try:
        call = emulate_call(variant, inputs, architecture, execution.execute)
    except Exception:  # whatever the variant, a compiler or the emulator raises
        return None
    scenario, batch, _ = problem
    runs = [run for _, run in call.launches]
    return counted_call(variant, f"{scenario}/B{batch}", inputs, architecture, runs)


def counted_call(
    variant: Variant,
    problem: str,
    inputs: Sequence[torch.Tensor],
    architecture: int,
    runs: Iterable[Execution],
) -> CountedCall:
    """What the launches did of a call on these inputs."""
    return CountedCall(
        problem,
        architecture,
        variant.op.flops(*inputs),
        variant.op.least_bytes(*inputs),
        tuple(map(_launch, runs)),
    )


def _launch(run: Execution) -> LaunchCounts:
    counts = run.counts
    x, y, z = run.launch.grid
    return LaunchCounts(
        blocks=x * y * z,
        instructions=counts.instructions,
        float_instructions=counts.by_class.get("float", 0),
        moves=counts.by_class.get("move", 0),
        sectors=counts.sectors,
        passes=counts.passes,
        distinct_bytes=counts.distinct_bytes,
        written_bytes=counts.written_bytes,
        matrix_flops=dict(counts.matrix_flops),
        operand_bytes=counts.operand_bytes,
    )
