"""All inputs on which a worker launches a variant that it measures, as shapes alone.

It launches it on the problem, but before that on its op's probes, on sizes near the
scenario's, and for the numerics audit on the op's conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from batchline.bench.measure.checking import steadiness
from batchline.kernels.op import Tensors, Variant

PROBLEM, PROBE, NEARBY, CONDITION = "problem", "probe", "near", "condition"


@dataclass(frozen=True)
class Place:
    """Inputs by name: of a scenario at a batch, near a scenario, or of a probe or a
    condition of the op.
    """

    kind: str
    name: str
    dtype: str
    batch: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.dtype}{f' B={self.batch}' if self.batch else ''}"


def places(
    variant: Variant, problems: Iterable[tuple[str, str, int]], nearby_seed: int | None
) -> list[Place]:
    """Where the variant is launched when it is measured on these (scenario, dtype,
    batch), what comes first first.

    `nearby_seed` is the task's (bench.measure.worker.task); without one the sizes near a
    scenario are not known beforehand.
    """
    problems = list(problems)
    dtypes = dict.fromkeys(dtype for _, dtype, _ in problems)
    groups = dict.fromkeys((scenario, dtype) for scenario, dtype, _ in problems)
    found = [
        Place(PROBE, name, dtype) for dtype in dtypes for name in variant.op.probes
    ]
    if nearby_seed is not None:
        found += [Place(NEARBY, scenario, dtype) for scenario, dtype in groups]
    found += [Place(PROBLEM, *problem) for problem in problems]
    return found + [
        Place(CONDITION, name, dtype)
        for dtype in dtypes
        for name in variant.op.conditions
    ]


def inputs_at(
    variant: Variant, place: Place, nearby_seed: int | None
) -> Tensors | None:
    """The inputs on device "meta"; None where the variant declines them."""
    tried = _made(variant, place, nearby_seed)
    return next(
        (inputs for inputs in tried if variant.why_unsupported(*inputs) is None), None
    )


def _made(variant: Variant, place: Place, nearby_seed: int | None) -> Iterator[Tensors]:
    op, dtype = variant.op, getattr(torch, place.dtype)
    if place.kind == PROBLEM:
        yield op.make_inputs(place.name, place.batch, place.dtype, "meta")
    elif place.kind == NEARBY:
        for near, batch in steadiness.sizes_near(
            variant, place.name, place.dtype, nearby_seed
        ):
            yield op.inputs(near, batch, dtype, "meta", 0)
    else:
        make = {PROBE: op.probes, CONDITION: op.conditions}[place.kind][place.name]
        yield make(dtype, "meta", 0)
