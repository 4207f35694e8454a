"""What `batchline codegen` found, as tables: what moved of which kernel, and where it is
launched so.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from tabulate import tabulate

from batchline.bench.report.escaping import markdown as escaped
from batchline.bench.report.escaping import one_line
from batchline.bench.report.tables import unique
from batchline.bench.verdicts.codegen import CHANGED, GONE, NEW, Move
from batchline.bench.verdicts.codegen_changes import BETTER, OPEN, WORSE

_WHERE_WIDE, _WORDS_WIDE = 38, 60  # columns; with tabulate's gap they are 100
_HEADERS = ("where", "what moved")


def summary(moves: Sequence[Move]) -> str:
    """How many moved, of which variants, and what is certain of them, in a sentence."""
    if not moves:
        return "Nothing moved."
    variants = unique(move.variant for move in moves)
    kinds = ", ".join(
        f"{count} {kind}"
        for kind in (CHANGED, NEW, GONE)
        if (count := sum(move.kind == kind for move in moves))
    )
    verdicts = ", ".join(
        f"{count} {word}"
        for verdict, word in (
            (WORSE, "worse"),
            (BETTER, "better"),
            (OPEN, "for a GPU to judge"),
        )
        if (count := sum(move.verdict == verdict for move in moves))
    )
    count = "1 kernel is" if len(moves) == 1 else f"{len(moves)} kernels are"
    return f"{count} not as pinned ({kinds}): {verdicts}. Of {', '.join(variants)}. A win must be pinned, too."


def terminal(moves: Sequence[Move]) -> str:
    """The summary, and a table for each kernel and change of its configuration, 100
    columns at most.
    """
    tables = [textwrap.fill(summary(moves), 100)]
    for title, rows in _sections(moves):
        cells = [
            [_wrapped(where, _WHERE_WIDE), _wrapped(words, _WORDS_WIDE)]
            for where, words in rows
        ]
        tables.append(
            f"{_wrapped(title, 100)}\n{tabulate(cells, _HEADERS, 'simple', disable_numparse=True)}"
        )
    return "\n\n".join(tables)


def markdown(moves: Sequence[Move]) -> str:
    """The same for GitHub."""
    tables = [escaped(summary(moves))]
    for title, rows in _sections(moves):
        cells = [list(map(escaped, row)) for row in rows]
        tables.append(
            f"**{escaped(title)}**\n\n{tabulate(cells, _HEADERS, 'github', disable_numparse=True)}"
        )
    return "\n\n".join(tables)


def annotations(moves: Sequence[Move]) -> list[tuple[str, str]]:
    """A (title, message) for each table, for bench.report.ci."""
    return [
        (f"codegen: {title}", "\n".join(f"{where}: {words}" for where, words in rows))
        for title, rows in _sections(moves)
    ]


def _sections(moves: Sequence[Move]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(title, rows of where and what) for each kernel and change of its configuration;
    what moved alike is a row.
    """
    sections: dict[tuple[str, str], dict[tuple, list[Move]]] = {}
    for move in moves:
        rows = sections.setdefault(
            (f"{move.variant} {move.kernel}".rstrip(), move.reconfigured), {}
        )
        rows.setdefault((move.words, move.verdict), []).append(move)
    for (name, reconfigured), rows in sections.items():
        count = sum(map(len, rows.values()))
        yield (
            f"{name}{f', {reconfigured}' if reconfigured else ''} ({count} kernel{'s' if count > 1 else ''})",
            [(_where(group), _what(group[0])) for group in rows.values()],
        )


def _where(group: Sequence[Move]) -> str:
    """ "float16 sm_90 tiny_16/B4, odd/B1; float32 sm_90 odd/B1"; a scenario with
    several configurations stands once.
    """
    shown: dict[str, list[str]] = {}
    for move in group:
        shown.setdefault(f"{move.dtype} sm_{move.architecture}", []).append(
            f"{move.scenario}/B{move.batch}"
        )
    return one_line(
        "; ".join(
            f"{target} {', '.join(_counted(places))}"
            for target, places in shown.items()
        )
    )


def _counted(places: Sequence[str]) -> list[str]:
    return [
        f"{place} ({places.count(place)} times)" if places.count(place) > 1 else place
        for place in unique(places)
    ]


def _what(move: Move) -> str:
    certain = "" if move.verdict == OPEN else f"{move.verdict}: "
    return one_line(f"{certain}{move.words or 'nothing else'}")


def _wrapped(line: str, width: int) -> str:
    return textwrap.fill(line, width, subsequent_indent="  ", break_on_hyphens=False)
