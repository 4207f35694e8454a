"""The id of a case; how a case can end, and which of its ends count against its variant.

An id is `op/variant/scenario/dtype/B8`: readable and stable, for a change of it loses
the case's history.
"""

from __future__ import annotations

MEASURED = "measured"
WRONG = (
    "wrong"  # disagrees with the fp64 reference, or breaks the contract of a variant
)
INVALID = "invalid"  # timed, and the time can't be believed: impossible, or the machine was throttled
FAILED = "failed"  # raised
OUT_OF_MEMORY = "out of memory"
CRASHED = "crashed"  # took its process with it
HUNG = "hung"  # was not done by its deadline
UNSUPPORTED = "unsupported"  # declared by the variant
NOT_HERE = "not timed here"  # needs a device, a compiler or more time than this run has
NOT_REACHED = "not reached"  # planned, and the run ended before it, or it was given up

STATUSES = (
    MEASURED,
    WRONG,
    INVALID,
    FAILED,
    OUT_OF_MEMORY,
    CRASHED,
    HUNG,
    UNSUPPORTED,
    NOT_HERE,
    NOT_REACHED,
)
BROKEN = (WRONG, INVALID, FAILED, OUT_OF_MEMORY, CRASHED, HUNG)
THE_MACHINE_WAS = "the machine was "
"""Busy or throttled: so begins the reason of a case where no variant is to blame."""
NOT_CAPTURED = "graph: can't be captured"  # so begins the reason where there is no CUDA graph of a launch


def is_machines_fault(status: str, reason: str) -> bool:
    """Whether a case has no time because of what the machine was doing: it says nothing
    of the variant.
    """
    return status == INVALID and reason.startswith(THE_MACHINE_WAS)


def is_broken(status: str, reason: str) -> bool:
    """Whether a case counts against its variant, and so against the run's exit code."""
    return status in BROKEN and not is_machines_fault(status, reason)


class NotMeasured(Exception):
    """A case that ends without a time: a status from STATUSES and one line that says
    why.
    """

    def __init__(self, status: str, reason: str):
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.status}: {self.reason}"


def case_id(op: str, variant: str, scenario: str, dtype: str, batch: int) -> str:
    """The id of the case with these parts."""
    return f"{op}/{variant}/{scenario}/{dtype}/B{batch}"


def parse_case_id(name: str) -> dict:
    """The parts of a case id, by the names of `case_id`'s parameters.

    Raises:
        ValueError: if it is no case id.
    """
    op, variant, scenario, dtype, batch = name.split("/")
    return {
        "op": op,
        "variant": variant,
        "scenario": scenario,
        "dtype": dtype,
        "batch": int(batch.removeprefix("B")),
    }
