"""The cases of two revisions beside each other: which are to be compared, and which
need no measuring, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.case_ids import case_id, parse_case_id
from batchline.bench.store.regressions import IDENTICAL, LATENCY, MISSING, NEW, Judged

_MOST_CONTROLS = 8


@dataclass(frozen=True)
class Matched:
    """Case ids, in the order of the plan.

    `changed` are on both sides with different code or configuration; `same` on both
    with the same; `new` and `missing` on one side only, each with a reason. What can
    run on neither side is in none of them.
    """

    changed: tuple[str, ...]
    same: tuple[str, ...]
    new: Mapping[str, str]
    missing: Mapping[str, str]

    def controls(self, baselines: Mapping[str, str]) -> tuple[str, ...]:
        """Some of `same` to measure beside `changed`: their problems' baselines first,
        then other variants of them.

        `baselines`: op → its baseline's name. Other problems' cases only where these
        have none of the same code.
        """
        problems = {_problem(case) for case in self.changed}

        def distance(case: str) -> tuple[bool, bool]:
            parts = parse_case_id(case)
            return _problem(case) not in problems, parts["variant"] != baselines.get(
                parts["op"]
            )

        ranked = sorted(self.same, key=distance)
        nearby = [case for case in ranked if _problem(case) in problems]
        return tuple((nearby or ranked)[:_MOST_CONTROLS]) if self.changed else ()

    def unmeasured(self) -> tuple[Judged, ...]:
        """The rows of what is not compared."""
        return (
            *(
                Judged(case, LATENCY, MISSING, why)
                for case, why in self.missing.items()
            ),
            *(Judged(case, LATENCY, NEW, why) for case, why in self.new.items()),
            *(
                Judged(case, LATENCY, IDENTICAL, "the same code and configuration")
                for case in self.same
            ),
        )


def match(
    base: Mapping[str, Mapping], head: Mapping[str, Mapping], chosen: Iterable[str]
) -> Matched:
    """Match two sides' plans (Pairs.plans), as far as their ids are `chosen`."""
    changed, same, new, missing = [], [], {}, {}
    for case in chosen:
        sides = base.get(case), head.get(case)
        refusals = [
            side["refusal"][1] if side and side["refusal"] else "not there"
            for side in sides
        ]
        runs = [side is not None and not side["refusal"] for side in sides]
        if all(runs):
            (same if sides[0]["code"] == sides[1]["code"] else changed).append(case)
        elif runs[1]:
            new[case] = f"at the base: {refusals[0]}"
        elif runs[0]:
            missing[case] = f"now: {refusals[1]}"
    return Matched(tuple(changed), tuple(same), new, missing)


def union(base: Sequence[str], head: Sequence[str]) -> list[str]:
    """Every id of either side, once: head's in their order, then what only the base
    has.
    """
    return [*head, *(case for case in base if case not in set(head))]


def _problem(case: str) -> str:
    parts = parse_case_id(case)
    return case_id(parts["op"], "", parts["scenario"], parts["dtype"], parts["batch"])
