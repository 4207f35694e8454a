"""What moved between two compilations of the same kernels, and what a GPU must time
again.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.verdicts import codegen_changes
from batchline.bench.verdicts.codegen_changes import (
    BETTER,
    CONFIG,
    OPEN,
    WORSE,
    Change,
    why_no_code,
)

CHANGED, NEW, GONE = "changed", "new", "gone"
_PLACE = ("variant", "dtype", "scenario", "batch", "architecture")
_ORDER = (WORSE, OPEN, BETTER)


@dataclass(frozen=True)
class Move:
    """One kernel that is new, gone or changed, where it was launched, and each of its
    changes.

    `config` is what it has now, or had. `verdict` is what the code alone says for
    certain: WORSE or BETTER where all that is certain points one way, else OPEN.
    """

    variant: str
    dtype: str
    scenario: str
    batch: int
    architecture: int
    kernel: str
    config: str
    kind: str
    changes: tuple[Change, ...]

    @property
    def verdict(self) -> str:
        said = {change.verdict for change in self.changes} - {OPEN}
        return said.pop() if len(said) == 1 else OPEN

    @property
    def reconfigured(self) -> str:
        """What its configuration changed by, "stages 3 → 4", or ""."""
        return ", ".join(
            change.words for change in self.changes if change.fact == CONFIG
        )

    @property
    def words(self) -> str:
        """Every other change."""
        return "; ".join(
            change.words for change in self.changes if change.fact != CONFIG
        )


def moves(before: Sequence[Mapping], after: Sequence[Mapping]) -> tuple[Move, ...]:
    """Every kernel that differs, the worse first, else in the order of the rows (as
    static_facts makes them).

    A kernel is known by its variant, dtype, scenario, batch, architecture and name;
    where its configuration is another one it is the same kernel still, reconfigured.
    """
    launched = [
        {_launch(row): row for row in reversed(rows)} for rows in (before, after)
    ]
    found = [_move(was, now, launched) for was, now in _pairs(before, after)]
    return tuple(sorted(found, key=lambda move: _ORDER.index(move.verdict)))


def warp_faults(rows: Sequence[Mapping]) -> list[str]:
    """A line for each kernel with an instruction of a whole warp that may run without
    all of it.
    """
    return [
        f"{row['variant']} {row['dtype']} sm_{row['architecture']} {row['scenario']}/B{row['batch']}, "
        f"{row['kernel']} ({row['config']}): {row['warp_fault']}"
        for row in rows
        if row.get("warp_fault")
    ]


def _move(
    was: Mapping | None,
    now: Mapping | None,
    launched: Sequence[Mapping[tuple, Mapping]],
) -> Move:
    """`launched`: before and after, the first row of each launch, wherever it was."""
    row = now or was
    if was and now:
        changes, kind = codegen_changes.changes(was, now), CHANGED
    elif now and why_no_code(now):
        changes, kind = (codegen_changes.without_code(now),), NEW
    else:
        elsewhere = launched[0 if now else 1].get(_launch(row))
        kind = NEW if now else GONE
        changes = (
            Change(
                kind,
                _moved_place(kind, row.get("config") or why_no_code(row), elsewhere),
            ),
        )
    kernel, config = (
        next(
            (
                source[name]
                for source in (now, was)
                if source and source.get(name) is not None
            ),
            "",
        )
        for name in ("kernel", "config")
    )
    return Move(*(row[name] for name in _PLACE), kernel, config, kind, changes)


def _launch(row: Mapping) -> tuple:
    return tuple(
        row.get(name)
        for name in ("variant", "dtype", "architecture", "kernel", "config")
    )


def _moved_place(kind: str, config: str, elsewhere: Mapping | None) -> str:
    """A launch is compiled once, for the first scenario that has it; it may only have
    another one now.
    """
    if elsewhere is None:
        return f"{kind}: {config}"
    where = f"{elsewhere['scenario']}/B{elsewhere['batch']}"
    return f"{kind} here, {'had been' if kind == NEW else 'now'} compiled for {where}: {config}"


def _pairs(
    before: Sequence[Mapping], after: Sequence[Mapping]
) -> Iterator[tuple[Mapping | None, Mapping | None]]:
    """(was, now) of all that is not the same in both; a place without code stands for
    all kernels there.
    """
    old, new = _without(before, after), _without(after, before)
    for names in ((*_PLACE, "kernel", "config"), (*_PLACE, "kernel")):
        waiting = defaultdict(deque)
        for row in old:
            waiting[tuple(row.get(name) for name in names)].append(row)
        unpaired = []
        for row in new:
            partners = waiting[tuple(row.get(name) for name in names)]
            if partners:
                yield partners.popleft(), row
            else:
                unpaired.append(row)
        old, new = [row for rows in waiting.values() for row in rows], unpaired
    none_before, none_now = (
        {_place(row): row for row in rows if why_no_code(row)} for rows in (old, new)
    )
    yield from ((row, none_now.get(_place(row))) for row in old if not why_no_code(row))
    yield from (
        (none_before.get(_place(row)), row) for row in new if not why_no_code(row)
    )
    yield from (
        (row, None)
        for place, row in none_before.items()
        if place not in map(_place, new)
    )
    yield from (
        (None, row) for place, row in none_now.items() if place not in map(_place, old)
    )


def _without(rows: Sequence[Mapping], others: Sequence[Mapping]) -> list[Mapping]:
    """The rows that have no equal among the others, each of which is one row's equal at
    most.
    """
    equals = Counter(map(_key, others))
    left = []
    for row in rows:
        key = _key(row)
        if equals[key]:
            equals[key] -= 1
        else:
            left.append(row)
    return left


def _key(row: Mapping) -> str:
    """Rows are equal where one lacks what is None in the other: a fact that is new, and
    there is none.
    """
    return json.dumps(
        {name: fact for name, fact in row.items() if fact is not None}, sort_keys=True
    )


def _place(row: Mapping) -> tuple:
    return tuple(row[name] for name in _PLACE)


def again(moved: Sequence[Move], after: Sequence[Mapping]) -> str | None:
    """The cases that a GPU must time again, as an expression of pytest -k over case
    ids; None if there are none.

    `after` are the rows of what was compiled: a variant all of whose dtypes moved needs
    none of them named.
    """
    every: dict[str, set[str]] = defaultdict(set)
    for row in after:
        every[row["variant"]].add(row["dtype"])
    dtypes: dict[str, list[str]] = {}
    for move in moved:
        known = (
            dtypes.setdefault(move.variant, [])
            if move.dtype in every[move.variant]
            else []
        )
        if move.dtype not in known:
            known.append(move.dtype)
    terms = [_term(variant, names, every[variant]) for variant, names in dtypes.items()]
    return " or ".join(terms) or None


def _term(variant: str, dtypes: Sequence[str], every: set[str]) -> str:
    if set(dtypes) == every:
        return f"{variant}/"
    named = " or ".join(f"/{dtype}/" for dtype in dtypes)
    return f"({variant}/ and {named if len(dtypes) == 1 else f'({named})'})"
