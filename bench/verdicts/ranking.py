"""Which results are ranked, and what each rung of an op's ladder gained.

The one place that says which times may win, and which only stand in the tables. What a
variant declares of itself exempts it from a check: a wider error bound, fewer outputs,
inputs that it declines. And a gain may be one over a baseline that took longer than it
usually does (bench.running.after_cases). Such a time stands in the tables, with the reason; it is
no best of a row, no gain on a ladder and no choice.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.statuses import MEASURED
from batchline.bench.store.records import Record

MOST_TOLERANCE = 16  # times the op's own error bound, on the problem that was measured
_CHOOSES = (
    "dispatch"  # the backend (kernels.backends) of a variant that calls another one
)


def why_unranked(record: Record) -> str | None:
    """Why a measured time is not ranked, or None. A fact that an older run lacks
    exempts nothing.
    """
    facts = record.facts
    if facts.get("is_peer"):
        return "a peer: another library's way, beside ours"
    if facts.get("gives") is not None:
        return "gives only some of the op's outputs"
    if facts.get("probes") == 0:
        return "accepted none of the op's probes"
    multiple = facts.get("tolerance_multiple") or 1
    if multiple > MOST_TOLERANCE and not facts.get(
        "is_baseline"
    ):  # which no variant becomes by what it declares
        return f"held to {multiple:.3g} times the op's error bound, and {MOST_TOLERANCE} times is the most"
    return facts.get("confirmed", {}).get("unranked")


def may_win(record: Record) -> bool:
    """Whether a result is ranked: measured, and exempt from nothing."""
    return record.status == MEASURED and why_unranked(record) is None


def may_be_chosen(record: Record) -> bool:
    """Whether a call may go to it: ranked, doing the work itself, and inside its op's
    error bound or the baseline.
    """
    facts = record.facts
    return (
        may_win(record)
        and does_the_work(record)
        and (not facts.get("own_tolerance") or bool(facts.get("is_baseline")))
    )


def does_the_work(record: Record) -> bool:
    """Whether the variant of a result computes by itself, and does not call another
    variant.
    """
    return record.facts.get("backend") != _CHOOSES


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
        if may_win(record) and record.facts.get("backend") == "torch":
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
        if may_win(record)
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


@dataclass(frozen=True)
class Rung:
    """One variant ("op/name") on its op's ladder: the `height` of its rung, and its
    gains; None where no case has both sides.
    """

    variant: str
    height: int
    over_rung_below: Gain | None
    over_opponent: Gain | None


def ladders(
    records: Sequence[Record], variants: Mapping[str, Mapping]
) -> dict[str, tuple[Rung, ...]]:
    """The rungs of each op, from the lowest up.

    `variants` has each one's backend and builds_on, by "op/name".
    """
    by_op: dict[str, dict[str, Mapping]] = {}
    for name, facts in variants.items():
        by_op.setdefault(name.partition("/")[0], {})[name] = facts
    return {op: tuple(_rungs(op, records, ours)) for op, ours in by_op.items()}


def _rungs(
    op: str, records: Sequence[Record], variants: Mapping[str, Mapping]
) -> Iterator[Rung]:
    of_op = [record for record in records if record.op == op]
    for name, height in climb(variants):
        below = variants[name]["builds_on"]
        yield Rung(
            name,
            height,
            over_rung_below(of_op, name, below) if below else None,
            over_opponent(of_op, name),
        )
