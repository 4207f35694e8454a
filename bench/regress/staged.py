"""Pairs of processes, one after another, until every case has its verdict: whoever has
one is not measured again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.regress.pairs import Compared, Entry, Pairs
from batchline.bench.verdicts.paired import Evidence
from batchline.bench.verdicts.gate import LAST_PAIR, STAGES

INTERRUPTED = "stopped by Ctrl-C"


@dataclass(frozen=True)
class Family:
    """Cases that are judged together, and the entry that each is measured by;
    `controls` are in every pair.
    """

    evidence: Evidence
    entries: Mapping[str, Entry]
    controls: bool = False


def measure(
    pairs: Pairs,
    families: Sequence[Family],
    until_s: float | None = None,
    now=time.monotonic,
) -> tuple[int, str]:
    """Measure until nothing is open, and add what is found to the families' evidence.

    `until_s`: the time by `now`, in seconds, at which no further pair is begun.

    Returns:
        How many pairs were measured, and why it ended early, "" if it did not.
    """
    started_s = now()
    for number in range(LAST_PAIR):
        waiting = _waiting(families)
        if not any(not family.controls for family, _ in waiting):
            return number, ""
        pair_s = (now() - started_s) / max(number, 1)
        if until_s is not None and now() + pair_s > until_s:
            return number, f"the time was up after {number} pairs"
        _say(number, sum(not family.controls for family, _ in waiting), pair_s)
        try:
            compared = pairs.pair(
                [family.entries[case] for family, case in waiting], number
            )
        except KeyboardInterrupt:
            return number, INTERRUPTED
        for family, case in waiting:
            add(family.evidence, case, compared[family.entries[case].label])
    return LAST_PAIR, ""


def add(evidence: Evidence, case: str, compared: Compared) -> None:
    """What one pair gave of a case."""
    if compared.failure:
        evidence.add_failure(case, *compared.failure)
    else:
        evidence.add(case, compared.figures)


def _waiting(families: Sequence[Family]) -> list[tuple[Family, str]]:
    return [
        (family, case)
        for family in families
        for case in (family.entries if family.controls else family.evidence.open())
    ]


def _say(number: int, cases: int, pair_s: float) -> None:
    stage = next((stage for stage in STAGES if number < stage), LAST_PAIR)
    pace = f", {pair_s:.0f} s a pair" if number else ""
    print(
        f"pair {number + 1} of {stage}: {cases} case{'s' if cases != 1 else ''}{pace}",
        file=sys.stderr,
    )


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """What Triton's autotuner finds in the first processes is kept on disk, and pinned
    for all that follow.
    """
    before = os.environ.get("TRITON_CACHE_AUTOTUNING")
    os.environ["TRITON_CACHE_AUTOTUNING"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TRITON_CACHE_AUTOTUNING"]
        else:
            os.environ["TRITON_CACHE_AUTOTUNING"] = before
