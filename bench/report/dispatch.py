"""What an op's call runs and costs, beside the op's baseline: a row an op, and a line
for each call that is slower.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from batchline.bench import units
from batchline.bench.report.fitting import TERMINAL, wrapped
from batchline.bench.report.tables import Style
from batchline.bench.verdicts.choosing import Called


def terminal(called: Sequence[Called], slower: Sequence[Called]) -> str:
    """The verdict, with a line for each of `slower`, then the table."""
    if not called:
        return "No call was timed."
    said = (
        f"{len(slower)} of {len(called)} calls are slower than the baseline by more than the look-up:"
        if slower
        else f"None of {len(called)} calls is slower than the baseline by more than the look-up."
    )
    return "\n".join(
        [said, *(wrapped(_line(one)) for one in slower), "", table(called, TERMINAL)]
    )


def table(called: Sequence[Called], style: Style) -> str:
    """A row an op: its problems, on how many something else than the baseline ran and
    what that gained, the look-up.

    The look-up beside the shortest baseline is in the caches; beside larger ones its
    few objects may not be.
    """
    ops = dict.fromkeys(one.op for one in called)
    return style.render(
        [
            "op",
            "problems",
            "not baseline",
            "speed-up",
            "largest",
            "look-up at least",
            "in the middle",
            "at most",
        ],
        [_row(op, [one for one in called if one.op == op]) for op in ops],
    )


def _row(op: str, called: Sequence[Called]) -> list[str]:
    gains = [one.speed_up for one in called if one.variant != one.baseline]
    look_ups = [max(0.0, one.overhead_s) for one in called]
    shortest = min(called, key=lambda one: one.baseline_s)
    return [
        op,
        str(len(called)),
        str(len(gains)),
        units.ratio(statistics.geometric_mean(gains)) if gains else "",
        units.ratio(max(gains)) if gains else "",
        units.duration(max(0.0, shortest.overhead_s)),
        units.duration(statistics.median(look_ups)),
        f"{max(look_up / one.baseline_s for look_up, one in zip(look_ups, called)):.0%} of a call",
    ]


def _line(one: Called) -> str:
    return (
        f"{one.op}/{one.scenario}/{one.dtype}/B{one.batch}: {units.duration(one.call_s)} by {one.variant} "
        f"({one.source}), the baseline {units.duration(one.baseline_s)}, and "
        f"{units.duration(max(one.overhead_s, 0))} for the look-up"
    )
