"""What became of one entry of a task: from its samples and facts, or from what its
variant raised.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchline.bench import texts
from batchline.bench.measure.checking.check import refusal_of
from batchline.bench.measure.timing.sampling import Samples
from batchline.bench.measure.worker.task import Outcome
from batchline.bench.statuses import (
    INVALID,
    MEASURED,
)


def of_samples(
    by_clock: Mapping[str, Samples | str], ranks: str, facts: Mapping
) -> Outcome:
    """The outcome of an entry that was timed: `by_clock` has its samples, or why a
    clock has none.

    INVALID where the clock that `ranks` has none.
    """
    first = by_clock[ranks]
    if isinstance(first, str):
        return Outcome(INVALID, first)
    for name, samples in by_clock.items():
        if isinstance(samples, Samples) and not samples.median_s > 0:
            return Outcome(
                INVALID,
                f"by {name}, it takes no time at all: whatever it does, it is not this work",
            )
    return Outcome(
        MEASURED,
        "",
        tuple(first.samples_s),
        first.iterations,
        {
            **facts,
            "clock": first.clock,
            "precision": first.precision,
            "discarded": first.discarded,
            "clocks": {
                name: _clock_facts(samples) for name, samples in by_clock.items()
            },
        },
    )


def _clock_facts(samples: Samples | str) -> dict:
    if isinstance(samples, str):
        return {"why_not": samples}
    facts = {
        "median_s": samples.median_s,
        "precision": samples.precision,
        "samples": len(samples.samples_s),
        "iterations": samples.iterations,
    }
    return facts | ({"alone": samples.alone} if samples.alone else {})


def of_error(error: BaseException) -> Outcome:
    """The outcome of an entry that raised."""
    refusal = refusal_of(error)
    return Outcome(refusal.status, refusal.reason)


def one_line(error: BaseException) -> str:
    """The error's type and its cause, safe to show anywhere (bench.texts)."""
    return texts.error_line(error)
