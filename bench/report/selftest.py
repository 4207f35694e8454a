"""What the gate sees on a machine, as a table: false alarms on identical code, and
known slow-downs that it found.
"""

from __future__ import annotations

import math
import statistics

from batchline.bench import units
from batchline.bench.report.tables import Style
from batchline.bench.store.selftests import NOTHING, Finding, Selftest


def answer(found: Selftest) -> str:
    """The self-test in a few sentences."""
    quiet = [one for one in found.findings if one.share == NOTHING]
    alarms = [one for one in found.findings if one.alarm]
    planted = sorted({one.share for one in found.findings} - {NOTHING})
    seen = "; ".join(f"+{share:.0%} in {_of(found, share)}" for share in planted)
    sessions = found.sessions
    said = [
        f"{sum(one.alarm for one in quiet)} false alarms in {sessions} A/A sessions of {len(found.cases)} cases"
    ]
    if len(alarms) > sum(one.alarm for one in quiet):
        said.append(
            f"{len(alarms) - sum(one.alarm for one in quiet)} planted slow-downs called an improvement"
        )
    if seen:
        said.append(f"planted slow-downs called REGRESSED: {seen}")
    ended = f" Ended early: {found.about['ended']}." if found.about["ended"] else ""
    return (
        f"{'; '.join(said)}. Profile {found.about['profile']} on {found.about['machine']['device_name']}, "
        f"{found.about['seconds'] / 60:.0f} min.{ended}"
    )


def table(found: Selftest, style: Style) -> str:
    """A row a case, the shortest first; of what is planted, how many sessions called it
    REGRESSED.
    """
    planted = sorted({one.share for one in found.findings} - {NOTHING})
    headers = (
        "case",
        "median",
        "A/A alarms",
        "A/A change, 99%",
        *(f"+{share:.0%}" for share in planted),
        "pairs, A/A",
    )
    return style.render(
        headers,
        (
            [
                case,
                _median(found.of(case, NOTHING)),
                _count(found.of(case, NOTHING), "alarm"),
                _share(noise(found.of(case, NOTHING))),
                *(_count(found.of(case, share), "seen") for share in planted),
                _pairs(found.of(case, NOTHING)),
            ]
            for case in found.cases
        ),
    )


def noise(findings: list[Finding]) -> float | None:
    """The 99th percentile of the A/A changes, as a share: with fewer than a hundred,
    the largest.
    """
    changes = sorted(abs(one.effect) for one in findings if one.effect is not None)
    return changes[math.ceil(0.99 * len(changes)) - 1] if changes else None


def _of(found: Selftest, share: float) -> str:
    these = [one for one in found.findings if one.share == share]
    return f"{sum(one.seen for one in these)} of {len(these)}"


def _count(findings: list[Finding], what: str) -> str:
    return (
        f"{sum(getattr(one, what) for one in findings)} of {len(findings)}"
        if findings
        else ""
    )


def _median(findings: list[Finding]) -> str:
    times = [one.base_s for one in findings if one.base_s]
    return units.duration(statistics.median(times)) if times else ""


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _pairs(findings: list[Finding]) -> str:
    counts = [one.pairs for one in findings]
    return f"{min(counts)} to {max(counts)}" if counts else ""
