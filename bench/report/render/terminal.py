"""A report for a terminal, in lines of at most COLUMNS characters (the terminal's width;
100 where there is none): wide tables are wrapped in their cells, or split into several.

No colours: what NO_COLOR asks for, and a pipe wants, is all there is.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Sequence

from batchline.bench.report.document import (
    Bullets,
    Cell,
    Definitions,
    Details,
    Document,
    Lines,
    Mark,
    Part,
    ProblemSection,
    Section,
    Table,
    Text,
    plain,
)
from batchline.bench.report.document import table as make_table
from batchline.bench.report.render import draw_grid
from batchline.bench.report.render.escaping import one_line

COLUMNS = max(60, shutil.get_terminal_size((100, 24)).columns)
_GAP = 2  # between two columns of tabulate's "simple"
_PADDING = 2  # that it gives every header beyond its words
_LONGEST_WORD = 40  # a longer one is broken
_MARKS = {Mark.BEST: "{}*", Mark.BAD: "{}*", Mark.STRONG: "{}"}


def wrapped(text: str, indent: str = "", columns: int = COLUMNS) -> str:
    """The text as lines that fit; those after the first are set in."""
    return textwrap.fill(
        one_line(text),
        columns,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_on_hyphens=False,
    )


def render(document: Document, columns: int = COLUMNS) -> str:
    """All of the document but its title."""
    return render_parts(
        (*document.lead, *document.sections, *document.closing), columns
    )


def render_parts(parts: Iterable[Part], columns: int = COLUMNS) -> str:
    """The parts, with an empty line between any two."""
    return "\n\n".join(filter(None, (_render(part, columns) for part in parts)))


def _render(part: Part, columns: int) -> str:
    match part:
        case Text(text):
            return wrapped(text, columns=columns)
        case Table():
            return render_table(part, columns)
        case Lines(lines) | Bullets(lines):
            return "\n".join(wrapped(line, _indent(line), columns) for line in lines)
        case Definitions(items):
            return "\n\n".join(
                wrapped(f"{subject}: {' '.join(sentences)}", columns=columns)
                for subject, sentences in items
            )
        case Details(summary, parts):
            return _titled(summary, parts, columns)
        case ProblemSection():
            title = f"{part.op} · {part.title}: {part.about}"
            return _titled(title, part.parts, columns)
        case Section():
            return _titled(part.title, part.parts, columns)
    return ""


def _titled(title: str, parts: Sequence[Part], columns: int) -> str:
    """The title stands right above what it is the title of; one of sections stands
    above none of them.
    """
    first = parts[0]
    if isinstance(first, Section):
        return render_parts(parts, columns)
    title = wrapped(title, columns=columns)
    return f"{title}\n{render_parts(parts, columns)}"


def _indent(line: str) -> str:
    return " " * (len(line) - len(line.lstrip(" ")))


def render_table(table: Table, columns: int = COLUMNS) -> str:
    """The table; where its words alone are too wide, its columns are split into several
    tables, each of which begins with the first column.
    """
    rows = [[one_line(plain(cell, _mark)) for cell in row] for row in table.rows]
    by_column = list(zip(table.columns, *rows)) or [
        (header,) for header in table.columns
    ]
    return "\n\n".join(
        _draw([by_column[number] for number in part], columns)
        for part in _parts(by_column, columns)
    )


def draw(headers: Iterable[str], rows: Iterable[Iterable[Cell]]) -> str:
    """As `render_table`, of headers and rows."""
    return render_table(make_table(headers, rows))


def _mark(span) -> str:
    return _MARKS[span.mark].format(span.text)


def _draw(by_column: Sequence[Sequence[str]], columns: int) -> str:
    headers, *rows = zip(*by_column)
    widths = _widths(by_column, columns)
    # Not by tabulate's maxcolwidths: with it "1,024" is read as a number, and refused.
    cells = [[_broken(cell, width) for cell, width in zip(row, widths)] for row in rows]
    return draw_grid(
        [_broken(header, width - _PADDING) for header, width in zip(headers, widths)],
        cells,
        "simple",
    )


def _parts(by_column: Sequence[Sequence[str]], columns: int) -> list[list[int]]:
    """The columns of each table, by number: the first in all of them, and as many
    others as their words let fit.
    """
    least = list(map(_longest_word, by_column))
    parts = [[0]]
    for number in range(1, len(by_column)):
        taken = sum(least[other] + _GAP for other in parts[-1]) + least[number]
        if taken > columns and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(number)
    return parts


def _widths(by_column: Sequence[Sequence[str]], columns: int) -> list[int]:
    """The width of each column: the widest are narrowed to one width, as far as it
    takes, but not below a word's.
    """
    wanted = [
        max(len(header) + _PADDING, *map(len, cells), 1) for header, *cells in by_column
    ]
    least = list(map(_longest_word, by_column))
    room = columns - _GAP * (len(by_column) - 1)
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
