"""How long a task took, and how much of that went into fences, new values and checks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import (
    perf_counter as now_s,
)  # as it is now, whatever a variant makes of time.perf_counter later

_SHARE = 0.03  # of a task's time, for what can be done less often


class Ledger:
    """Counts from when it is made."""

    def __init__(self):
        self._since_s = now_s()
        self._depth = 0
        self.spent_s = 0.0
        self.check_s = 0.0  # what the dearest checked round took

    @property
    def total_s(self) -> float:
        return now_s() - self._since_s

    def can_afford(self, more_s: float = 0.0) -> bool:
        """Whether less than the usual share of the time will have been spent after so
        many seconds more.
        """
        return self.spent_s + more_s < _SHARE * self.total_s

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """What the block takes counts as spent, once."""
        start_s = now_s()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.spent_s += now_s() - start_s

    def facts(self, entries: int) -> dict[str, float]:
        """The share of one of so many entries: seconds of the task, and of them those
        spent on fences.
        """
        return {
            "task_s": self.total_s / max(1, entries),
            "fences_s": self.spent_s / max(1, entries),
        }
