"""What a GPU's clocks were while it was measured: at the looks during a problem, and
under a load that lasts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from batchline.bench import units

_POWER_CAP = "power cap"  # bench.measure.machine.state's, which imports torch


def of_problem(facts: Mapping) -> str | None:
    """The range of the SM clock during the case's problem, and whether a power cap was
    on; None where it is unknown.

    `facts` are a measured case's (bench.store.records.Record).
    """
    seen = _seen_mhz(facts)
    if not seen:
        return None
    return f"SM at {_range(*seen)} MHz{', under a power cap' if _was_capped(facts) else ''}"


def of_run(facts: Sequence[Mapping]) -> str:
    """The range over all measured cases, and in how many of them a power cap was on; ""
    where it is unknown.
    """
    seen = list(filter(None, map(_seen_mhz, facts)))
    if not seen:
        return ""
    text = f"The SM clock was at {_range(min(low for low, _ in seen), max(high for _, high in seen))} MHz. "
    capped = sum(map(_was_capped, facts))
    if not capped:
        return text
    return (
        f"{text}A power cap was on during {capped} of {len(facts)} cases: it is how a large GPU runs large "
        "products, and drops no samples. "
    )


def sustained(facts: Mapping) -> str | None:
    """A case's time under a load that lasts, with the clock and the power at its end;
    None where it has none.
    """
    measured = facts.get("sustained")
    if not measured:
        return None
    at = [f"{measured['sm_mhz']} MHz"] if measured["sm_mhz"] else []
    at += [f"{measured['power_w']:.0f} W"] if measured["power_w"] else []
    return " at ".join(
        [units.duration(measured["median_s"]), *filter(None, [" and ".join(at)])]
    )


def _range(low: int, high: int) -> str:
    return f"{low}" if low == high else f"{low} to {high}"


def _seen_mhz(facts: Mapping) -> Sequence[int] | None:
    return _after(facts).get("sm_mhz_seen")


def _was_capped(facts: Mapping) -> bool:
    """Runs of before say only whether a power cap was on when the problem had ended."""
    after = _after(facts)
    return bool(after.get("power_cap_seen")) or _POWER_CAP in (
        after.get("throttled") or ()
    )


def _after(facts: Mapping) -> Mapping:
    """The machine's state when the case's problem had ended; {} on a CPU and where it
    is unknown.
    """
    return (facts.get("state") or {}).get("after") or {}
