"""What ends a command in one line, what its exit code means, and what stands in the place
of a value that is not available.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class UsageError(ValueError):
    """What was wrong with the call, and what to do, in a line."""


@dataclass(frozen=True)
class Missing:
    """There is no value, because of `reason`: one line. Never true, so that `value or
    other` passes it by.
    """

    reason: str

    def __bool__(self) -> bool:
        return False

    def __str__(self) -> str:
        return self.reason


class ExitCode(IntEnum):
    """make exits with 2 whatever a command exits with, and prints the command's."""

    CLEAN = 0
    FAULT = 1  # what was measured, compared or written has a fault
    USAGE = 2  # the call or the environment was not usable: nothing was done
    NOT_MEASURED = 3  # there is no result, for good or bad
    STOPPED = 130  # by Ctrl-C or a signal; as shells say it

    @property
    def meaning(self) -> str:
        """What it says of a command that declares nothing else in its EXITS."""
        return _MEANINGS[self]


_MEANINGS = {
    ExitCode.CLEAN: "done",
    ExitCode.FAULT: "something is wrong",
    ExitCode.USAGE: "the call is not usable",
    ExitCode.NOT_MEASURED: "there is no result",
    ExitCode.STOPPED: "stopped",
}
