"""What GitHub shows: a report for a step's summary or a pull request, and annotations.

Every text is shown as it is, markup of our own included. Without GitHub's environment
variables nothing is written and nothing printed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from batchline.bench.report.document import (
    Bullets,
    Details,
    Document,
    Drawing,
    Fact,
    Facts,
    Lines,
    Map,
    Mark,
    Marked,
    OpSection,
    Part,
    ProblemSection,
    Section,
    Table,
    Text,
    plain,
)
from batchline.bench.report.render import draw_grid, winner_map
from batchline.bench.report.render.escaping import (
    markdown,
    workflow_data,
    workflow_property,
)

_MARKS = {Mark.BEST: "{} *", Mark.BAD: "{} *", Mark.STRONG: "{}"}
LEVELS = ("error", "warning", "notice")
MOST = 10  # annotations of one level that GitHub shows of a step
SUMMARY_BYTES = 2**20  # more in one step's file, and GitHub shows nothing of it
COMMENT_BYTES = 2**16  # GitHub refuses a comment of more characters
_CUT = "\n\nCut here: GitHub takes no more. The whole of it is among the run's files.\n"


def render(document: Document) -> str:
    """The title in bold, the lead under headings, and every section folded."""
    return (
        "\n\n".join(
            [
                bold(document.title),
                *render_parts(document.lead),
                *_folded_sections(document.sections),
            ]
        )
        + "\n"
    )


def _folded_sections(sections: Iterable[Section]) -> Iterator[str]:
    """Each section under its summary; of an op, each problem."""
    for section in sections:
        if isinstance(section, OpSection):
            yield from _folded_sections(section.problems)
            continue
        title = section.title
        if isinstance(section, ProblemSection):
            title = f"{section.op} · {title}"
        inner = (
            inner
            for part in section.parts
            for inner in (part.parts if isinstance(part, Section) else (part,))
        )
        yield from render_parts([Details(title, tuple(inner))])


def render_parts(parts: Iterable[Part]) -> Iterator[str]:
    """The paragraphs of the parts. Figures are left out: GitHub has no file of them."""
    for part in parts:
        match part:
            case Text(text):
                yield markdown(text)
            case Table():
                yield render_table(part)
            case Bullets(items) | Lines(items):
                yield "\n".join(f"- {markdown(item)}" for item in items)
            case Drawing(lines):
                yield "\n".join(["```text", *lines, "```"])
            case Facts(facts):
                yield "\n".join(_fact(one) for one in facts)
            case Map(of):
                yield render_table(winner_map.tabulate(of))
                yield markdown(winner_map.legend(of))
            case Details(summary, inner):
                yield f"<details><summary>{markdown(summary)}</summary>"
                yield from render_parts(inner)
                yield "</details>"
            case Section(_, title, inner):
                yield f"### {markdown(title)}"
                yield from render_parts(inner)


def _fact(fact: Fact) -> str:
    value = bold(fact.value) if fact.is_bad else markdown(fact.value)
    detail = f" ({markdown(fact.detail)})" if fact.detail else ""
    return f"- {markdown(fact.name)}: {value}{detail}"


def bold(text: str) -> str:
    """The text in bold type."""
    return f"**{markdown(text)}**"


def render_table(table: Table) -> str:
    """The table with every header and cell as it is."""
    rows = [[markdown(plain(cell, _mark)) for cell in row] for row in table.rows]
    return draw_grid(list(map(markdown, table.columns)), rows, "github")


def _mark(span: Marked) -> str:
    return _MARKS[span.mark].format(span.text)


def step_summary(markdown: str) -> None:
    """Append to the file that $GITHUB_STEP_SUMMARY names, if it is set; over GitHub's
    limit it is cut, and says so.

    A file that can't be written is a line on stderr and no error: it must not cost a
    verdict.
    """
    if name := os.environ.get("GITHUB_STEP_SUMMARY"):
        path = Path(name)
        try:
            there = path.stat().st_size if path.exists() else 0
            with path.open("ab") as file:
                file.write(cut_to(f"{markdown.rstrip()}\n\n", SUMMARY_BYTES - there))
        except OSError as error:
            print(
                f"batchline: can't write the step's summary ({error.strerror}): {name}",
                file=sys.stderr,
            )


def comment(markdown: str) -> str:
    """The Markdown as a body that GitHub takes for a comment."""
    return cut_to(markdown, COMMENT_BYTES).decode("utf-8")


def cut_to(markdown: str, room_bytes: int) -> bytes:
    """The Markdown in UTF-8, whole if it fits into `room_bytes`, else its first lines
    and one that says it was cut.
    """
    whole = markdown.encode("utf-8", "replace")
    if len(whole) <= room_bytes:
        return whole
    longest_end = ("</details>\n" * markdown.count("<details>") + _CUT).encode()
    whole_lines = whole[: max(0, room_bytes - len(longest_end))].rpartition(b"\n")[0]
    left_open = whole_lines.count(b"<details>") - whole_lines.count(b"</details>")
    end = (b"\n" + b"</details>\n" * left_open if left_open else b"") + _CUT.encode()
    return whole_lines + end if len(whole_lines + end) <= room_bytes else b""


def annotations(level: str, items: Sequence[tuple[str, str]]) -> list[str]:
    """GitHub's workflow commands for (title, message) pairs, worst first: ten at most,
    the last says how many more.

    Raises:
        ValueError: if the level is none of LEVELS.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}: choose from {', '.join(LEVELS)}")
    listed = list(items)
    if len(listed) > MOST:
        more = len(listed) - (MOST - 1)
        listed = [
            *listed[: MOST - 1],
            (f"and {more} more", "The step's summary has them all."),
        ]
    return [
        f"::{level} title={workflow_property(title)}::{workflow_data(message)}"
        for title, message in listed
    ]


def announce(level: str, items: Sequence[tuple[str, str]]) -> None:
    """Print `annotations` where GitHub Actions reads them ($GITHUB_ACTIONS is "true"),
    and nothing elsewhere.
    """
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for command in annotations(level, items):
            print(command, flush=True)
