"""At which batch size one variant overtakes another, which one to use from which batch
on, and which batch sizes to measure next.

Between the batch sizes around a crossover the difference of two times is taken as a
line in B: exact where each is a launch and a cost per sample. Its root has Fieller's
interval (Some problems in interval estimation, JRSS B 16, 1954): the batch sizes at
which the line may be 0.

The last part is a crossover in tokens: from how many tokens per sample on the fused
statistics of weight gradients beat ghost norms. Ghost norms pay 2T²(I+O) operations per
sample for two Grams; the fused way pays for walking I·O numbers. So they meet at T* =
√(κ·IO/(I+O)), where κ says what one of those numbers costs in multiply-adds of a
product: 1 if as little as one, 25 if it is bound by loads and stores at a fifth of a
unit's rate each way. κ is the machine's; hence a range, and a measurement.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from batchline.bench.stats import intervals
from batchline.bench.stats.intervals import Means, Quantiles, fieller
from batchline.bench.store.records import Record
from batchline.bench.verdicts import ranking
from batchline.bench.verdicts.laws import latency_laws

TIE = 0.02  # medians of one run that differ by less count as equal: processes differ by as much (A/A)
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

    The opponent is the fastest right one of PyTorch's variants
    (bench.verdicts.ranking); None where none was ranked. `speed_up`: over it (1.2 is
    1.2x). `alike` are the other variants that may be as fast.
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

    `is_ahead`: somewhere there it is faster than PyTorch's fastest, by more than a tie.
    `behind`: variants of PyTorch's that are faster somewhere there, and are not chosen
    because their error bounds are their own.
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
    changes = []
    for (op, scenario, dtype), by_variant in by_problem(
        filter(ranking.does_the_work, records)
    ).items():
        for one, other in itertools.combinations(by_variant, 2):
            changes += _between(op, scenario, dtype, by_variant[one], by_variant[other])
    return changes


def best(records: Sequence[Record]) -> list[Best]:
    """The fastest variant of each problem that a call may go to."""
    strongest = ranking.opponents(records)
    bests = []
    for (op, scenario, dtype), by_variant in by_problem(
        filter(ranking.may_be_chosen, records)
    ).items():
        for batch in sorted(
            {batch for timed in by_variant.values() for batch in timed}
        ):
            here = [timed[batch] for timed in by_variant.values() if batch in timed]
            fastest = min(here, key=lambda record: record.median_s)
            opponent = strongest.get((op, scenario, dtype, batch))
            bests.append(
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
    return bests


def choices(records: Sequence[Record], baselines: Mapping[str, str]) -> list[Choice]:
    """Which variant to use from which batch on: the fewest changes that the evidence
    asks for, op by op.

    Where several tie, the one that was chosen at the batch before stays; else it is the
    baseline if it is among them, else the fastest. `baselines`: op → its baseline's
    name.
    """
    strongest = ranking.opponents(records)
    timed = {
        (*ranking.problem_of(record), record.variant): record
        for record in records
        if ranking.may_win(record)
    }
    chosen: list[Choice] = []
    for one in best(records):
        as_good = (one.variant, *one.alike)
        last = (
            chosen[-1]
            if chosen and chosen[-1].problem == (one.op, one.scenario, one.dtype)
            else None
        )
        if last and last.variant in as_good:
            before = chosen.pop()
        else:
            name = (
                baselines.get(one.op)
                if baselines.get(one.op) in as_good
                else one.variant
            )
            before = Choice(one.op, one.scenario, one.dtype, name, one.batch, one.batch)
        here = *before.problem, one.batch
        chosen.append(_at(before, timed[(*here, before.variant)], strongest.get(here)))
    return chosen


def _at(choice: Choice, chosen: Record, opponent: Record | None) -> Choice:
    """The choice extended by one batch, at which `chosen` is its record."""
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
    """The faster of two, if it is faster by more than a tie and by more than the
    intervals of both medians; else None.
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
    first = points[0][0]
    last = points[-1][0]
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
    sign = math.copysign(1, slope)
    to_mean = x_mean - first
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
    """The first median less the second, in seconds, and its standard error."""
    errors = [
        _precision(record) / _NORMAL_95 * record.median_s for record in (one, other)
    ]
    return one.median_s - other.median_s, math.hypot(*errors)


def _precision(record: Record) -> float:
    return intervals.median_precision(record.samples_s)


def by_problem(
    records: Iterable[Record],
) -> dict[tuple[str, str, str], dict[str, dict[int, Record]]]:
    """Op, scenario and dtype → variant → batch → record, of the records that are
    ranked.
    """
    problems: dict[tuple[str, str, str], dict[str, dict[int, Record]]] = {}
    for record in records:
        if ranking.may_win(record):
            group = problems.setdefault((record.op, record.scenario, record.dtype), {})
            group.setdefault(record.variant, {})[record.batch] = record
    return problems


