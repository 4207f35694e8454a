"""Who wins each problem at each batch: the map that a report begins with.

It decides nothing by itself. Which variant is chosen, what may be as fast and who leads
are what bench.verdicts.crossovers says; here its answers are put beside each other.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from batchline.bench import units
from batchline.bench.errors import Missing
from batchline.bench.statuses import MEASURED, STATUSES, is_broken
from batchline.bench.store.records import Record, Run
from batchline.bench.verdicts import ranking
from batchline.bench.verdicts.crossovers import Best, Choice, Crossover, leader

_DEPTHS = (1.1, 1.5, 2.0, 4.0)  # the speed-ups from which a colour is one step deeper
DEEPEST = len(_DEPTHS)


@dataclass(frozen=True)
class Family:
    """Variants of one backend: what a reader calls them, and the letter that stands for
    them where there is no colour.
    """

    backend: str
    name: str
    letter: str


FAMILIES = (
    Family("torch", "PyTorch", "P"),
    Family("triton", "Triton", "T"),
    Family("numba_cuda", "Numba CUDA", "G"),
    Family("numba_cpu", "Numba CPU", "C"),
)
OTHER = "other"  # the family of any other backend
_STATUS_OF_NONE = (*STATUSES[1:], MEASURED)  # of several, the first explains a cell


@dataclass(frozen=True)
class Winner:
    """The variant that wins a problem at a batch, and how far it is ahead.

    `speed_up` is over the fastest of PyTorch's variants (1.2 is 1.2x), None where none
    of them was ranked; `is_ahead` where it is more than a tie. `alike` are variants of
    other families that may be as fast: with any, the cell is undecided. `instead_of` is
    the variant that won at the batch before, if it is another, and `meet` where the
    times of the two meet, if that is known. `case` is the id of its record.
    """

    case: str
    variant: str
    family: Family
    opponent: str | None
    speed_up: float | None
    is_ahead: bool
    alike: tuple[str, ...] = ()
    instead_of: str | None = None
    meet: Crossover | None = None

    @property
    def is_decided(self) -> bool:
        return not self.alike

    @property
    def depth(self) -> int:
        """How deep its colour is, from 0 to DEEPEST."""
        return bisect.bisect(_DEPTHS, self.speed_up or 1.0)


@dataclass(frozen=True)
class Cell:
    """One batch of a problem: its winner, or why it has none. `status` is MEASURED
    where something was timed, else the worst there is; `broken` are the variants that
    count against the run, each with its status.
    """

    batch: int
    status: str
    winner: Winner | Missing
    broken: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One op, scenario and dtype, with a cell for each batch that was planned."""

    op: str
    scenario: str
    dtype: str
    cells: tuple[Cell, ...]

    def at(self, batch: int) -> Cell | None:
        """The cell of a batch; None where it was not planned."""
        return next((cell for cell in self.cells if cell.batch == batch), None)

    @property
    def is_timed(self) -> bool:
        """Whether the report has figures of it."""
        return any(cell.status == MEASURED for cell in self.cells)

    @property
    def winners(self) -> list[Winner]:
        return [cell.winner for cell in self.cells if cell.winner]

    @property
    def is_won(self) -> bool:
        """Whether something is faster than PyTorch's fastest at some batch."""
        return any(winner.is_ahead for winner in self.winners)


@dataclass(frozen=True)
class WinnerMap:
    """The rows in the order of the plan. `without` counts the problems that have none,
    because nothing of them was timed or broke.
    """

    rows: tuple[Row, ...]
    without: int = 0

    @property
    def batches(self) -> list[int]:
        return sorted({cell.batch for row in self.rows for cell in row.cells})

    @property
    def families(self) -> list[Family]:
        """Those that win somewhere, in the order of FAMILIES."""
        won = {winner.family for row in self.rows for winner in row.winners}
        known = [family for family in FAMILIES if family in won]
        return known + sorted(won - {*known}, key=lambda family: family.name)


def map_winners(
    run: Run,
    bests: Sequence[Best],
    choices: Mapping[tuple[str, str, str], Sequence[Choice]],
    crossings: Iterable[Crossover],
) -> WinnerMap:
    """The map of a run, of what bench.verdicts.judge says of it."""
    best = {(one.op, one.scenario, one.dtype, one.batch): one for one in bests}
    opponents = ranking.opponents(run.records)
    meetings: dict[tuple[str, str, str], list[Crossover]] = {}
    for one in crossings:
        meetings.setdefault((one.op, one.scenario, one.dtype), []).append(one)
    rows = []
    groups = run.groups()
    for group, records in groups.items():
        cells = [
            _cell(
                here,
                best.get((*group, batch)),
                _chosen_at(batch, choices.get(group, ())),
                opponents.get((*group, batch)),
            )
            for batch, here in sorted(_by_batch(records).items())
        ]
        if any(cell.winner or cell.broken for cell in cells):
            cells = _with_changes(cells, meetings.get(group, ()))
            rows.append(Row(*group, tuple(cells)))
    return WinnerMap(tuple(rows), len(groups) - len(rows))


