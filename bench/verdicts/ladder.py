"""What each rung of an op's ladder bought: its times against the rung below, and
against PyTorch's fastest.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record
from batchline.bench.verdicts import eligible

Problem = tuple[str, str, str, int]


@dataclass(frozen=True)
class Gain:
    """Speed-ups over the cases that both sides were measured on: their geometric mean,
    the least and the largest.
    """

    mean: float
    least: float
    most: float
    cases: int


def opponents(records: Sequence[Record]) -> dict[Problem, Record]:
    """The strongest opponent on each problem: of PyTorch's own variants that are ranked
    the one with the lowest median.
    """
    best: dict[Problem, Record] = {}
    for record in records:
        if eligible.may_win(record) and record.facts.get("backend") == "torch":
            problem = problem_of(record)
            if problem not in best or record.median_s < best[problem].median_s:
                best[problem] = record
    return best


def problem_of(record: Record) -> Problem:
    """What the variants of one comparison share."""
    return record.op, record.scenario, record.dtype, record.batch


def over(
    records: Sequence[Record], variant: str, other: Callable[[Record], Record | None]
) -> Gain | None:
    """How much faster `variant` ("op/name") is than what `other` gives for each of its
    records; None without a pair.

    Where it is not ranked it gains nothing.
    """
    ratios = [
        rival.median_s / record.median_s
        for record in records
        if eligible.may_win(record)
        and f"{record.op}/{record.variant}" == variant
        and (rival := other(record)) is not None
    ]
    if not ratios:
        return None
    return Gain(
        statistics.geometric_mean(ratios), min(ratios), max(ratios), len(ratios)
    )


def over_rung_below(records: Sequence[Record], variant: str, below: str) -> Gain | None:
    """The gain of `variant` over the rung `below` it (both "op/name")."""
    times = {
        problem_of(record): record
        for record in records
        if record.status == MEASURED and f"{record.op}/{record.variant}" == below
    }
    return over(records, variant, lambda record: times.get(problem_of(record)))


def over_opponent(records: Sequence[Record], variant: str) -> Gain | None:
    """The gain of `variant` over the strongest opponent, problem by problem."""
    strongest = opponents(records)
    return over(records, variant, lambda record: strongest.get(problem_of(record)))


def climb(variants: Mapping[str, Mapping]) -> list[tuple[str, int]]:
    """The variants from the lowest rung up, backend by backend: (id, how many rungs it
    stands on).

    `variants` has each one's backend and builds_on. A rung whose lower one is not among
    them starts a ladder.
    """
    order: list[tuple[str, int]] = []

    def add(variant: str, height: int) -> None:
        order.append((variant, height))
        for name, facts in variants.items():
            if facts["builds_on"] == variant:
                add(name, height + 1)

    for backend in dict.fromkeys(facts["backend"] for facts in variants.values()):
        for name, facts in variants.items():
            if facts["backend"] == backend and facts["builds_on"] not in variants:
                add(name, 0)
    return order