Group = tuple[str, str, str]  # op, scenario, dtype
_MOST_ADDED = 8  # of one group


def batches_to_add(
    records: Sequence[Record], baselines: Mapping[str, str]
) -> dict[Group, tuple[int, ...]]:
    """For each op, scenario and dtype, ascending: around each change of the choice, and
    beside each cliff.

    Where the choice changes from one variant to another: where their times are
    estimated to meet, and half way (in doublings) from there to the measured batch
    sizes around it. Where the time of a chosen variant stands out of its latency law:
    the batch before and the one after.
    """
    changes = crossovers(records)
    wanted: dict[Group, list[int]] = {}
    chosen: dict[Group, set[str]] = {}
    for choice in choices(records, baselines):
        chosen.setdefault(choice.problem, set()).add(choice.variant)
    for before, after in itertools.pairwise(choices(records, baselines)):
        if before.problem == after.problem:
            wanted.setdefault(before.problem, []).extend(
                _batches_between(before, after, changes)
            )
    for key, law in latency_laws(records).items():
        group = key.op, key.scenario, key.dtype
        if law and key.variant in chosen.get(group, ()):
            wanted.setdefault(group, []).extend(
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
        for group, batches in wanted.items()
    }
    return {
        group: tuple(sorted(batches[:_MOST_ADDED]))
        for group, batches in added.items()
        if batches
    }


def _batches_between(
    before: Choice, after: Choice, changes: Sequence[Crossover]
) -> Iterator[int]:
    low = before.last
    high = after.first
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


TOKENS_OP = "wgrad_stats"
FUSED = ("triton_fused", "gluon_fused", "numba_cpu_fused")
GHOST = ("torch_ghost", "torch_ghost_tf32", "torch_ghost_3xbf16", "torch_ghost_6xbf16")
KAPPA = (1, 25)
_GHOST = "ghost"


@dataclass(frozen=True)
class TokenCrossing:
    """One layer at one batch: fused over ghost by T, the T* predicted (a range), and
    the T* measured.

    `ratios` are ghost's time over fused's, by T, ascending. `between` is the pair of T
    around the last change of leader and `tokens` the T* in between, interpolated in
    logarithms; both None where one leads throughout.
    """

    dtype: str
    inputs: int
    outputs: int
    batch: int
    fused: str
    ratios: tuple[tuple[int, float], ...]
    predicted: tuple[float, float]
    between: tuple[int, int] | None
    tokens: float | None


def predicted_tokens(inputs: int, outputs: int) -> tuple[float, float]:
    """The range of T* for a layer of these sizes."""
    low, high = (
        math.sqrt(kappa * inputs * outputs / (inputs + outputs)) for kappa in KAPPA
    )
    return low, high


def token_crossings(
    records: Sequence[Record], sizes: Mapping[str, Mapping[str, int]]
) -> list[TokenCrossing]:
    """Every layer and batch at which both ways were measured for two T or more; `sizes`
    are by scenario.

    Ghost's time is that of the fastest form of it that is ranked.
    """
    times: dict[tuple, dict[int, dict[str, float]]] = {}
    for record in records:
        if (
            record.op == TOKENS_OP
            and ranking.may_win(record)
            and record.variant in (*GHOST, *FUSED)
        ):
            size = sizes[record.scenario]
            layer = record.dtype, size["I"], size["O"], record.batch
            medians = times.setdefault(layer, {}).setdefault(size["T"], {})
            way = _GHOST if record.variant in GHOST else record.variant
            medians[way] = min(record.median_s, medians.get(way, math.inf))
    crossings = []
    for (dtype, inputs, outputs, batch), by_tokens in times.items():
        for fused in FUSED:
            ratios = tuple(
                (tokens, medians[_GHOST] / medians[fused])
                for tokens, medians in sorted(by_tokens.items())
                if _GHOST in medians and fused in medians
            )
            if len(ratios) > 1:
                between, tokens = _last_change_of_leader(ratios)
                crossings.append(
                    TokenCrossing(
                        dtype,
                        inputs,
                        outputs,
                        batch,
                        fused,
                        ratios,
                        predicted_tokens(inputs, outputs),
                        between,
                        tokens,
                    )
                )
    return crossings


def _last_change_of_leader(
    ratios: Sequence[tuple[int, float]],
) -> tuple[tuple[int, int] | None, float | None]:
    for (low, before), (high, after) in reversed(list(zip(ratios, ratios[1:]))):
        if before < 1 <= after:
            share = math.log(before) / (math.log(before) - math.log(after))
            return (low, high), low * (high / low) ** share
    return None, None
