"""At which batch size one variant overtakes another, with an interval; and which is
best at each batch, if any is.

Between the batch sizes around a crossover the difference of two times is taken as a
line in B: exact where each is a launch and a cost a sample. Its root has Fieller's
interval (Some problems in interval estimation, JRSS B 16, 1954): the batch sizes at
which the line is not told from 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from batchline.bench.noise.intervals import Means, Quantiles, fieller
from batchline.bench.store.records import Record
from batchline.bench.verdicts import eligible, ladder, medians

TIE = 0.02  # medians of one run that differ by less are not told apart: processes differ by as much (A/A)
_NORMAL_95 = 1.96


@dataclass(frozen=True)
class Crossover:
    """`first` is faster up to batch `up_to`, `then` from batch `from_` on; at the
    measured ones between, `undecided`.

    `batch` is where their times meet, `low` and `high` the ends of its 95% interval,
    between `up_to` and `from_`.
    """

    op: str
    scenario: str
    dtype: str
    first: str
    then: str
    up_to: int
    from_: int
    undecided: tuple[int, ...]
    batch: float
    low: float
    high: float


@dataclass(frozen=True)
class Best:
    """The fastest variant that a call may go to at one batch, and how it stands to the
    strongest opponent there.

    The opponent is the fastest right one of PyTorch's variants (bench.verdicts.ladder);
    None where none was ranked. `speed_up`: over it (1.2 is 1.2x). `alike` are the other
    variants that the fastest is not told from.
    """

    op: str
    scenario: str
    dtype: str
    batch: int
    variant: str
    opponent: str | None
    speed_up: float | None
    alike: tuple[str, ...]


@dataclass(frozen=True)
class Choice:
    """The variant to use from the measured batch `first` to the measured batch `last`.

    `is_ahead`: somewhere there it is faster than PyTorch's fastest, beyond what is told
    apart. `behind`: variants of PyTorch's that are faster somewhere there, and are not
    chosen because their error bounds are their own.
    """

    op: str
    scenario: str
    dtype: str
    variant: str
    first: int
    last: int
    is_ahead: bool = False
    behind: tuple[str, ...] = ()

    @property
    def problem(self) -> tuple[str, str, str]:
        return self.op, self.scenario, self.dtype


def crossovers(records: Sequence[Record]) -> list[Crossover]:
    """Every change of the leader between two variants of one op, scenario and dtype,
    over their common batch sizes.
    """
    found = []
    for (op, scenario, dtype), by_variant in by_problem(
        filter(eligible.does_the_work, records)
    ).items():
        for one, other in itertools.combinations(by_variant, 2):
            found += _between(op, scenario, dtype, by_variant[one], by_variant[other])
    return found


def best(records: Sequence[Record]) -> list[Best]:
    """The fastest variant of each problem that a call may go to."""
    strongest = ladder.opponents(records)
    found = []
    for (op, scenario, dtype), by_variant in by_problem(
        filter(eligible.may_be_chosen, records)
    ).items():
        for batch in sorted(
            {batch for timed in by_variant.values() for batch in timed}
        ):
            here = [timed[batch] for timed in by_variant.values() if batch in timed]
            fastest = min(here, key=lambda record: record.median_s)
            opponent = strongest.get((op, scenario, dtype, batch))
            found.append(
                Best(
                    op,
                    scenario,
                    dtype,
                    batch,
                    fastest.variant,
                    opponent and opponent.variant,
                    opponent and opponent.median_s / fastest.median_s,
                    tuple(
                        record.variant
                        for record in here
                        if record is not fastest and leader(fastest, record) is None
                    ),
                )
            )
    return found


def choices(records: Sequence[Record], baselines: Mapping[str, str]) -> list[Choice]:
    """Which variant to use from which batch on: the fewest changes that the evidence
    asks for, op by op.

    Where several are not told apart it is the one that was chosen at the batch before,
    or the baseline, or the fastest. `baselines`: op → its baseline's name.
    """
    strongest = ladder.opponents(records)
    timed = {
        (*ladder.problem_of(record), record.variant): record
        for record in records
        if eligible.may_win(record)
    }
    found: list[Choice] = []
    for one in best(records):
        as_good = (one.variant, *one.alike)
        last = (
            found[-1]
            if found and found[-1].problem == (one.op, one.scenario, one.dtype)
            else None
        )
        if last and last.variant in as_good:
            before = found.pop()
        else:
            name = (
                baselines.get(one.op)
                if baselines.get(one.op) in as_good
                else one.variant
            )
            before = Choice(one.op, one.scenario, one.dtype, name, one.batch, one.batch)
        here = *before.problem, one.batch
        found.append(_at(before, timed[(*here, before.variant)], strongest.get(here)))
    return found


def _at(choice: Choice, chosen: Record, opponent: Record | None) -> Choice:
    """The choice with one batch more, at which `chosen` is its time."""
    ahead = leader(chosen, opponent) if opponent and opponent is not chosen else None
    behind = choice.behind
    if ahead and ahead != choice.variant and ahead not in behind:
        behind = *behind, ahead
    return replace(
        choice,
        last=chosen.batch,
        is_ahead=choice.is_ahead or ahead == choice.variant,
        behind=behind,
    )


def leader(one: Record, other: Record) -> str | None:
    """Which of two is faster, by more than a tie and than the samples of either leave
    open; None if neither is.
    """
    difference = math.log(one.median_s / other.median_s)
    margin = max(math.log1p(TIE), math.hypot(_precision(one), _precision(other)))
    return (
        None
        if abs(difference) <= margin
        else (one if difference < 0 else other).variant
    )


def _between(
    op: str,
    scenario: str,
    dtype: str,
    one: Mapping[int, Record],
    other: Mapping[int, Record],
) -> Iterator[Crossover]:
    leaders = [
        (batch, leader(one[batch], other[batch]))
        for batch in sorted(one.keys() & other.keys())
    ]
    decided = [(batch, name) for batch, name in leaders if name]
    for (up_to, first), (from_, then) in itertools.pairwise(decided):
        if first != then:
            inside = [batch for batch, _ in leaders if up_to <= batch <= from_]
            meet = root(
                [(batch, *_difference(one[batch], other[batch])) for batch in inside]
            )
            yield Crossover(
                op,
                scenario,
                dtype,
                first,
                then,
                up_to,
                from_,
                tuple(inside[1:-1]),
                *meet,
            )


def root(points: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Where a line through (x, y, standard error of y) is 0, and both ends of the 95%
    interval of that.

    Weighted least squares. Root and ends lie between the first x and the last: there
    the sign is known.
    """
    first, last = points[0][0], points[-1][0]
    weights = [1 / max(error, 1e-150) ** 2 for _, _, error in points]
    total = math.fsum(weights)
    x_mean, y_mean = (
        math.fsum(weight * point[axis] for weight, point in zip(weights, points))
        / total
        for axis in (0, 1)
    )
    spread = math.fsum(
        weight * (x - x_mean) ** 2 for weight, (x, _, _) in zip(weights, points)
    )
    slope = (
        math.fsum(
            weight * (x - x_mean) * (y - y_mean)
            for weight, (x, y, _) in zip(weights, points)
        )
        / spread
    )
    if slope == 0:
        return (first + last) / 2, first, last
    # How far behind the first x: what the line lacks there to be 0, over what it gains
    # a step.
    sign, to_mean = math.copysign(1, slope), x_mean - first
    way = Means(
        sign * (slope * to_mean - y_mean),
        abs(slope),
        1 / total + to_mean**2 / spread,
        to_mean / spread,
        1 / spread,
    )
    ends = fieller(way, Quantiles(-_NORMAL_95, _NORMAL_95))
    return tuple(
        min(max(first + step, first), last)
        for step in (way.top / way.bottom, ends.low, ends.high)
    )


def _difference(one: Record, other: Record) -> tuple[float, float]:
    """One's time over the other's, in seconds, and its standard error."""
    errors = [
        _precision(record) / _NORMAL_95 * record.median_s for record in (one, other)
    ]
    return one.median_s - other.median_s, math.hypot(*errors)


def _precision(record: Record) -> float:
    return medians.precision(record.samples_s)


def by_problem(
    records: Iterable[Record],
) -> dict[tuple[str, str, str], dict[str, dict[int, Record]]]:
    """Op, scenario and dtype → variant → batch → what was measured; what is not ranked
    is left out.
    """
    found: dict[tuple[str, str, str], dict[str, dict[int, Record]]] = {}
    for record in records:
        if eligible.may_win(record):
            group = found.setdefault((record.op, record.scenario, record.dtype), {})
            group.setdefault(record.variant, {})[record.batch] = record
    return found
