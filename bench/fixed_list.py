"""The fixed list of problems of profile `evidence`: about 400 cases on a GPU, over
every op.

Each group (an op's scenario in a dtype) has the profile's batch sizes and the two next
to its crossover. All problems at the first batch size come before those at the next, in
turns over the ops, so that a run which is cut has some of each.

The crossover here is the batch size at which a problem's work takes as long as a
launch, by the nominal rates of an H100: below it the launch is paid for, above it the
work. Its neighbours are the powers of two around it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from batchline.bench.declared import DeclaredOp, Problem

GROUPS = {
    "bmm": (
        ("linear_forward", "float16"),
        ("square_1024", "float32"),
        ("tiny_16", "float16"),
    ),
    "grad_reduce": (
        ("transformer_block", "float16"),
        ("linear_512", "float32"),
        ("layer_norm", "float16"),
    ),
    "grad_reduce_multi": (("gpt2_block", "float16"), ("layer_norms", "float32")),
    "grad_stats": (("transformer_block", "float16"), ("linear_512", "float32")),
    "wgrad_stats": (("linear_512_T1", "float16"), ("linear_512_T128", "float32")),
}
"""By op, what is bound by memory or arithmetic first. Every variant takes one of them; an op that is not here has its
first scenario."""
_LAUNCH_S = 5e-6
_BYTES_PER_S = 3e12
_FLOPS_PER_S = {"float16": 5e14, "float32": 5e13}
_SMALLEST, _LARGEST = 2, 2**12  # of a neighbour

Key = tuple[str, str, str, int]  # as bench.declared.Problem.key


def problems(ops: Mapping[str, DeclaredOp], batches: Sequence[int]) -> list[Key]:
    """The list, in the order in which it is measured.

    Args:
        ops: with all their problems at batch 1, in each of the dtypes that the device
        is measured in. batches: the sizes that every group has.
    """
    groups = list(_in_turns([_chosen(op) for op in ops.values() if op.problems]))
    sizes = [tuple(dict.fromkeys((*batches, *neighbours(one)))) for one in groups]
    rows = itertools.zip_longest(*sizes)
    return [
        (*one.key[:3], batch)
        for row in rows
        for one, batch in zip(groups, row)
        if batch
    ]


def neighbours(one: Problem) -> tuple[int, int]:
    """The powers of two below and above the batch at which as many of `one` (of batch
    1) take as long as a launch.
    """
    rate = _FLOPS_PER_S.get(one.dtype, _FLOPS_PER_S["float32"])
    sample_s = max(one.flops / rate, one.least_bytes / _BYTES_PER_S)
    below = 2 ** math.floor(math.log2(max(1.0, _LAUNCH_S / sample_s)))
    below = min(max(below, _SMALLEST), _LARGEST // 2)
    return below, 2 * below


def _chosen(op: DeclaredOp) -> list[Problem]:
    """The op's groups, each by its problem at batch 1; in the first dtype that there is
    where its own is not.
    """
    by_group = {(problem.scenario, problem.dtype): problem for problem in op.problems}
    first = op.problems[0]
    wanted = GROUPS.get(op.name, ((first.scenario, first.dtype),))
    chosen = [
        by_group.get((scenario, dtype)) or _of_scenario(op, scenario)
        for scenario, dtype in wanted
    ]
    return [one for one in chosen if one]


def _of_scenario(op: DeclaredOp, scenario: str) -> Problem | None:
    return next(
        (problem for problem in op.problems if problem.scenario == scenario), None
    )


def _in_turns(by_op: Sequence[Sequence[Problem]]) -> Iterator[Problem]:
    for row in itertools.zip_longest(*by_op):
        yield from (one for one in row if one)
