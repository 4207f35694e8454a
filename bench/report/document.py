"""A report as data: sections of text, tables and figures, which the renderers of
bench.report.render lay out for a file, a page, a terminal or GitHub.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from urllib.parse import quote

from batchline.bench.texts import printable
from batchline.bench.verdicts.winners import WinnerMap


class Place(enum.Flag):
    """Where a section, or a part of one, stands."""

    README = enum.auto()
    PAGE = enum.auto()
    TERMINAL = enum.auto()
    CI = enum.auto()


FILES = Place.README | Place.PAGE
EVERYWHERE = FILES | Place.TERMINAL | Place.CI


class Mark(enum.Enum):
    """What is special about a text in a cell."""

    BEST = enum.auto()
    BAD = enum.auto()
    STRONG = enum.auto()


@dataclass(frozen=True)
class Marked:
    """A text in a cell that each renderer marks in its own way."""

    text: str
    mark: Mark = Mark.BEST


Cell = str | Marked | tuple[str | Marked, ...]


@dataclass(frozen=True)
class Text:
    """One paragraph, in which `code` and **stress** are markup."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first column names its row. Make one by `table`. `anchors` are
    the page's anchors of the rows, in their order; none where no link leads to one.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    anchors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Lines:
    """Lines that follow each other; in a terminal each is wrapped by itself."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Drawing:
    """Lines that are a picture in a type of one width; it begins each of them. It stands
    where no file can: in a comment on GitHub.
    """

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Definitions:
    """What there is to say of each subject: (subject, sentences)."""

    items: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Details:
    """Parts that are folded away under a summary."""

    summary: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Figure:
    """A plot: a file beside README.md by its name without the ending, or the data that
    the page draws it from, by its key there.
    """

    title: str
    file: str | None = None
    key: str | None = None
    plot: Mapping | None = None


@dataclass(frozen=True)
class Fact:
    """A value under its name, and what it is of; `is_bad` where it speaks against what
    is shown.
    """

    name: str
    value: str
    is_bad: bool = False
    detail: str = ""


@dataclass(frozen=True)
class Facts:
    """Facts side by side: a strip of small ones, or a few that are `large`."""

    items: tuple[Fact, ...]
    large: bool = False


@dataclass(frozen=True)
class Map:
    """Who wins each problem at each batch; `is_linked` where the page that it stands on
    has the problems' sections.
    """

    of: WinnerMap
    is_linked: bool = True


@dataclass(frozen=True)
class Link:
    """A link to a file beside the one that it stands in."""

    title: str
    file: str


@dataclass(frozen=True)
class Only:
    """Parts that stand only in some places."""

    places: Place
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Section:
    """A titled part of a report. `id` is the page's anchor; "" where none links to it."""

    id: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ProblemSection(Section):
    """One scenario and dtype of an op; the title is what the page's plots call it."""

    op: str
    scenario: str
    dtype: str
    about: str


@dataclass(frozen=True)
class OpSection(Section):
    """An op: its problems and its ladder are sections among its parts.

    `variants` are those that have a time, the baseline first; `curves` are the data of
    the page's plots by problem (bench.report.page_plots.curves).
    """

    signature: str
    variants: tuple[str, ...] = ()
    curves: Mapping[str, Mapping] = field(default_factory=dict)

    @property
    def problems(self) -> list[ProblemSection]:
        return [part for part in self.parts if isinstance(part, ProblemSection)]

    @property
    def rest(self) -> list[Part]:
        """The parts that are no section."""
        return [part for part in self.parts if not isinstance(part, Section)]

    @property
    def ladder(self) -> Section:
        """The one section that is no problem."""
        (ladder,) = (
            part
            for part in self.parts
            if isinstance(part, Section) and not isinstance(part, ProblemSection)
        )
        return ladder


Part = (
    Text
    | Table
    | Bullets
    | Lines
    | Drawing
    | Definitions
    | Details
    | Figure
    | Facts
    | Map
    | Link
    | Only
    | Section
)


@dataclass(frozen=True)
class Document:
    """A whole report: its title, what stands before its first section, the sections in
    order, and what stands behind the last.
    """

    title: str
    lead: tuple[Part, ...]
    sections: tuple[Section, ...]
    closing: tuple[Part, ...] = ()


def table(
    columns: Iterable[str],
    rows: Iterable[Iterable[Cell]],
    anchors: Iterable[str] = (),
) -> Table:
    """A Table of any iterables."""
    return Table(tuple(columns), tuple(map(tuple, rows)), tuple(anchors))


def anchor(op: str, scenario: str, dtype: str, batch: int | None = None) -> str:
    """The page's anchor of a problem, or of one batch of it:
    "bmm/tiny_16/float32/B64".
    """
    parts = (op, scenario, dtype, *(() if batch is None else (f"B{batch}",)))
    return "/".join(quote(printable(part), safe="") for part in parts)


def spans(cell: Cell) -> tuple[str | Marked, ...]:
    """A cell as the texts that it consists of."""
    return cell if isinstance(cell, tuple) else (cell,)


def join(separator: str, cells: Iterable[Cell]) -> Cell:
    """One cell of several, as str.join makes one text of several."""
    joined: list[str | Marked] = []
    for cell in cells:
        if joined:
            joined.append(separator)
        joined += spans(cell)
    return tuple(joined)


def select(parts: Sequence[Part], place: Place) -> tuple[Part, ...]:
    """The parts that stand at the place, also inside sections and details; a section
    or details of which nothing is left stand nowhere.
    """
    return tuple(_select(parts, place))


def _select(parts: Sequence[Part], place: Place) -> Iterator[Part]:
    for part in parts:
        if isinstance(part, Only):
            if place in part.places:
                yield from _select(part.parts, place)
        elif isinstance(part, (Section, Details)):
            inner = select(part.parts, place)
            if inner:
                yield replace(part, parts=inner)
        else:
            yield part


def walk(parts: Sequence[Part]) -> Iterator[Part]:
    """Every part, also those inside sections and details."""
    for part in parts:
        yield part
        if isinstance(part, (Section, Details, Only)):
            yield from walk(part.parts)


def tables(parts: Sequence[Part]) -> list[Table]:
    """Every table among the parts, also inside sections and details."""
    return [part for part in walk(parts) if isinstance(part, Table)]


def plain(cell: Cell, marked: Callable[[Marked], str] = lambda span: span.text) -> str:
    """A cell as one text; `marked` writes what is marked in it."""
    return "".join(
        marked(span) if isinstance(span, Marked) else span for span in spans(cell)
    )


def unique(values: Iterable) -> list:
    """The distinct values in the order in which they first come, as rows and columns
    are listed.
    """
    return list(dict.fromkeys(values))
