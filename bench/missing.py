"""What stands in the place of a value that is not available."""

from __future__ import annotations

from dataclasses import dataclass


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
