"""Whether a stored run's times may be built upon: by the tables that calls look up, and
by a machine's history.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchline.bench.statuses import MEASURED, is_machines_fault
from batchline.bench.store.records import Run

_MOST_DISTURBED = 0.1  # of the cases: where the machine was at fault so often, it was not itself for the others either


def why_made_up(machine: Mapping) -> str | None:
    """Why times of this machine (bench.measure.environment.machine) are none, or None:
    it was the stand-in for a GPU.
    """
    return machine.get("stand_in")


def why_unusable(run: Run, made_up_too: bool = False) -> str | None:
    """Why not: its GPU was no GPU, it was stopped, or the machine was busy or throttled
    in a good part of its cases; or None. With `made_up_too` times that were made up do.
    """
    if not made_up_too and (why := why_made_up(run.machine)):
        return why
    if run.about.get("partial"):
        return "it was stopped before its end"
    disturbed = sum(
        is_machines_fault(record.status, record.reason) for record in run.records
    )
    timed = disturbed + sum(record.status == MEASURED for record in run.records)
    if disturbed > _MOST_DISTURBED * timed:
        return f"the machine was busy or throttled during {disturbed} of {timed} cases"
    return None
