"""Calls that take longer than a profile has time for: found once, and larger batches of
the same are not tried.
"""

from __future__ import annotations

from collections.abc import Callable

from batchline.bench import units
from batchline.bench.measure.task import Task
from batchline.bench.statuses import NOT_HERE, NotMeasured


class Patience:
    """What is too slow to be timed. `call_s` gives the seconds that one call of a
    launch takes.
    """

    def __init__(self, call_s: Callable[[Callable], float]):
        self._call_s = call_s
        self._slow: dict[tuple[str, str, str], int] = (
            {}
        )  # the batch at which a variant took too long

    def require_hope(self, variant_id: str, task: Task) -> None:
        """Raise NotMeasured if the variant was too slow at a smaller batch of the same
        scenario and dtype.
        """
        slow = self._slow.get((variant_id, task.scenario, task.dtype))
        if slow is not None and slow < task.batch:
            raise _too_slow(task, f" at B={slow} already")

    def require_quick(self, launch: Callable, variant_id: str, task: Task) -> None:
        """Raise NotMeasured unless a call, compiled by now, takes at most the longest
        time; the quickest of three.
        """
        if all(self._call_s(launch) > task.longest_call_s for _ in range(3)):
            self._slow[variant_id, task.scenario, task.dtype] = task.batch
            raise _too_slow(task)


def _too_slow(task: Task, where: str = "") -> NotMeasured:
    return NotMeasured(
        NOT_HERE,
        f"a call takes over {units.duration(task.longest_call_s)}{where}, the most that this "
        "profile has time for: PROFILE=full times it",
    )
