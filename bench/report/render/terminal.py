"""A report for a terminal, in lines of at most COLUMNS characters (the terminal's width;
100 where there is none): wide tables are wrapped in their cells, or split into several.

Colours only repeat what is said without them, and only where they are asked for.
"""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from batchline.bench.report.document import (
    Bullets,
    Cell,
    Definitions,
    Details,
    Document,
    Fact,
    Facts,
    Lines,
    Map,
    Mark,
    Part,
    ProblemSection,
    Section,
    Table,
    Text,
    plain,
)
from batchline.bench.report.document import table as make_table
from batchline.bench.report.render import draw_grid, winner_map
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


@dataclass(frozen=True)
class _Screen:
    """What is drawn on: so many columns, with or without colours."""

    columns: int
    in_colour: bool


def render(document: Document, columns: int = COLUMNS, in_colour: bool = False) -> str:
    """All of the document but its title."""
    return render_parts(
        (*document.lead, *document.sections, *document.closing), columns, in_colour
    )


def render_parts(
    parts: Iterable[Part], columns: int = COLUMNS, in_colour: bool = False
) -> str:
    """The parts, with an empty line between any two."""
    return _render_parts(parts, _Screen(columns, in_colour))


def _render_parts(parts: Iterable[Part], screen: _Screen) -> str:
    return "\n\n".join(filter(None, (_render(part, screen) for part in parts)))


def _render(part: Part, screen: _Screen) -> str:
    columns = screen.columns
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
        case Facts():
            return "\n".join(_facts(part, screen))
        case Map(of):
            blocks = winner_map.draw(of, columns, screen.in_colour)
            return f"{blocks}\n\n{wrapped(winner_map.legend(of), columns=columns)}"
        case Details(summary, parts):
            return _titled(summary, parts, screen)
        case ProblemSection():
            title = f"{part.op} · {part.title}: {part.about}"
            return _titled(title, part.parts, screen)
        case Section():
            return _titled(part.title, part.parts, screen)
    return ""


def _facts(facts: Facts, screen: _Screen) -> Iterator[str]:
    """Large ones on a line each, small ones behind each other; then what is bad."""
    good = [_fact(fact) for fact in facts.items if not fact.is_bad]
    bad = [_fact(fact) for fact in facts.items if fact.is_bad]
    for text in good if facts.large else filter(None, [" · ".join(good)]):
        yield wrapped(text, columns=screen.columns)
    for text in bad:
        text = wrapped(text, columns=screen.columns)
        yield winner_map.paint_bad(text) if screen.in_colour else text


def _fact(fact: Fact) -> str:
    return f"{fact.name}: {fact.value}" + (f" ({fact.detail})" if fact.detail else "")


def _titled(title: str, parts: Sequence[Part], screen: _Screen) -> str:
    """The title stands right above what it is the title of; one of sections stands
    above none of them.
    """
    first = parts[0]
    if isinstance(first, Section):
        return _render_parts(parts, screen)
    title = wrapped(title, columns=screen.columns)
    return f"{title}\n{_render_parts(parts, screen)}"


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
