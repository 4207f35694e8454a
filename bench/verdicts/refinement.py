"""Which batch sizes to measure besides, once a first pass has shown where the answer
changes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from batchline.bench.store.records import Record
from batchline.bench.verdicts import crossovers
from batchline.bench.verdicts.crossovers import Choice, Crossover
from batchline.bench.verdicts.latency_law import laws

Group = tuple[str, str, str]  # op, scenario, dtype
_MOST = 8  # of one group


def batches_to_add(
    records: Sequence[Record], baselines: Mapping[str, str]
) -> dict[Group, tuple[int, ...]]:
    """For each op, scenario and dtype, ascending: around each change of the choice, and
    beside each cliff.

    Where the choice changes from one variant to another: where the two are thought to
    meet, and half way (in doublings) from there to the measured batch sizes around it.
    Where the time of a chosen variant stands out of its latency law: the batch before
    and the one after.
    """
    changes = crossovers.crossovers(records)
    found: dict[Group, list[int]] = {}
    chosen: dict[Group, set[str]] = {}
    for choice in crossovers.choices(records, baselines):
        chosen.setdefault(choice.problem, set()).add(choice.variant)
    for before, after in itertools.pairwise(crossovers.choices(records, baselines)):
        if before.problem == after.problem:
            found.setdefault(before.problem, []).extend(
                _between(before, after, changes)
            )
    for law in laws(records):
        group = law.op, law.scenario, law.dtype
        if law.variant in chosen.get(group, ()):
            found.setdefault(group, []).extend(
                cliff.batch + step for cliff in law.cliffs for step in (-1, 1)
            )
    measured: dict[Group, set[int]] = {}
    for record in records:
        measured.setdefault((record.op, record.scenario, record.dtype), set()).add(
            record.batch
        )
    added = {
        group: [
            batch
            for batch in dict.fromkeys(batches)
            if batch > 0 and batch not in measured[group]
        ]
        for group, batches in found.items()
    }
    return {
        group: tuple(sorted(batches[:_MOST]))
        for group, batches in added.items()
        if batches
    }


def _between(
    before: Choice, after: Choice, changes: Sequence[Crossover]
) -> Iterator[int]:
    low, high = before.last, after.first
    meet = next(
        (
            change.batch
            for change in changes
            if (change.op, change.scenario, change.dtype) == before.problem
            and (change.first, change.then) == (before.variant, after.variant)
            and change.up_to <= low
            and high <= change.from_
            and low < change.batch < high
        ),
        math.sqrt(low * high),
    )
    for batch in (meet, math.sqrt(low * meet), math.sqrt(meet * high)):
        if low < round(batch) < high:
            yield round(batch)
