"""The map of the winners as text: a table for Markdown, blocks for a terminal. Both can
be read without colours.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from batchline.bench import units
from batchline.bench.report.document import Table, table
from batchline.bench.texts import shortened
from batchline.bench.verdicts.winners import Cell, Row, Winner, WinnerMap

_LONGEST_NAME = 36  # a longer one is cut
_CELL = 7  # characters: whether the winner changed, its letter, its speed-up, its depth
_DEPTHS = " ░▒▓█"
_BROKE = "!"
_INK = "\x1b[38;5;16;48;5;{}m"  # black on one of the 256 colours of xterm
_RED = "\x1b[31m"
_OFF = "\x1b[0m"
_TINTS = {  # of xterm's 256 colours, by family, from the palest to the deepest
    "torch": (252, 252, 252, 252, 252),
    "triton": (195, 153, 117, 75, 39),
    "numba_cuda": (230, 223, 216, 209, 208),
    "numba_cpu": (194, 157, 120, 84, 48),
    "other": (225, 219, 213, 177, 176),
}


def legend(of: WinnerMap) -> str:
    """What the letters and signs of both forms mean."""
    families = ", ".join(f"{one.letter} {one.name}" for one in of.families)
    without = f" Of {of.without} more problems nothing was timed." if of.without else ""
    return (
        f"The winner's family ({families}) and its speed-up over PyTorch's fastest. | another variant wins than at "
        "the batch before; ? undecided: a variant of another family may be as fast; ! something broke; - not timed."
        f"{without}"
    )


def tabulate(of: WinnerMap) -> Table:
    """One row per problem, one column per batch size."""
    rows = [
        [
            f"{row.op}/{row.scenario}/{row.dtype}",
            *("".join(_signs(cell)).strip() for cell in map(row.at, of.batches)),
        ]
        for row in of.rows
    ]
    return table(["problem", *(f"B={batch}" for batch in of.batches)], rows)


def draw(of: WinnerMap, columns: int, in_colour: bool = False) -> str:
    """The map in lines of at most `columns` characters, in several parts where it is
    wider than that.
    """
    names = [_name(row) for row in of.rows]
    width = max(map(len, names)) + 3
    at_once = max(1, (columns - width) // _CELL)
    parts = (
        of.batches[first : first + at_once]
        for first in range(0, len(of.batches), at_once)
    )
    return "\n\n".join("\n".join(_part(of, one, width, in_colour)) for one in parts)


def paint_bad(text: str) -> str:
    """The text in red."""
    return f"{_RED}{text}{_OFF}"


def _part(
    of: WinnerMap, batches: Sequence[int], width: int, in_colour: bool
) -> Iterator[str]:
    yield " " * width + "".join(
        f" B={batch}".ljust(_CELL) for batch in batches
    ).rstrip()
    for op, rows in groupby(of.rows, lambda row: row.op):
        yield shortened(op, _LONGEST_NAME)
        for row in rows:
            cells = "".join(_block(cell, in_colour) for cell in map(row.at, batches))
            yield (f"  {_name(row)}".ljust(width) + cells).rstrip()


def _name(row: Row) -> str:
    return shortened(f"{row.scenario} {row.dtype}", _LONGEST_NAME)


def _signs(cell: Cell | None) -> tuple[str, str, str]:
    """Whether the winner changed, the cell's text, and what else is to be said of it."""
    if cell is None:
        return "", "", ""
    winner = cell.winner
    if not winner:
        return "", _BROKE if cell.broken else "-", ""
    return (
        "|" if winner.instead_of else "",
        f"{winner.family.letter}{_speed_up(winner)}",
        f"{'' if winner.is_decided else '?'}{_BROKE if cell.broken else ''}",
    )


def _speed_up(winner: Winner) -> str:
    """ "2.68"; nothing of PyTorch's own."""
    if winner.speed_up is None or winner.family.backend == "torch":
        return ""
    return units.ratio(winner.speed_up).removesuffix("x")


def _block(cell: Cell | None, in_colour: bool) -> str:
    changed, text, sign = _signs(cell)
    winner = cell.winner if cell else None
    depth = _DEPTHS[winner.depth] if winner else ""
    # Of several signs the last is shown: there is room for one.
    block = text.ljust(_CELL - 2) + (sign[-1:] or depth).ljust(1)
    if in_colour and winner:
        tint = _TINTS[winner.family.backend][winner.depth]
        block = f"{_INK.format(tint)}{block}{_OFF}"
    elif in_colour and text == _BROKE:
        block = paint_bad(block)
    return f"{changed or ' '}{block}"
