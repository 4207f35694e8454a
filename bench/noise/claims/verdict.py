"""A claim, the finding on each part of it, and the verdict that follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from batchline.bench.stats.intervals import Estimate

HOLDS = "HOLDS"
DOES_NOT_HOLD = "DOES NOT HOLD"
ONLY_WHERE = "HOLDS ONLY WHERE"
NOT_DECIDED = "NOT DECIDED"


@dataclass(frozen=True)
class Finding:
    """One part of a claim: what it says, the verdict on that, and the effect with its
    interval in words.

    `where` is the condition of ONLY_WHERE, or what NOT_DECIDED lacks; "" else. A claim
    told in a line tells the effects of its parts in the `headline`.
    """

    part: str
    verdict: str
    effect: str
    where: str = ""
    headline: bool = True

    @property
    def text(self) -> str:
        """ "HOLDS ONLY WHERE B ≤ 256"."""
        return _verdict_text(self.verdict, self.where)


@dataclass(frozen=True)
class Table:
    """Rows of evidence, every cell as text."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Verdict:
    """One of the article's claims, as a hypothesis, and the verdict on it."""

    claim: str
    hypothesis: str
    verdict: str
    where: str
    effect: str
    findings: tuple[Finding, ...]
    evidence: tuple[Table, ...]
    sources: tuple[str, ...]

    @property
    def text(self) -> str:
        """ "HOLDS ONLY WHERE B ≤ 256"."""
        return _verdict_text(self.verdict, self.where)


def _verdict_text(verdict: str, where: str) -> str:
    if not where:
        return verdict
    return f"{verdict}: {where}" if verdict == NOT_DECIDED else f"{verdict} {where}"


def decide(effect: Estimate, expected: int, margin: float) -> str:
    """The verdict on "the effect has the sign of `expected`", effects within ±`margin`
    being none that matters.

    HOLDS where the interval lies on the expected side of 0; DOES_NOT_HOLD where it lies
    on the other, or within the margin; NOT_DECIDED where it is too wide to say.
    """
    low, high = sorted((effect.low * expected, effect.high * expected))
    if -margin <= low and high <= margin:
        return DOES_NOT_HOLD
    if low > 0:
        return HOLDS
    return DOES_NOT_HOLD if high < 0 else NOT_DECIDED


def conclude(
    claim: str,
    hypothesis: str,
    findings: Sequence[Finding],
    evidence: Sequence[Table],
    sources: Sequence[str],
) -> Verdict:
    """The verdict on a claim, from the findings on its parts.

    It holds if all parts do, and does not if none does; where some do, or do in some
    places, it holds only there. A part that is not decided leaves the claim undecided,
    unless the others already differ.
    """
    kinds = {finding.verdict for finding in findings}
    undecided = "; ".join(
        finding.where for finding in findings if finding.verdict == NOT_DECIDED
    )
    holding = [
        _condition(finding)
        for finding in findings
        if finding.verdict in (HOLDS, ONLY_WHERE)
    ]
    effect = "; ".join(
        finding.effect for finding in findings if finding.effect and finding.headline
    )
    if kinds <= {HOLDS} and findings:
        verdict = HOLDS
        where = ""
    elif kinds == {DOES_NOT_HOLD}:
        verdict = DOES_NOT_HOLD
        where = ""
    elif ONLY_WHERE in kinds or {HOLDS, DOES_NOT_HOLD} <= kinds:
        verdict = ONLY_WHERE
        where = "; ".join(holding)
    else:
        verdict = NOT_DECIDED
        where = undecided or "nothing was measured"
    return Verdict(
        claim,
        hypothesis,
        verdict,
        where,
        effect,
        tuple(findings),
        tuple(evidence),
        tuple(sources),
    )


def _condition(finding: Finding) -> str:
    return f"{finding.part}: {finding.where}" if finding.where else finding.part
