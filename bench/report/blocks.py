"""The report's text as blocks that a page can lay out: paragraphs, tables with their
cells, lists, figures, details.

What shows a part of the report writes text and renders its tables through a Style. Here
that Style keeps the cells, so nothing is parsed back out of a drawn table, and every
word is still unescaped when the page's template escapes it.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from batchline.bench.report.tables import Style

BEST, BAD = "{} ★", "{} ⚠"
_BULLET = "- "


@dataclass(frozen=True)
class Table:
    """Cells in words; the first column names its row."""

    kind: ClassVar[str] = "table"
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Bullets:
    """A list."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Details:
    """Blocks that are folded away under a summary."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: tuple


@dataclass(frozen=True)
class Figure:
    """The place of a plot; `plot` is its key in the page's data."""

    kind: ClassVar[str] = "figure"
    plot: str
    title: str


Block = str | Table | Bullets | Heading | Details | Figure


@dataclass(frozen=True)
class _Kept(Style):
    """Keeps each table's cells and leaves a token in the text, which no text can hold
    by chance.
    """

    tables: list[Table] = field(default_factory=list)
    token: str = field(default_factory=lambda: secrets.token_hex(16))

    def render(self, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
        self.tables.append(Table(tuple(headers), tuple(map(tuple, rows))))
        return f"{self.token}{len(self.tables) - 1}"


def blocks(show: Callable[[Style], str | None], marked: str = BEST) -> list[Block]:
    """What `show` writes in the style that it is given, paragraph by paragraph; empty
    where it has nothing to show.

    Args:
        marked: how a cell is written that the style's `best` marks.
    """
    style = _Kept("", marked, "|")
    text = show(style) or ""
    return [_block(part, style) for part in re.split(r"\n{2,}", text) if part.strip()]


def _block(part: str, style: _Kept) -> Block:
    if part.startswith(style.token):
        return style.tables[int(part.removeprefix(style.token))]
    lines = part.splitlines()
    if all(line.startswith(_BULLET) for line in lines):
        return Bullets(tuple(line.removeprefix(_BULLET) for line in lines))
    return part
