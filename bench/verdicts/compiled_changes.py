"""What changed between two compilations of the same kernels: each fact that differs,
what follows from it, and which cases a GPU must time again.

Fewer registers or more warps in flight may be faster or slower: of most changes only a
GPU can say. Certain is that code which does not compile is worse, and, in the same
configuration, that narrower loads of the same bytes are.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench import units
from batchline.bench.errors import Missing
from batchline.bench.stats.roofline import REGISTERS, SHARED, Occupancy, occupancy

WORSE = "worse"
OPEN = "a GPU must say"
BETTER = "better"
CONFIG = "configuration"
_CONSTANTS = re.compile(r"(\w+)=(\S+?)(?=,? |,?$)")
_SETTINGS = re.compile(r"(\d+) (warps|stages)\b")
_WHERE = ("variant", "dtype", "scenario", "batch", "architecture", "kernel", "example")
_FACTS = (
    "error",
    "threads",
    "registers",
    "shared_bytes",
    "occupancy",
    "stack_bytes",
    "spills",
    "matrix_instruction",
    "matrix",
    "loads",
    "stores",
    "barriers",
    "code_bytes",
    "warp_specialized",
)
Occupied = tuple[Occupancy | Missing, Occupancy | Missing]  # before and now


@dataclass(frozen=True)
class Change:
    """One fact of a kernel that differs: its name, a text that says how, and whether
    that is WORSE, BETTER or OPEN.
    """

    fact: str
    text: str
    verdict: str = OPEN


def why_no_code(row: Mapping) -> str | None:
    """Why a row (as static_facts makes them) holds no compiled kernel, or None."""
    if row.get("error"):
        return f"does not compile: {row['error']}"
    return f"declined: {row['declined']}" if row.get("declined") else None


def without_code(row: Mapping) -> Change:
    """The change to a row that has no compiled kernel. One that does not compile is
    worse; a declined one may have been declined for a good reason.
    """
    return Change(
        "error" if row.get("error") else "declined",
        why_no_code(row),
        WORSE if row.get("error") else OPEN,
    )


def fact_changes(was: Mapping, now: Mapping) -> tuple[Change, ...]:
    """What differs between two rows of one kernel (as static_facts makes them), in a
    fixed order, no fact left out.
    """
    if now.get("error") and not was.get("error"):
        return (Change("error", f"does not compile any more: {now['error']}", WORSE),)
    if now.get("declined") and not was.get("declined"):
        return (without_code(now),)
    if was.get("error") and not now.get("error"):
        return (
            Change("error", f"compiles again (it did not: {was['error']})", BETTER),
        )
    if was.get("declined") and not now.get("declined"):
        return (
            Change("declined", f"is compiled now (it was declined: {was['declined']})"),
        )
    differing = (
        [Change(CONFIG, configuration_text(was["config"], now["config"]))]
        if _differ(was, now, "config")
        else []
    )
    occupied = _occupancy_of(was), _occupancy_of(now)
    for fact in (*_FACTS, *sorted({*was, *now} - {*_FACTS, *_WHERE, "config"})):
        if fact == "occupancy":
            differing += _of_occupancy(occupied, was, now)
        elif _differ(was, now, fact):
            differing.append(
                _of_fact(
                    fact,
                    was.get(fact),
                    now.get(fact),
                    occupied,
                    _differ(was, now, "config"),
                )
            )
    return tuple(differing)


def _differ(was: Mapping, now: Mapping, fact: str) -> bool:
    return was.get(fact) != now.get(fact)


def _of_fact(fact: str, was, now, occupied: Occupied, reconfigured: bool) -> Change:
    if fact in ("loads", "stores"):
        text, verdict = _of_widths(fact, was or {}, now or {})
        return Change(fact, text, OPEN if reconfigured else verdict)
    if fact == "shared_bytes":
        more = f"{units.size(abs(now - was))} {'more' if now > was else 'less'} shared memory"
        return Change(fact, f"{more} ({units.size(now)}){_because(SHARED, occupied)}")
    if fact == "registers":
        return Change(fact, f"registers {was} → {now}{_because(REGISTERS, occupied)}")
    if fact in ("spills", "stack_bytes"):
        name = "spill instructions" if fact == "spills" else "stack bytes"
        came = f" (a spill {'appeared' if now else 'went'}: a finding, not a verdict by itself)"
        return Change(
            fact,
            f"{name} {was} → {now}{came if fact == 'spills' and not (was and now) else ''}",
        )
    if fact == "matrix_instruction":
        verdict = WORSE if now is None else BETTER if was is None else OPEN
        return Change(
            fact, f"tensor cores by {was or 'none'} → {now or 'none'}", verdict
        )
    if fact == "code_bytes":
        return Change(fact, f"code {_size_text(was)} → {_size_text(now)}")
    names = {
        "matrix": "tensor-core instructions",
        "warp_specialized": "warp-specialised",
    }
    return Change(
        fact, f"{names.get(fact, fact)} {_fact_text(was)} → {_fact_text(now)}"
    )


def _fact_text(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _size_text(count: int | None) -> str:
    return "unknown" if count is None else units.size(count)


def _occupancy_of(row: Mapping) -> Occupancy | Missing:
    try:
        return occupancy(
            row["architecture"],
            row["threads"],
            row["registers"],
            row["shared_bytes"],
        )
    except (KeyError, ValueError) as error:
        return Missing(str(error))


def _of_occupancy(occupied: Occupied, was: Mapping, now: Mapping) -> list[Change]:
    """A change of its own, unless a resource that changed explains it."""
    before, after = occupied
    if before == after:
        return []
    if isinstance(before, Missing):
        return [Change("occupancy", "fits a multiprocessor again", BETTER)]
    if isinstance(after, Missing):
        return [Change("occupancy", after.reason, WORSE)]
    if before.share == after.share:
        return []
    for fact, limit in (("registers", REGISTERS), ("shared_bytes", SHARED)):
        if _differ(was, now, fact) and _because(limit, occupied):
            return []
    return [Change("occupancy", _of_shares(before, after))]


def _because(limit: str, occupied: Occupied) -> str:
    """What a change of a resource does to the occupancy, where the resource limits it,
    before or now.
    """
    before, after = occupied
    if not before or not after or before.share == after.share:
        return ""
    decisive = after.limited_by if after.share < before.share else before.limited_by
    return f": {_of_shares(before, after)}" if decisive == limit else ""


def _of_shares(before: Occupancy, after: Occupancy) -> str:
    return f"occupancy {before.share:.0%} → {after.share:.0%}, limited by {after.limited_by}"


def configuration_text(was: str, now: str) -> str:
    """ "stages 3 → 4, BLOCK_M 128 → 64", or both whole where they are not so written."""
    old, new = (
        {
            **dict(_CONSTANTS.findall(text)),
            **{name: number for number, name in _SETTINGS.findall(text)},
        }
        for text in (was, now)
    )
    differing = [
        f"{name} {old.get(name, 'none')} → {new.get(name, 'none')}"
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]
    return ", ".join(differing) or f"configuration {was!r} → {now!r}"


def _of_widths(fact: str, was: Mapping, now: Mapping) -> tuple[str, str]:
    text = f"{fact} {widths(was)} → {widths(now)}"
    moved = [
        sum(int(width) * count for width, count in counts.items() if width.isdigit())
        for counts in (was, now)
    ]
    old, new = (sum(counts.values()) for counts in (was, now))
    if (
        "TMA" in {**was, **now}
        or not old
        or not new
        or moved[0] != moved[1]
        or old == new
    ):
        return text, OPEN
    if new > old:
        return (
            f"{text}: narrower, {units.ratio(new / old)} as many for the same bytes",
            WORSE,
        )
    return f"{text}: wider, {units.ratio(old / new)} fewer for the same bytes", BETTER


def widths(counts: Mapping[str, int]) -> str:
    """ "24 x 16 B + 2 x TMA" of loads or stores by width; "none" of none."""
    return (
        " + ".join(
            f"{count} x {width if width == 'TMA' else width + ' B'}"
            for width, count in counts.items()
        )
        or "none"
    )


CHANGED = "changed"
NEW = "new"
GONE = "gone"
_PLACE = ("variant", "dtype", "scenario", "batch", "architecture")
_VERDICTS = (WORSE, OPEN, BETTER)


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
            change.text for change in self.changes if change.fact == CONFIG
        )

    @property
    def text(self) -> str:
        """Every other change."""
        return "; ".join(
            change.text for change in self.changes if change.fact != CONFIG
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
    moved = [_move(was, now, launched) for was, now in _pairs(before, after)]
    return tuple(sorted(moved, key=lambda move: _VERDICTS.index(move.verdict)))


def not_compiling(rows: Sequence[Mapping]) -> list[str]:
    """A line for each variant and dtype of which a kernel does not compile."""
    first = {
        (row["variant"], row["dtype"]): why_no_code(row)
        for row in reversed(rows)
        if row.get("error")
    }
    return [f"{variant} {dtype} {why}" for (variant, dtype), why in first.items()]


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
        changes = fact_changes(was, now)
        kind = CHANGED
    elif now and why_no_code(now):
        changes = (without_code(now),)
        kind = NEW
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
    """Where a new or a gone launch is on the other side. A launch is compiled once, for
    the first scenario that has it, and that may be another one now.
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
    old = _without(before, after)
    new = _without(after, before)
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
        old = [row for rows in waiting.values() for row in rows]
        new = unpaired
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
    """The row without its facts that are None: an older row may lack a fact that is
    None in a newer one.
    """
    return json.dumps(
        {name: fact for name, fact in row.items() if fact is not None}, sort_keys=True
    )


def _place(row: Mapping) -> tuple:
    return tuple(row[name] for name in _PLACE)


def cases_to_time_again(moved: Sequence[Move], after: Sequence[Mapping]) -> str | None:
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
