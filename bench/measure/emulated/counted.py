"""What each GPU variant does on one problem, counted in emulation: the rows that are
pinned and compared.

The problem is the variant's example (as that of the compiled facts), with fewer
samples: see `counted_batch`.
"""

from __future__ import annotations

import hashlib
import linecache
from collections import defaultdict
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
import torch

from batchline.bench import texts
from batchline.bench.declared import Declared
from batchline.bench.measure.compiled.static_facts import variant_of
from batchline.bench.measure.emulator import execution
from batchline.bench.measure.emulator.capture import emulate_call
from batchline.bench.measure.emulator.execution import Execution
from batchline.bench.measure.emulator.subjects import architectures_of
from batchline.kernels import architectures
from batchline.kernels.op import FP8, Variant
from batchline.kernels.target import compiling_for

_MOST_FLOPS = 2**22
LEAST_BATCH = 2  # a batch of one is compiled as a constant
_OF_LINES = ("executed", "sectors", "sectors_needed", "passes", "requests")


def counted_batch(variant: Variant, dtype: str) -> int:
    """So many samples of the variant's example are counted: the largest power of two
    whose work by the op's definition is at most 2^22 operations, two at least, and
    never more than the example has.
    """
    scenario, most = variant.example
    batch = 1
    while 2 * batch <= most and (
        2 * batch <= LEAST_BATCH
        or _flops(variant, scenario, 2 * batch, dtype) <= _MOST_FLOPS
    ):
        batch *= 2
    return batch


def _flops(variant: Variant, scenario: str, batch: int, dtype: str) -> int:
    return variant.op.flops(*variant.op.make_inputs(scenario, batch, dtype, "meta"))


def count_example(variant_id: str, dtype: str, architecture: int) -> list[dict]:
    """As `rows_of`, for a process that may import the variant's file."""
    torch.set_num_threads(1)
    return rows_of(variant_of(variant_id), dtype, architecture)


def rows_of(variant: Variant, dtype: str, architecture: int) -> list[dict]:
    """A row for each launch of the variant's example in emulation; or one that says why
    it is "declined" there, or the "error" that ended it.
    """
    place = {
        "variant": variant.id,
        "dtype": dtype,
        "scenario": variant.example[0],
        "batch": counted_batch(variant, dtype),
        "architecture": architecture,
    }
    problem = place["scenario"], place["batch"], dtype
    if why := why_declined(variant, problem, architecture):
        return [place | {"launch": 0, "declined": why}]
    try:
        inputs = variant.op.make_inputs(*problem, "cpu")
        call = emulate_call(variant, inputs, architecture, execution.execute)
    except (
        Exception
    ) as error:  # whatever the variant, a compiler or the emulator raises
        return [place | {"launch": 0, "error": texts.error_line(error)}]
    return [
        place | {"launch": number} | _row(run)
        for number, (_, run) in enumerate(call.launches)
    ]


def why_declined(variant: Variant, problem: tuple, architecture: int) -> str | None:
    """Why the variant takes no (scenario, batch, dtype) there, or None."""
    target = architectures.known(architecture)
    if problem[-1] == FP8 and not target.fp8:
        return f"{target} has no tensor cores for fp8"
    with compiling_for(architecture):
        return variant.why_unsupported(*variant.op.make_inputs(*problem, "meta"))


def _row(run: Execution) -> dict:
    counts = run.counts
    return {
        "kernel": run.launch.kernel,
        "config": run.launch.config,
        "grid": list(run.launch.grid),
        "block": list(run.launch.block),
        "instructions": counts.instructions,
        "classes": dict(counts.by_class),
        "sectors": counts.sectors,
        "sectors_needed": counts.sectors_needed,
        "passes": counts.passes,
        "requests": counts.requests,
        "read_bytes": counts.read_bytes,
        "distinct_bytes": counts.distinct_bytes,
        "products": counts.products,
        "lines": lines_of(run),
    }


def lines_of(run: Execution) -> dict[str, list[str]]:
    """For each file of the source, "57 a1b2c3 1024 …" of each line that did something:
    its number, a hash of its text, and its instructions, sectors, sectors needed,
    passes and requests.
    """
    columns = np.stack([getattr(run, name) for name in _OF_LINES], axis=1)
    sums: dict[tuple[str, int], np.ndarray] = defaultdict(lambda: 0)
    for row in np.flatnonzero(run.executed).tolist():
        source = run.program.instruction(row).source
        place = source.outermost if source else None
        sums[(place.file, place.line) if place else ("PTX", 0)] += columns[row]
    found = defaultdict(list)
    for (file, line), counts in sorted(sums.items()):
        text = linecache.getline(file, line).strip()
        mark = hashlib.sha256(text.encode()).hexdigest()[:6]
        numbers = " ".join(map(str, counts.tolist()))
        found[PurePath(file).name].append(f"{line} {mark} {numbers}")
    return dict(found)


def every_job(jobs, variants: Sequence[Declared]) -> list[tuple[str, str, int]]:
    """(variant, dtype, architecture) of each (variant, dtype) of these variants."""
    of_variant = {one.id: architectures_of(one) for one in variants}
    return [(*job, architecture) for job in jobs for architecture in of_variant[job[0]]]
