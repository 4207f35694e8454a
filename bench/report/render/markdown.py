"""A report as Markdown for a file. GitHub shows it with its `code` and **stress**;
whatever else a text holds is shown as it is.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace

from batchline.bench.report.document import (
    Bullets,
    Cell,
    Definitions,
    Details,
    Document,
    Fact,
    Facts,
    Figure,
    Lines,
    Link,
    Map,
    Mark,
    Marked,
    OpSection,
    Part,
    Section,
    Table,
    Text,
    plain,
)
from batchline.bench.report.document import table as make_table
from batchline.bench.report.render import draw_grid, winner_map
from batchline.bench.report.render.escaping import without_elements

README = "README.md"
MOST_BYTES = 400_000  # GitHub shows no Markdown over 512 KB
_BETWEEN_LARGE = "\\\n"  # a line each, of one paragraph
_MARKS = {Mark.BEST: "**{}**", Mark.BAD: "**{}**", Mark.STRONG: "**{}**"}


def files(
    document: Document, drawn: Collection[str] = (), most_bytes: int = MOST_BYTES
) -> dict[str, str]:
    """The document as README.md; where that is too large for GitHub to show, it is a
    summary, and the large sections have files of their own that it links to: first
    those of ops, then the largest.

    `drawn`: the files that figures have, by their names without the ending; figures
    without a file are left out.
    """
    sections = list(document.sections)
    texts: dict[str, str] = {}

    def readme() -> str:
        return render(replace(document, sections=tuple(sections)), drawn)

    for place in _largest_first(sections, drawn):
        if _bytes(readme()) <= most_bytes:
            break
        moved = sections[place]
        name = _file_name(moved)
        texts |= _own_files(moved, name, document.title, drawn, most_bytes)
        sections[place] = _summary_of(moved, name)
    return {README: readme()} | texts


def _largest_first(sections: Sequence[Section], drawn: Collection[str]) -> list[int]:
    """The places of the sections: all ops, then the others by their size."""
    size = {
        place: _bytes("\n\n".join(render_parts([section], drawn)))
        for place, section in enumerate(sections)
    }
    return sorted(
        size,
        key=lambda place: (
            not isinstance(sections[place], OpSection),
            0 if isinstance(sections[place], OpSection) else -size[place],
        ),
    )


def _own_files(
    section: Section,
    name: str,
    of_what: str,
    drawn: Collection[str],
    most_bytes: int,
) -> dict[str, str]:
    """The files of one section: one, or where that is too large several in a row."""
    files: list[list[Part]] = [[]]
    for part in section.parts:
        begun = _one_file(section, [*files[-1], part], of_what, drawn)
        if files[-1] and _bytes(begun) > most_bytes:
            files.append([])
        files[-1].append(part)
    names = [
        name if number == 1 else name.replace(".md", f"-{number}.md")
        for number in range(1, len(files) + 1)
    ]
    texts = {}
    for number, parts in enumerate(files):
        after = names[number + 1 : number + 2]
        links = [Link(f"{section.title}, continued", next_one) for next_one in after]
        texts[names[number]] = _one_file(section, [*parts, *links], of_what, drawn)
    return texts


def _one_file(
    section: Section, parts: Sequence[Part], of_what: str, drawn: Collection[str]
) -> str:
    document = Document(
        f"{section.title}, {of_what}", (Link("The whole report", README), *parts), ()
    )
    return render(document, drawn)


def _summary_of(section: Section, name: str) -> Section:
    """What README.md has of a section with a file of its own: the link, and of an op
    its signature and what is in the file.
    """
    if isinstance(section, OpSection):
        count = len(section.problems)
        parts = (
            Text(f"`{section.signature}`"),
            Link(
                f"{count} problems, every clock and the ladder of {section.title}", name
            ),
        )
    else:
        parts = (Link(f"{section.title}, in a file of its own", name),)
    return Section(section.id, section.title, parts)


def _file_name(section: Section) -> str:
    name = section.title if isinstance(section, OpSection) else section.id
    return re.sub(r"\W+", "-", name).strip("-") + ".md"


def _bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def render(document: Document, drawn: Collection[str] = ()) -> str:
    """The whole document as one text."""
    return "\n\n".join(paragraphs(document, drawn)) + "\n"


def paragraphs(document: Document, drawn: Collection[str] = ()) -> Iterator[str]:
    """The document's paragraphs, its title first."""
    yield f"# {without_elements(document.title)}"
    yield from render_parts(
        (*document.lead, *document.sections, *document.closing), drawn
    )


def render_parts(
    parts: Iterable[Part], drawn: Collection[str] = (), level: int = 2
) -> Iterator[str]:
    """The parts' paragraphs; `level` is that of the headings of sections."""
    for part in parts:
        match part:
            case Text(text):
                yield without_elements(text)
            case Table():
                yield render_table(part)
            case Bullets(items):
                yield "\n".join(f"- {without_elements(item)}" for item in items)
            case Lines(lines):
                yield "\n".join(map(without_elements, lines))
            case Definitions(items):
                yield "\n".join(
                    f"- **{without_elements(subject)}**: "
                    + without_elements(" ".join(sentences))
                    for subject, sentences in items
                )
            case Facts(facts, large):
                yield (_BETWEEN_LARGE if large else " · ").join(map(_fact, facts))
            case Map(of):
                yield render_table(winner_map.tabulate(of))
                yield without_elements(winner_map.legend(of))
            case Details(summary, inner):
                yield f"<details><summary>{without_elements(summary)}</summary>"
                yield from render_parts(inner, drawn, level)
                yield "</details>"
            case Figure():
                if part.file in drawn:
                    yield f"![{without_elements(part.title)}]({part.file}.png)"
                    yield f"[as SVG]({part.file}.svg)"
            case Link(title, file):
                yield f"[{without_elements(title)}]({file})"
            case Section():
                yield f"{'#' * level} {without_elements(part.title)}"
                yield from render_parts(part.parts, drawn, level + 1)


def _fact(fact: Fact) -> str:
    detail = f" ({without_elements(fact.detail)})" if fact.detail else ""
    return f"{without_elements(fact.name)} **{without_elements(fact.value)}**{detail}"


def render_table(table: Table) -> str:
    """The table in GitHub's Markdown."""
    rows = [[_cell(plain(cell, _mark)) for cell in row] for row in table.rows]
    return draw_grid(list(map(_cell, table.columns)), rows, "github")


def draw(headers: Iterable[str], rows: Iterable[Iterable[Cell]]) -> str:
    """As `render_table`, of headers and rows."""
    return render_table(make_table(headers, rows))


def _mark(span: Marked) -> str:
    return _MARKS[span.mark].format(span.text)


def _cell(text: str) -> str:
    return without_elements(text).replace("|", r"\|")
