"""What the GPU tests have said, line by line, read from pytest's own output: also where
it was cut.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from batchline.bench.evidence.shown import Shown
from batchline.bench.texts import clean_line

FILE_NAME = "gpu-tests.txt"
_SHARED = re.compile(
    r"\[gw\d+\] (?:\[ *\d+%\] )?([A-Z]+) (\S+::.+?)\s*$"
)  # pytest-xdist's
_ALONE = re.compile(r"(\S+::.+?) ([A-Z]+)(?: .*)?\[ *\d+%\]\s*$")
_BEGUN = re.compile(r"(\S+::\S.*?)\s*$")
_BAD = ("FAILED", "ERROR")
_MOST = 50  # names shown


@dataclass(frozen=True)
class Tests:
    """What became of each test, by its name; of those that have begun and not ended,
    their names. `reasons`: a line for each that failed, as far as it says why.
    """

    outcomes: dict[str, str]
    unended: tuple[str, ...]
    reasons: dict[str, str]


def read(lines: Sequence[str]) -> Tests:
    """What lines of pytest -vv say."""
    outcomes, begun, reasons = {}, {}, {}
    for line in lines:
        if match := _SHARED.match(line):
            outcomes[match[2]] = match[1]
        elif match := _ALONE.match(line):
            outcomes[match[1]] = match[2]
        elif line.startswith("  ") and (known := _of_known(line.strip(), outcomes)):
            reasons.setdefault(*known)
        elif line.startswith("tests/") and (match := _BEGUN.match(line)):
            begun[match[1]] = True
    return Tests(
        outcomes, tuple(name for name in begun if name not in outcomes), reasons
    )


def _of_known(line: str, outcomes: dict[str, str]) -> tuple[str, str] | None:
    """The name of the last test and the reason behind it, where the line is
    tests.failures_at_once's.
    """
    last = next(reversed(outcomes), None)
    if last and outcomes[last] in _BAD and line.startswith(f"{last}: "):
        return last, line.removeprefix(f"{last}: ")
    return None


def show(asked) -> Shown:
    path = asked.work / FILE_NAME
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    tests = read(lines)
    if not tests.outcomes and not tests.unended:
        raise ValueError(
            clean_line(lines[-1]) if lines else "pytest has printed nothing"
        )
    counts = Counter(tests.outcomes.values())
    said = (
        ", ".join(
            f"{count} {outcome.lower()}" for outcome, count in counts.most_common()
        )
        or "none has ended"
    )
    failed = [name for name, outcome in tests.outcomes.items() if outcome in _BAD]
    rows = [
        f"- `{clean_line(name)}`: {tests.reasons.get(name, 'see the file')}"
        for name in failed[:_MOST]
    ]
    if len(failed) > _MOST:
        rows.append(f"- and {len(failed) - _MOST} more")
    rows += [
        f"- `{clean_line(name)}`: had begun and not ended"
        for name in tests.unended[:_MOST]
    ]
    text = (
        f"{said} (every test by name, the riskiest first: [{FILE_NAME}]({FILE_NAME})).\n\n"
        + "\n".join(rows)
    )
    return Shown(text.rstrip(), files={FILE_NAME: path})
