"""Parts of stored runs as the documents show them: what `batchline readme` puts between its
marks.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from batchline.bench import records, selftests
from batchline.bench.records import Run
from batchline.bench.report import crossovers, ladder, plots, selftest, tables
from batchline.bench.report.blocks import Table, blocks
from batchline.bench.report.tables import MARKDOWN

SCREENSHOT = "page.png"
_KEYWORD = b"batchline-run"  # of the PNG's text chunk that says which run it shows
_PNG = b"\x89PNG\r\n\x1a\n"


def shown(kind: str, folder: Path, link: str, what: str) -> str:
    """The Markdown of one part.

    Args:
        kind: a key of KINDS.
        folder: the run's (or self-test's).
        link: the folder as the document's links say it.
        what: which part of it, as the kind wants it; "" is all.

    Raises:
        ValueError: for an unknown kind or part, or a folder that does not hold it.
    """
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
    return KINDS[kind](folder, link, what)


def _problem(folder: Path, link: str, what: str) -> str:
    run = records.load(folder)
    table = tables.comparison(_group(run, what), MARKDOWN, run.about["ceilings"])
    if table is None:
        raise ValueError(f"nothing of {what} was timed in {folder}")
    return table


def _group(run: Run, what: str) -> list:
    found = run.groups().get(tuple(what.split("/")))
    if found is None:
        raise ValueError(f"the run has no {what!r} (op/scenario/dtype)")
    return found


def _ladder(folder: Path, link: str, what: str) -> str:
    """`what`: "op: rung, rung…", in the order of the ladder."""
    op, _, names = what.partition(": ")
    rungs = names.split(", ")
    run = records.load(folder)
    (table,) = blocks(lambda style: ladder.table(run, op, style, compiled=False))
    kept = [row for row in table.rows if row[0].lstrip("· ") in rungs]
    if len(kept) != len(rungs):
        raise ValueError(f"the ladder of {op} in {folder} has not all of {names}")
    return MARKDOWN.render(table.headers, kept)


def _choices(folder: Path, link: str, what: str) -> str:
    """The rows of one op and dtype ("op/dtype") of the table of choices, without these
    two.
    """
    op, _, dtype = what.partition("/")
    run = records.load(folder)
    found = [
        block
        for block in blocks(lambda style: crossovers.table(run, style))
        if isinstance(block, Table)
    ]
    rows = [
        [row[1].partition(" · ")[0], *row[2:]]
        for table in found
        for row in table.rows
        if row[0] == op and row[1].endswith(f" · {dtype}")
    ]
    if not rows:
        raise ValueError(f"no choice among the variants of {what} in {folder}")
    return MARKDOWN.render(["scenario", "use", "meet at B*"], rows)


def _plot(folder: Path, link: str, what: str) -> str:
    op, scenario, dtype = what.split("/")
    name = plots.name_of(op, scenario, dtype)
    if not (folder / f"{name}.png").exists():
        raise ValueError(
            f"{folder} has no {name}.png: `make report RUN={folder}` draws it"
        )
    return f"![latency, speed-up and memory of {op} over the batch, {scenario}, {dtype}]({link}/{name}.png)"


def _screenshot(folder: Path, link: str, what: str) -> str:
    path = folder / SCREENSHOT
    if not path.exists() or run_of(path) != digest_of(folder):
        raise ValueError(
            f"{path} is missing or of another run: `batchline readme` takes it where there is a Chromium"
        )
    return f"![the page of the run]({link}/{SCREENSHOT})"


def _selftest(folder: Path, link: str, what: str) -> str:
    found = selftests.load(folder)
    return f"{selftest.table(found, MARKDOWN)}\n\n> {selftest.answer(found)}"


KINDS: Mapping[str, Callable[[Path, str, str], str]] = {
    "problem": _problem,
    "ladder": _ladder,
    "choices": _choices,
    "plot": _plot,
    "screenshot": _screenshot,
    "selftest": _selftest,
}


def digest_of(folder: Path) -> str:
    """A hash of a stored run."""
    return hashlib.sha256((folder / records.FILE_NAME).read_bytes()).hexdigest()[:16]


def run_of(screenshot: Path) -> str | None:
    """The hash of the run that a screenshot is of, as `stamped` put it in; None without
    one.
    """
    content = screenshot.read_bytes()
    at = content.find(b"tEXt" + _KEYWORD + b"\0")
    return (
        content[at + 4 + len(_KEYWORD) + 1 :][:16].decode("ascii", errors="replace")
        if at >= 0
        else None
    )


def stamped(png: bytes, digest: str) -> bytes:
    """The PNG with a text chunk that says which run it shows (PNG specification, third
    edition, 11.3.3.2).

    Raises:
        ValueError: if it is no PNG.
    """
    if not png.startswith(_PNG):
        raise ValueError("a screenshot is a PNG, and this is none")
    header_end = len(_PNG) + 25  # the IHDR chunk
    data = b"tEXt" + _KEYWORD + b"\0" + digest.encode()
    chunk = (
        struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    )
    return png[:header_end] + chunk + png[header_end:]
