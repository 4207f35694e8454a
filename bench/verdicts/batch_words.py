"""A kernel's verdict over its batch sizes in words: "slower for B ≤ 16 (+7.2%), equal
above".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from batchline.bench.store.regressions import (
    ACCURACY,
    EQUIVALENT,
    IMPROVED,
    INCONCLUSIVE,
    INVALID,
    LATENCY,
    MEMORY,
    REGRESSED,
)

_CHANGED = {
    LATENCY: ("slower", "faster"),
    MEMORY: ("more memory", "less memory"),
    ACCURACY: ("less accurate", "more accurate"),
}
_UNCHANGED = {EQUIVALENT: "equal", INCONCLUSIVE: "undecided", INVALID: "not judged"}


def words(
    parts: Sequence[Mapping], counts: Mapping[str, int], quantity: str = LATENCY
) -> str:
    """`parts` are as in OverBatches, all of a kernel; `counts` is how many batch sizes
    have each verdict.

    What changed is said first, each stretch of it; of the rest, where it is scattered,
    only how much.
    """
    changed = [part for part in parts if part["verdict"] not in _UNCHANGED]
    rest = [part for part in parts if part["verdict"] in _UNCHANGED]
    if len(parts) == 2 and rest:
        last = rest[-1]
        side = "above" if last is parts[1] else "below"
        return f"{_said((changed + rest)[0], parts, quantity)}, {_UNCHANGED[last['verdict']]} {side}"
    return ", ".join(
        [
            *(_said(part, parts, quantity) for part in changed),
            *_of_rest(rest, parts, counts, quantity),
        ]
    )


def _of_rest(
    rest: Sequence[Mapping],
    parts: Sequence[Mapping],
    counts: Mapping[str, int],
    quantity: str,
) -> Iterator[str]:
    verdicts = [
        verdict
        for verdict in _UNCHANGED
        if any(part["verdict"] == verdict for part in rest)
    ]
    elsewhere = len(rest) < len(parts)
    if elsewhere and len(verdicts) == 1:
        yield f"{_UNCHANGED[verdicts[0]]} elsewhere"
    elif len(rest) == len(verdicts):
        yield from (_said(part, parts, quantity) for part in rest)
    else:
        said = [f"{_UNCHANGED[verdict]} at {counts[verdict]}" for verdict in verdicts]
        yield f"{'elsewhere ' * elsewhere}{', '.join(said)} of {sum(counts.values())} batch sizes"


def _said(part: Mapping, parts: Sequence[Mapping], quantity: str) -> str:
    if part["verdict"] in _UNCHANGED:
        return f"{_UNCHANGED[part['verdict']]} {_where(part, parts)}"
    what = dict(zip((REGRESSED, IMPROVED), _CHANGED[quantity]))[part["verdict"]]
    return f"{what} {_where(part, parts)} ({part['effect']:+.1%})"


def _where(part: Mapping, parts: Sequence[Mapping]) -> str:
    if len(parts) == 1:
        return "at every B"
    if part["first"] == part["last"]:
        return f"at B = {part['first']}"
    if part is parts[0]:
        return f"for B ≤ {part['last']}"
    return (
        f"for B ≥ {part['first']}"
        if part is parts[-1]
        else f"for {part['first']} ≤ B ≤ {part['last']}"
    )
