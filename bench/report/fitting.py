"""What goes to a terminal, in lines of at most COLUMNS characters (the terminal's width;
100 where there is none): wide tables are wrapped in their cells, or parted.

No colours: what NO_COLOR asks for, and a pipe wants, is all there is.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from tabulate import tabulate

from batchline.bench.report.escaping import one_line
from batchline.bench.report.tables import Style

COLUMNS = max(60, shutil.get_terminal_size((100, 24)).columns)
_GAP = 2  # between two columns of tabulate's "simple"
_PADDING = 2  # that it gives every header beyond its words
_LONGEST_WORD = 40  # a longer one is broken


def wrapped(text: str, indent: str = "") -> str:
    """The text as lines that fit; those after the first are set in."""
    return textwrap.fill(
        one_line(text),
        COLUMNS,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )


class FittedStyle(Style):
    """Text is wrapped inside its cells; where words alone are too wide, the columns are
    parted into several tables.

    Each of those begins with the first column, and they stand under one another.
    """

    def render(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        cells = [[one_line(cell) for cell in row] for row in rows]
        columns = list(zip(headers, *cells)) or [(header,) for header in headers]
        return "\n\n".join(
            self._table([columns[number] for number in part])
            for part in _parts(columns)
        )

    def _table(self, columns: Sequence[Sequence[str]]) -> str:
        headers, *rows = zip(*columns)
        widths = _widths(columns)
        # Not by tabulate's maxcolwidths: with it "1,024" is read as a number, and
        # refused.
        cells = [
            [_broken(cell, width) for cell, width in zip(row, widths)] for row in rows
        ]
        return tabulate(
            cells,
            headers=[
                _broken(header, width - _PADDING)
                for header, width in zip(headers, widths)
            ],
            tablefmt=self.table_format,
            disable_numparse=True,
        )


TERMINAL = FittedStyle("simple", "{}*", "|")


def _parts(columns: Sequence[Sequence[str]]) -> list[list[int]]:
    """The columns of each table, by number: the first in all of them, and as many
    others as their words let fit.
    """
    least = list(map(_longest_word, columns))
    parts = [[0]]
    for number in range(1, len(columns)):
        taken = sum(least[other] + _GAP for other in parts[-1]) + least[number]
        if taken > COLUMNS and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(number)
    return parts


def _widths(columns: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column: the widest are narrowed to one width, as far as it
    takes, but not below a word's.
    """
    wanted = [
        max(len(header) + _PADDING, *map(len, cells), 1) for header, *cells in columns
    ]
    least = list(map(_longest_word, columns))
    room = COLUMNS - _GAP * (len(columns) - 1)
    for width in range(max(wanted), 0, -1):
        widths = [min(want, max(width, word)) for want, word in zip(wanted, least)]
        if sum(widths) <= room:
            return widths
    return least


def _longest_word(column: Sequence[str]) -> int:
    """As the column's width, its header's padding included."""
    header, *cells = column
    in_header = max(map(len, header.split()), default=1)
    in_cells = max((len(word) for cell in cells for word in cell.split()), default=1)
    return max(min(in_header, _LONGEST_WORD) + _PADDING, min(in_cells, _LONGEST_WORD))


def _broken(text: str, width: int) -> str:
    return "\n".join(textwrap.wrap(text, max(width, 1))) or text
