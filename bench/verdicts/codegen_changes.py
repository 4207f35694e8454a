"""Two compilations of one kernel: each fact that differs in words, what follows from
it, and whether that is certain.

Fewer registers or more warps in flight may be faster or slower: of most changes only a
GPU can say. Certain is that code which does not compile is worse, and, in the same
configuration, that narrower loads of the same bytes are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from batchline.bench import units
from batchline.bench.verdicts.occupancy import REGISTERS, SHARED, Occupancy, occupancy

WORSE, OPEN, BETTER = "worse", "a GPU must say", "better"
CONFIG = "configuration"
_CONSTANTS = re.compile(r"(\w+)=(\S+?)(?=,? |,?$)")
_SETTINGS = re.compile(r"(\d+) (warps|stages)\b")
_WHERE = ("variant", "dtype", "scenario", "batch", "architecture", "kernel", "example")
_ORDER = (
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


@dataclass(frozen=True)
class Change:
    """One fact of a kernel that is another one: its name, what to say, and whether that
    is WORSE, BETTER or OPEN.
    """

    fact: str
    words: str
    verdict: str = OPEN


def why_no_code(row: Mapping) -> str | None:
    """Why a row (as static_facts makes them) holds no compiled kernel, or None."""
    if row.get("error"):
        return f"does not compile: {row['error']}"
    return f"declined: {row['declined']}" if row.get("declined") else None


def without_code(row: Mapping) -> Change:
    """What a row says that has no compiled kernel: one that does not compile is worse,
    one may be declined for good.
    """
    return Change(
        "error" if row.get("error") else "declined",
        why_no_code(row),
        WORSE if row.get("error") else OPEN,
    )


def changes(was: Mapping, now: Mapping) -> tuple[Change, ...]:
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
    found = (
        [Change(CONFIG, _configuration(was["config"], now["config"]))]
        if _differ(was, now, "config")
        else []
    )
    occupied = _occupancies(was, now)
    for fact in (*_ORDER, *sorted({*was, *now} - {*_ORDER, *_WHERE, "config"})):
        if fact == "occupancy":
            found += _of_occupancy(occupied, was, now)
        elif _differ(was, now, fact):
            found.append(
                _of_fact(
                    fact,
                    was.get(fact),
                    now.get(fact),
                    occupied,
                    _differ(was, now, "config"),
                )
            )
    return tuple(found)


def _differ(was: Mapping, now: Mapping, fact: str) -> bool:
    return was.get(fact) != now.get(fact)


def _of_fact(fact: str, was, now, occupied: tuple, reconfigured: bool) -> Change:
    if fact in ("loads", "stores"):
        words, verdict = _of_widths(fact, was or {}, now or {})
        return Change(fact, words, OPEN if reconfigured else verdict)
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
        return Change(fact, f"code {_shown_size(was)} → {_shown_size(now)}")
    names = {
        "matrix": "tensor-core instructions",
        "warp_specialized": "warp-specialised",
    }
    return Change(fact, f"{names.get(fact, fact)} {_shown(was)} → {_shown(now)}")


def _shown(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _shown_size(count: int | None) -> str:
    return "unknown" if count is None else units.size(count)


def _occupancies(was: Mapping, now: Mapping) -> tuple[Occupancy | str, Occupancy | str]:
    """Both occupancies; in place of one that can't be had, why."""
    found = []
    for row in (was, now):
        try:
            found.append(
                occupancy(
                    row["architecture"],
                    row["threads"],
                    row["registers"],
                    row["shared_bytes"],
                )
            )
        except (KeyError, ValueError) as error:
            found.append(str(error))
    return tuple(found)


def _of_occupancy(occupied: tuple, was: Mapping, now: Mapping) -> list[Change]:
    """Where nothing that moved is what limits it now, it stands by itself."""
    before, after = occupied
    if before == after:
        return []
    if isinstance(after, str) or isinstance(before, str):
        word = "fits a multiprocessor again" if isinstance(before, str) else after
        return [Change("occupancy", word, BETTER if isinstance(before, str) else WORSE)]
    said = (
        _differ(was, now, "registers")
        and _because(REGISTERS, occupied)
        or _differ(was, now, "shared_bytes")
        and _because(SHARED, occupied)
    )
    return (
        []
        if said or before.share == after.share
        else [Change("occupancy", _of_shares(before, after))]
    )


def _because(limit: str, occupied: tuple) -> str:
    """What a change of a resource does to the occupancy, where the resource limits it,
    before or now.
    """
    before, after = occupied
    if isinstance(before, str) or isinstance(after, str) or before.share == after.share:
        return ""
    decisive = after.limited_by if after.share < before.share else before.limited_by
    return f": {_of_shares(before, after)}" if decisive == limit else ""


def _of_shares(before: Occupancy, after: Occupancy) -> str:
    return f"occupancy {before.share:.0%} → {after.share:.0%}, limited by {after.limited_by}"


def _configuration(was: str, now: str) -> str:
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
    words = f"{fact} {widths(was)} → {widths(now)}"
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
        return words, OPEN
    if new > old:
        return (
            f"{words}: narrower, {units.ratio(new / old)} as many for the same bytes",
            WORSE,
        )
    return f"{words}: wider, {units.ratio(old / new)} fewer for the same bytes", BETTER


def widths(counts: Mapping[str, int]) -> str:
    """ "24 x 16 B + 2 x TMA" of loads or stores by width; "none" of none."""
    return (
        " + ".join(
            f"{count} x {width if width == 'TMA' else width + ' B'}"
            for width, count in counts.items()
        )
        or "none"
    )
