"""What changed between two executions of the same kernels in emulation: each count that
differs, and the line of the source that accounts for most of it.

The counts have no noise: any difference is one of the code. Whether it makes a kernel
slower a GPU must say, but for traffic: more sectors, passes of shared memory or bytes
read of the same problem, in the same configuration, are worse.
"""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from batchline.bench import units
from batchline.bench.verdicts.compiled_changes import (
    BETTER,
    CHANGED,
    CONFIG,
    GONE,
    NEW,
    OPEN,
    WORSE,
    Change,
    Move,
    configuration_text,
    why_no_code,
)

_PLACE = ("variant", "dtype", "scenario", "batch", "architecture")
_COLUMNS = ("instructions", "sectors", "sectors_needed", "passes", "requests")
_CLASSES = 3  # that are named of a change of instructions
_VERDICTS = (WORSE, OPEN, BETTER)


def moves(before: Sequence[Mapping], after: Sequence[Mapping]) -> tuple[Move, ...]:
    """Every launch whose counts differ, the worse first.

    Args:
        before, after: rows as bench.measure.emulated.counted makes them. A launch is
            known by its variant, dtype, problem, architecture and place among those of
            its call.
    """
    old, new = ({_key(row): row for row in rows} for rows in (before, after))
    found = [_move(old.get(key), new.get(key)) for key in {**old, **new}]
    moved = [move for move in found if move is not None]
    return tuple(sorted(moved, key=lambda move: _VERDICTS.index(move.verdict)))


def _key(row: Mapping) -> tuple:
    return *(row[name] for name in _PLACE), row["launch"]


def _move(was: Mapping | None, now: Mapping | None) -> Move | None:
    row = now or was
    if was and now:
        changes, kind = _changes(was, now), CHANGED
    else:
        kind = NEW if now else GONE
        what = why_no_code(row) or f"{row['instructions']:,} instructions"
        changes = (Change(kind, f"{kind} in emulation: {what}"),)
    if not changes:
        return None
    names = (row.get("kernel", ""), row.get("config", ""))
    return Move(*(row[name] for name in _PLACE), *names, kind, changes)


def _changes(was: Mapping, now: Mapping) -> tuple[Change, ...]:
    if why_no_code(was) or why_no_code(now):
        same = why_no_code(was) == why_no_code(now)
        return () if same else (_of_missing(why_no_code(was), why_no_code(now)),)
    found = []
    if was["config"] != now["config"]:
        text = configuration_text(was["config"], now["config"])
        found.append(Change(CONFIG, text))
    if was["grid"] != now["grid"]:
        found.append(Change("grid", f"blocks {_by(was['grid'])} → {_by(now['grid'])}"))
    found += _of_instructions(was, now)
    is_same = was["config"] == now["config"]
    for change in _of_traffic(was, now):
        found.append(change if is_same else Change(change.fact, change.text))
    if was["products"] != now["products"]:
        text = f"products {was['products']:,} → {now['products']:,}"
        found.append(Change("products", text))
    return tuple(found)


def _of_missing(was: str | None, now: str | None) -> Change:
    if now is None:
        return Change("error", f"executed again (it was not: {was})", BETTER)
    return Change("error", f"not executed: {now}", OPEN if was else WORSE)


def _of_instructions(was: Mapping, now: Mapping) -> Iterator[Change]:
    if was["classes"] == now["classes"]:
        return
    old, new = was["instructions"], now["instructions"]
    share = f" ({new / old - 1:+.1%})" if old else ""
    at = _at(was, now, "instructions", new >= old)
    text = f"instructions {old:,} → {new:,}{share}{at}: {_classes(was, now)}"
    yield Change("executed instructions", text)


def _classes(was: Mapping, now: Mapping) -> str:
    """ "load 100 → 400, integer 50 → 80": the classes that changed most."""
    old, new = was["classes"], now["classes"]
    by_most = sorted(
        (name for name in {**old, **new} if old.get(name) != new.get(name)),
        key=lambda name: -abs(new.get(name, 0) - old.get(name, 0)),
    )
    return ", ".join(
        f"{name} {old.get(name, 0):,} → {new.get(name, 0):,}"
        for name in by_most[:_CLASSES]
    )


def _of_traffic(was: Mapping, now: Mapping) -> Iterator[Change]:
    for fact, name, count, fewest, of, column in (
        ("sectors", "sectors", "sectors", "sectors_needed", "of the fewest", "sectors"),
        (
            "shared-memory passes",
            "shared-memory passes",
            "passes",
            "requests",
            "of the fewest",
            "passes",
        ),
        (
            "bytes read",
            "bytes read",
            "read_bytes",
            "distinct_bytes",
            "of the distinct ones",
            "sectors",
        ),
    ):
        old, new = was[count], now[count]
        excess = [_over(row[count], row[fewest]) for row in (was, now)]
        if old == new and excess[0] == excess[1]:
            continue
        ratios = f"{excess[0]} → {excess[1]} {of}"
        at = _at(was, now, column, new >= old)
        text = f"{name} {old:,} → {new:,} ({ratios}){at}"
        yield Change(fact, text, OPEN if old == new else WORSE if new > old else BETTER)


def _over(count: int, fewest: int) -> str:
    return units.ratio(count / fewest) if fewest else "none"


def _by(grid: Sequence[int]) -> str:
    return "x".join(map(str, grid))


def _at(was: Mapping, now: Mapping, column: str, more: bool) -> str:
    """ " at product.py:57", the line of the source of which the count grew most, or
    where it fell, fell most; "" where no line's did.
    """
    number = _COLUMNS.index(column)
    grown = line_changes(was["lines"], now["lines"], lambda counts: counts[number])
    if not grown:
        return ""
    choose = max if more else min
    name = choose(grown, key=grown.get)
    return f" at {name}" if grown[name] and (grown[name] > 0) == more else ""


def line_changes(
    was: Mapping[str, Sequence[str]],
    now: Mapping[str, Sequence[str]],
    count: Callable[[Sequence[int]], int],
) -> dict[str, int]:
    """By how much a count of each line of the source has grown; {"product.py:57": 512}.

    Args:
        was, now: for each file "57 a1b2c3 …": the number of a line, a hash of its text,
            and its counts. Lines that only moved are known by their text, and lines
            that were changed stand for those that they replaced.
    """
    grown: dict[str, int] = defaultdict(int)
    for file in {**was, **now}:
        old, new = (_parsed(lines.get(file, ())) for lines in (was, now))
        for before, after in _aligned(old, new):
            number = after[0] if after else f"{before[0]} before"
            grown[f"{file}:{number}"] += (count(after[2]) if after else 0) - (
                count(before[2]) if before else 0
            )
    return dict(grown)


_Line = tuple[str, str, list[int]]


def _parsed(lines: Sequence[str]) -> list[_Line]:
    """(number, hash of the text, counts) of each, in the order of the source."""
    words = [line.split() for line in lines]
    parsed = [(one[0], one[1], [int(number) for number in one[2:]]) for one in words]
    return sorted(parsed, key=lambda line: int(line[0]))


def _aligned(
    old: Sequence[_Line], new: Sequence[_Line]
) -> Iterator[tuple[_Line | None, _Line | None]]:
    """Each line and what it was before; a line that was put in or taken out has no
    other.
    """
    matcher = difflib.SequenceMatcher(
        None, [line[1] for line in old], [line[1] for line in new], autojunk=False
    )
    for _, first, last, begin, end in matcher.get_opcodes():
        for offset in range(max(last - first, end - begin)):
            yield (
                old[first + offset] if first + offset < last else None,
                new[begin + offset] if begin + offset < end else None,
            )
