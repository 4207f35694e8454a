"""Changes with their intervals as lines of text, on one scale: the small picture of a
comment, which can have no file of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from batchline.bench import units
from batchline.bench.texts import one_line

_NO_ID = re.compile(r"[^\w./:+ -]")  # what no case's id has
_HALF = 20  # characters on each side of 0
_LEAST = 0.01  # a scale ends there or beyond, or noise would look like a change
_MOST = 1.0  # twice as slow; what is beyond stands at the edge
_ZERO, _BAR, _BOTH, _POINT = "│", "─", "┼", "●"
_BEYOND = "◂", "▸"


@dataclass(frozen=True)
class Change:
    """A change as a share (0.1 is 10% more), with the ends of its interval."""

    name: str
    effect: float
    low: float
    high: float


def draw_intervals(changes: Sequence[Change]) -> tuple[str, ...]:
    """The scale in a line, then one line per change; none of no changes.

    A change's place is by its logarithm, so that twice as fast is as far from 0 as
    twice as slow.
    """
    if not changes:
        return ()
    ends = (abs(_log(end)) for one in changes for end in (one.low, one.high))
    reach = min(max(_log(_LEAST), *ends), _log(_MOST))
    return (_scale(reach), *_lines(changes, reach))


def _log(share: float) -> float:
    """The logarithm of a ratio, which is never 0 or less."""
    return math.log1p(max(share, -1 + 1e-9))


def _scale(reach: float) -> str:
    left, right = (units.change(math.expm1(end)) for end in (-reach, reach))
    left = left.ljust(_HALF) + "0"
    return left + right.rjust(2 * _HALF + 1 - len(left))


def _lines(changes: Iterable[Change], reach: float) -> Iterator[str]:
    for one in changes:
        change = units.change(one.effect).rjust(7)
        yield f"{_bar(one, reach)} {change}  {_plain(one.name)}"


def _plain(name: str) -> str:
    """A name that is no markup, for nothing is escaped where this stands."""
    return _NO_ID.sub("?", one_line(name))


def _bar(one: Change, reach: float) -> str:
    places = [_place(share, reach) for share in (one.low, one.effect, one.high)]
    low, effect, high = (min(max(place, -_HALF), _HALF) for place in places)
    cells = [" "] * (2 * _HALF + 1)
    cells[_HALF] = _ZERO
    for place in range(low, high + 1):
        cells[place + _HALF] = _BAR if place else _BOTH
    cells[effect + _HALF] = _POINT
    if places[0] < -_HALF:
        cells[0] = _BEYOND[0]
    if places[2] > _HALF:
        cells[-1] = _BEYOND[1]
    return "".join(cells)


def _place(share: float, reach: float) -> int:
    """Characters to the right of 0."""
    if math.isinf(share):
        return 2 * _HALF
    return round(_HALF * _log(share) / reach)
