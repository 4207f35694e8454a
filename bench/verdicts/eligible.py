"""May a result win? The one place that says which times are ranked, and which are only
shown.

What a variant declares of itself exempts it from a check: a wider error bound, fewer
outputs, inputs that it declines. And a gain may be one over a baseline that took longer
than it usually does (bench.running.confirm). Such a time stands in the tables, with the reason;
it is no best of a row, no gain on a ladder and no choice.
"""

from __future__ import annotations

from batchline.bench.records import MEASURED, Record

MOST_TOLERANCE = 16  # times the op's own error bound, on the problem that was measured
_CHOOSES = (
    "dispatch"  # the backend (kernels.backends) of a variant that hands on to another
)


def why_unranked(record: Record) -> str | None:
    """Why a measured time is shown and not ranked, or None. What an older run does not
    say does not count.
    """
    facts = record.facts
    if facts.get("gives") is not None:
        return "gives only some of the op's outputs"
    if facts.get("probes") == 0:
        return "accepted none of the op's probes"
    multiple = facts.get("tolerance_multiple") or 1
    if multiple > MOST_TOLERANCE and not facts.get(
        "is_baseline"
    ):  # which no variant becomes by what it declares
        return f"held to {multiple:.3g} times the op's error bound, and {MOST_TOLERANCE} times is the most"
    return facts.get("confirmed", {}).get("unranked")


def may_win(record: Record) -> bool:
    """Whether a result is ranked: measured, and exempt from nothing."""
    return record.status == MEASURED and why_unranked(record) is None


def may_be_chosen(record: Record) -> bool:
    """Whether a call may go to it: ranked, doing the work itself, and inside its op's
    error bound or the baseline.
    """
    facts = record.facts
    return (
        may_win(record)
        and does_the_work(record)
        and (not facts.get("own_tolerance") or bool(facts.get("is_baseline")))
    )


def does_the_work(record: Record) -> bool:
    """Whether a result is of a variant that computes, and does not hand on to another
    one.
    """
    return record.facts.get("backend") != _CHOOSES