def describe(cell: Cell) -> str:
    """What the cell says, in a line."""
    winner = cell.winner
    said = [_describe_winner(winner)] if winner else [str(winner)]
    if cell.broken:
        said.append(f"broken: {', '.join(cell.broken)}")
    return "; ".join(said)


def _describe_winner(winner: Winner) -> str:
    if winner.speed_up is None:
        said = f"{winner.variant}; none of PyTorch's variants is ranked here"
    elif winner.variant == winner.opponent:
        said = f"{winner.variant}, PyTorch's fastest"
    elif not winner.is_ahead:
        said = f"{winner.variant}, {units.ratio(winner.speed_up)} over {winner.opponent}, a tie"
    else:
        said = (
            f"{winner.variant}, {units.ratio(winner.speed_up)} over {winner.opponent}"
        )
    if winner.alike:
        said += f"; undecided, as fast may be {', '.join(winner.alike)}"
    if winner.instead_of:
        said += f"; takes over from {winner.instead_of}"
    if meet := winner.meet:
        said += f" at B* = {meet.batch:.3g} ({meet.low:.3g} to {meet.high:.3g})"
    return said


def _by_batch(records: Iterable[Record]) -> dict[int, list[Record]]:
    by_batch: dict[int, list[Record]] = {}
    for record in records:
        by_batch.setdefault(record.batch, []).append(record)
    return by_batch


def _chosen_at(batch: int, choices: Iterable[Choice]) -> str | None:
    return next(
        (one.variant for one in choices if one.first <= batch <= one.last), None
    )


def _cell(
    here: Sequence[Record],
    best: Best | None,
    chosen: str | None,
    opponent: Record | None,
) -> Cell:
    """The cell of one problem at one batch; `here` are its records."""
    broken = tuple(
        f"{record.variant} ({record.status})"
        for record in here
        if is_broken(record.status, record.reason)
    )
    batch = here[0].batch
    if best is None:
        worst = min(here, key=lambda record: _STATUS_OF_NONE.index(record.status))
        return Cell(batch, worst.status, Missing(_why_none(worst)), broken)
    timed = {record.variant: record for record in here if record.status == MEASURED}
    return Cell(batch, MEASURED, _winner(timed, best, chosen, opponent), broken)


def _why_none(record: Record) -> str:
    if record.status == MEASURED:
        why = ranking.why_unranked(record) or "its error bound is its own"
        return f"nothing that may win was timed: {record.variant}, {why}"
    return ": ".join(filter(None, (record.status, record.reason)))


def _winner(
    timed: Mapping[str, Record], best: Best, chosen: str, opponent: Record | None
) -> Winner:
    """The chosen variant; or PyTorch's fastest, where it leads and is not chosen only
    because its error bound is its own.
    """
    record = timed[chosen]
    as_good = [timed[name] for name in (best.variant, *best.alike)]
    ahead = opponent and opponent.variant != chosen and leader(record, opponent)
    if opponent and ahead == opponent.variant:
        record, as_good = opponent, [opponent]
    elif opponent and ahead is None:
        as_good.append(opponent)
    family = _family(record)
    return Winner(
        record.id,
        record.variant,
        family,
        opponent and opponent.variant,
        opponent and opponent.median_s / record.median_s,
        ahead == chosen,
        tuple(dict.fromkeys(one.variant for one in as_good if _family(one) != family)),
    )


def _family(record: Record) -> Family:
    backend = record.facts.get("backend") or OTHER
    known = (family for family in FAMILIES if family.backend == backend)
    return next(known, Family(OTHER, backend, "O"))


def _with_changes(
    cells: Iterable[Cell], meetings: Sequence[Crossover]
) -> Iterator[Cell]:
    """The cells of one row, each winner with the one that it takes over from."""
    last: Cell | None = None
    for cell in cells:
        if cell.winner and last and last.winner.variant != cell.winner.variant:
            before, after = last.winner.variant, cell.winner.variant
            meet = _meeting(before, after, (last.batch, cell.batch), meetings)
            changed = replace(cell.winner, instead_of=before, meet=meet)
            cell = replace(cell, winner=changed)
        if cell.winner:
            last = cell
        yield cell


def _meeting(
    before: str, after: str, between: tuple[int, int], meetings: Sequence[Crossover]
) -> Crossover | None:
    """Where the times of two variants meet between two batches, if that is known."""
    low, high = between
    return next(
        (
            one
            for one in meetings
            if (one.first, one.then) == (before, after)
            and one.up_to <= low
            and high <= one.from_
        ),
        None,
    )
