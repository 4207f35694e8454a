"""Which variants give a sample the same bits in every batch, and what choosing only
among them costs.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.store.records import Record
from batchline.bench.verdicts import crossovers, eligible


@dataclass(frozen=True)
class Invariance:
    """One variant in one dtype: on how many of its scenarios a sample's bits are the
    same in every batch.

    `varies` are the scenarios on which they are not, each with the batches at which
    they differ from those in the largest; `scenarios` is 0 where no output has a row
    for each sample. `repeats`: all outputs are the same in every call and process that
    was looked at, on every scenario (None: it failed on all); `failed` are what was
    raised.
    """

    op: str
    variant: str
    dtype: str
    scenarios: int
    varies: Mapping[str, Sequence[int]]
    repeats: bool | None
    failed: tuple[str, ...]


@dataclass(frozen=True)
class Price:
    """Of choosing only among invariant variants: the fastest of them over the fastest
    of all, problem by problem.

    Their geometric mean and the largest, with where that is; `without` are the problems
    where no variant is invariant.
    """

    op: str
    dtype: str
    problems: int
    mean: float
    most: float
    where: str
    without: int


def by_variant(rows: Sequence[Mapping]) -> list[Invariance]:
    """A verdict for each variant and dtype of a run's rows (bench.measure.invariance)."""
    groups: dict[tuple[str, str, str], list[Mapping]] = {}
    for row in rows:
        groups.setdefault((row["op"], row["variant"], row["dtype"]), []).append(row)
    return [
        Invariance(
            *key,
            sum(row["rows"] is not None for row in group),
            {
                row["scenario"]: row["differs_at"]
                for row in group
                if row["rows"] is False
            },
            (
                all(looked)
                if (looked := [row["repeats"] for row in group if not row["failed"]])
                else None
            ),
            tuple(
                f"{row['scenario']}: {row['failed']}" for row in group if row["failed"]
            ),
        )
        for key, group in groups.items()
    ]


def prices(rows: Sequence[Mapping], records: Sequence[Record]) -> Iterator[Price]:
    """What invariance costs, for each op and dtype that has variants of both kinds to
    choose from.

    Over the problems that were timed on scenarios that were looked at; of what keeps
    its op's own error bound.
    """
    invariant = {
        (row["op"], row["scenario"], row["dtype"], row["variant"]): row["rows"]
        for row in rows
        if row["rows"] is not None and not row["failed"]
    }
    ratios: dict[tuple[str, str], list[tuple[float, str]]] = {}
    without: dict[tuple[str, str], int] = {}
    for (op, scenario, dtype), timed in crossovers.by_problem(
        filter(eligible.may_be_chosen, records)
    ).items():
        looked_at = [name for name in timed if (op, scenario, dtype, name) in invariant]
        for batch in sorted({batch for name in looked_at for batch in timed[name]}):
            times = {
                name: timed[name][batch].median_s
                for name in looked_at
                if batch in timed[name]
            }
            kept = [
                time_s
                for name, time_s in times.items()
                if invariant[op, scenario, dtype, name]
            ]
            if kept:
                ratios.setdefault((op, dtype), []).append(
                    (min(kept) / min(times.values()), f"{scenario} B={batch}")
                )
            else:
                without[op, dtype] = without.get((op, dtype), 0) + 1
    for key in dict.fromkeys((*ratios, *without)):
        here = ratios.get(key, [])
        most, where = max(here, default=(float("nan"), ""))
        mean = (
            statistics.geometric_mean(ratio for ratio, _ in here)
            if here
            else float("nan")
        )
        yield Price(*key, len(here), mean, most, where, without.get(key, 0))
