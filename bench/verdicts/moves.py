"""What a move of a case is put down to: a change of its code, or of how, by what or on
what it was measured. `classify` alone decides; a move between two methods or two
machines is never called a regression.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from batchline.bench import statuses
from batchline.bench.store import history
from batchline.bench.store.records import Record, Run
from batchline.bench.store.regressions import (
    EQUIVALENT,
    IDENTICAL,
    IMPROVED,
    MISSING,
    NEW,
    REGRESSED,
    Judged,
    OverBatches,
    Regression,
)

REGRESSION = "regression"
IMPROVEMENT = "improvement"
HARDWARE = "hardware"  # another machine, or another state of it
METHOD = "method"  # other clocks, sampling, Python or profile
TOOLCHAIN = "toolchain"  # other versions of what compiles the kernels
NOISE = "noise"
UNDECIDED = "undecided"
CLASSES = (REGRESSION, IMPROVEMENT, HARDWARE, METHOD, TOOLCHAIN, NOISE, UNDECIDED)

# As bench.regress.pairs says why a pair has no time.
_MACHINES_FAULT = f"{statuses.INVALID}: {statuses.THE_MACHINE_WAS}"
_NOT_COMPARED = (IDENTICAL, NEW, MISSING)
_NEXT_TO_NOTHING = 0.01  # the least floor of a latency, and the step of an SM clock
_OF_CODE = {REGRESSED: REGRESSION, IMPROVED: IMPROVEMENT}


@dataclass(frozen=True)
class Conditions:
    """How one side of a move was measured: name → value of each, as bench.store.history
    names them. `sm_mhz` is the SM clock under the load, None where it is not known.
    """

    machine: Mapping[str, str] = field(default_factory=dict)
    method: Mapping[str, str] = field(default_factory=dict)
    toolchain: Mapping[str, str] = field(default_factory=dict)
    sm_mhz: float | None = None


@dataclass(frozen=True)
class Move:
    """`verdict` is of bench.store.regressions, by whoever has the samples. `least` is
    the end of the change's interval that is nearer to no change, as a share.
    `disturbed` says why the machine was not itself, "" if it was.
    """

    verdict: str
    before: Conditions = Conditions()
    after: Conditions = Conditions()
    least: float = 0.0
    disturbed: str = ""


@dataclass(frozen=True)
class Cause:
    """`kind` is one of CLASSES, `why` what differed between the sides, "" if nothing."""

    kind: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.why})" if self.why else self.kind


def classify(move: Move) -> Cause | None:
    """What the move is put down to; None of what was not compared."""
    if move.verdict in _NOT_COMPARED:
        return None
    if move.verdict == EQUIVALENT:
        return Cause(NOISE)
    if move.disturbed:
        return Cause(HARDWARE, move.disturbed)
    if move.verdict not in _OF_CODE:
        return Cause(UNDECIDED)
    before, after = move.before, move.after
    differ = {
        HARDWARE: history.differences(before.machine, after.machine),
        METHOD: history.differences(before.method, after.method),
        TOOLCHAIN: history.differences(before.toolchain, after.toolchain),
    }
    for kind, facts in differ.items():
        if facts:
            return Cause(kind, ", ".join(sum(differ.values(), [])))
    if _clock_may_account(move):
        return Cause(HARDWARE, f"SM clock {before.sm_mhz:.0f} → {after.sm_mhz:.0f} MHz")
    return Cause(_OF_CODE[move.verdict])


def _clock_may_account(move: Move) -> bool:
    """Whether next to nothing of the change is left once it is divided by the most that
    the clocks can make of it: time in inverse proportion to the SM clock.
    """
    before_mhz, after_mhz = move.before.sm_mhz, move.after.sm_mhz
    if not before_mhz or not after_mhz:
        return False
    rest = (1 + move.least) * after_mhz / before_mhz - 1
    if move.verdict == REGRESSED:
        return after_mhz < before_mhz and rest <= _NEXT_TO_NOTHING
    return after_mhz > before_mhz and rest >= -_NEXT_TO_NOTHING


def conditions_of_record(run: Run, record: Record) -> Conditions:
    """How a case of a run was measured; also by which profile, and whether in turns."""
    return Conditions(
        history.identity(run.machine),
        {
            **history.method(run.machine),
            "profile": run.plan.profile,
            "timed": "alone" if record.facts.get("alone") else "in turns",
        },
        history.toolchain(run.machine),
        history.sm_mhz(record.facts),
    )


def cause_in_gate(regression: Regression, judged: Judged | OverBatches) -> Cause | None:
    """What the gate's verdict is put down to. Base and head take turns on one machine by
    one method, and a clock that differs between them all the same is their code's doing.
    """
    reason = getattr(judged, "reason", "")
    disturbed = reason if _MACHINES_FAULT in reason else ""
    return classify(Move(judged.verdict, disturbed=regression.void or disturbed))
