"""What GitHub Actions shows of a command: the step's summary and annotations. Elsewhere
both do nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from batchline.bench.report.escaping import workflow_data, workflow_property

LEVELS = ("error", "warning", "notice")
MOST = 10  # annotations of one level that GitHub shows of a step
SUMMARY_BYTES = 2**20  # more in one step's file, and GitHub shows nothing of it
_CUT = "\n\nCut here: GitHub shows 1 MiB of a step's summary. The whole of it is among the run's files.\n"


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
                file.write(fitted(f"{markdown.rstrip()}\n\n", SUMMARY_BYTES - there))
        except OSError as error:
            print(
                f"batchline: can't write the step's summary ({error.strerror}): {name}",
                file=sys.stderr,
            )


def fitted(markdown: str, room_bytes: int) -> bytes:
    """The Markdown in UTF-8, whole if it fits into `room_bytes`, else its first lines
    and one that says it was cut.
    """
    whole = markdown.encode("utf-8", "replace")
    if len(whole) <= room_bytes:
        return whole
    longest_end = ("</details>\n" * markdown.count("<details>") + _CUT).encode()
    kept = whole[: max(0, room_bytes - len(longest_end))].rpartition(b"\n")[0]
    left_open = kept.count(b"<details>") - kept.count(b"</details>")
    end = (b"\n" + b"</details>\n" * left_open if left_open else b"") + _CUT.encode()
    return kept + end if len(kept + end) <= room_bytes else b""


def annotations(level: str, items: Sequence[tuple[str, str]]) -> list[str]:
    """GitHub's workflow commands for (title, message) pairs, worst first: ten at most,
    the last says how many more.

    Raises:
        ValueError: if the level is none of LEVELS.
    """
    if level not in LEVELS:
        raise ValueError(f"unknown level {level!r}: choose from {', '.join(LEVELS)}")
    shown = list(items)
    if len(shown) > MOST:
        more = len(shown) - (MOST - 1)
        shown = [
            *shown[: MOST - 1],
            (f"and {more} more", "The step's summary has them all."),
        ]
    return [
        f"::{level} title={workflow_property(title)}::{workflow_data(message)}"
        for title, message in shown
    ]


def announce(level: str, items: Sequence[tuple[str, str]]) -> None:
    """Print `annotations` where GitHub Actions reads them ($GITHUB_ACTIONS is "true"),
    and nothing elsewhere.
    """
    if os.environ.get("GITHUB_ACTIONS") == "true":
        for command in annotations(level, items):
            print(command, flush=True)
