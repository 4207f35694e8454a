"""What `batchline regress` found, as it is stored in regress.json and as all that shows it
reads it.

Like bench.records it imports nothing that measures: a stored verdict renders on any
machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from batchline.bench.files import write_whole

REGRESSED = "REGRESSED"
IMPROVED = "IMPROVED"
EQUIVALENT = "EQUIVALENT"  # the interval of the change is inside the noise floor
INCONCLUSIVE = "INCONCLUSIVE"  # neither, with the pairs that there were
UNCONFIRMED = (
    "UNCONFIRMED"  # left open, and its whole interval is above the noise floor
)
INVALID = (
    "INVALID"  # could not be judged: throttled, wrong on both sides, too few samples
)
IDENTICAL = "IDENTICAL"  # the same compiled code and launch: not judged, and a control of the session
NEW = "NEW"
MISSING = "MISSING"
VERDICTS = (
    REGRESSED,
    IMPROVED,
    EQUIVALENT,
    INCONCLUSIVE,
    UNCONFIRMED,
    INVALID,
    IDENTICAL,
    NEW,
    MISSING,
)

LATENCY, MEMORY, ACCURACY = "latency", "memory", "accuracy"
QUANTITIES = (LATENCY, MEMORY, ACCURACY)
UNITS = {
    LATENCY: "s",
    MEMORY: "bytes",
    ACCURACY: "of the tolerance",
}  # accuracy: the error against fp64, as a share

FILE_NAME = "regress.json"
FORMAT = 1


@dataclass(frozen=True)
class Judged:
    """One case in one quantity. `base` and `head` are medians over the pairs in the
    quantity's unit (UNITS).

    `effect`, `low` and `high` are the change from base to head as a share (+0.05 is 5%
    more) and its 90% interval; `floor` the change that counts as noise, as a share, and
    `floor_from` where it comes from. `least_detectable` is the least change that so
    many `pairs` would have shown in four of five runs; `pairs_needed` how many it would
    take for a verdict, None where it has one or no number would do. What was not judged
    has None in all of them, and a `reason`.
    """

    id: str
    quantity: str
    verdict: str
    reason: str = ""
    base: float | None = None
    head: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    floor_from: str = ""
    pairs: int = 0
    least_detectable: float | None = None
    pairs_needed: int | None = None


@dataclass(frozen=True)
class OverBatches:
    """One verdict for a variant on a scenario over its batch sizes: REGRESSED if it is
    slower at any of them.

    `parts` are the stretches of neighbouring batch sizes that changed alike, each
    {"first", "last" (batch sizes), "verdict", "effect" (a share)}; `words` says it:
    "slower for B ≤ 16 (+7.2%), equal above".
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    quantity: str
    verdict: str
    words: str
    parts: tuple[Mapping, ...] = ()

    @property
    def id(self) -> str:
        return f"{self.op}/{self.variant}/{self.scenario}/{self.dtype}"


@dataclass(frozen=True)
class Regression:
    """A whole comparison of two revisions on one machine.

    `about` has base and head ({"name", "commit", "dirty"}), profile, selection, device,
    clock, started (ISO 8601), seconds, pairs (how many were measured), budget_s (None
    without one), ended ("" or why it ended early), machine
    (bench.measure.environment.machine). `void` says why no verdict counts, or is None.
    `ratios` are the raw data: quantity → case id → the natural logarithm of head over
    base, one of each pair, in order. `states`: the machine while a problem's turns were
    taken, each {"pair" (from 1), "problem" ("op/scenario/dtype/B8"), "base" and "head"
    (as a case's "state" in a run: clocks, temperature, power, load), "throttled"
    (reason → turns dropped for it)}.
    """

    about: Mapping
    void: str | None
    cases: tuple[Judged, ...]
    kernels: tuple[OverBatches, ...]
    ratios: Mapping
    states: tuple[Mapping, ...] = ()

    def of(self, verdict: str) -> tuple[Judged, ...]:
        return tuple(case for case in self.cases if case.verdict == verdict)


def save(folder: Path, regression: Regression) -> Path:
    """Write `folder`/regress.json; it appears whole or not at all."""
    text = json.dumps(
        {"format": FORMAT, **asdict(regression)}, ensure_ascii=False, allow_nan=False
    )
    return write_whole(Path(folder) / FILE_NAME, text)


def load(folder: Path) -> Regression:
    """The comparison stored in `folder`.

    Raises:
        ValueError: if there is none, or it is damaged, or of another version.
    """
    path = Path(folder) / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["format"] != FORMAT:
            raise ValueError(
                f"{path} is of format {document['format']}, and this Batchline reads {FORMAT}: "
                "run `make regress` again"
            )
        return Regression(
            document["about"],
            document["void"],
            tuple(_made(Judged, row) for row in document["cases"]),
            tuple(
                _made(OverBatches, row | {"parts": tuple(row["parts"])})
                for row in document["kernels"]
            ),
            document["ratios"],
            tuple(document.get("states", ())),
        )
    except OSError as error:
        raise ValueError(
            f"no comparison in {folder}: {error.strerror or error}"
        ) from error
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): run `make regress` again"
        ) from error


def _made(kind, row: Mapping):
    known = {field.name for field in fields(kind)}
    made = kind(**{name: value for name, value in row.items() if name in known})
    if made.verdict not in VERDICTS:
        raise TypeError(f"{made.verdict!r} is no verdict")
    if any(
        isinstance(value, float) and not math.isfinite(value)
        for value in asdict(made).values()
    ):
        raise TypeError("a figure is not finite")
    return made
