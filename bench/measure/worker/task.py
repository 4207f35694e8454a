"""What passes between the run and its worker process: tasks one way, outcomes the
other.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace

from batchline.bench.measure.timing.sampling import Effort

OWN_FAULT = (
    "Batchline itself failed: "  # so begins the reason where no variant is to blame
)


@dataclass(frozen=True)
class Task:
    """One problem (op, scenario, dtype, batch) and the variants to measure on it, in
    turns.

    `entries` are (label, variant's name); a label is the entry's name in the outcomes,
    so a variant may stand twice. Where `configs` has an entry's label, its variant is
    launched with that configuration whatever it would choose. A variant whose one call
    takes over `longest_call_s` is not timed.
    On a GPU, `sustained_s` is how long a large product is called in a row
    (bench.measure.timing.sustained), 0 for not at all. An entry whose label is in `planted`
    takes that share of its time more (bench.measure.worker.preparing). Without `probes` the
    variants are checked on the problem itself only: they have passed their op's
    elsewhere. From `nearby_seed` come the sizes near the scenario's on which they are
    checked; None: nobody can foresee those. `clocks` are names; the first is the one
    whose samples rank, and gets `effort`; the others get `other_effort`.
    """

    op: str
    scenario: str
    dtype: str
    batch: int
    entries: tuple[tuple[str, str], ...]
    clocks: tuple[str, ...]
    effort: Effort
    other_effort: Effort
    warm_up_s: float
    energy_s: float = 0.0
    sustained_s: float = 0.0
    longest_call_s: float = math.inf
    configs: Mapping[str, Mapping] = field(default_factory=dict)
    planted: Mapping[str, float] = field(default_factory=dict)
    probes: bool = True
    nearby_seed: int | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for label, _ in self.entries)

    def without(self, labels: Container[str]) -> "Task | None":
        """The task with no entry of these labels; None if none is left."""
        left = tuple(entry for entry in self.entries if entry[0] not in labels)
        return replace(self, entries=left) if left else None

    def only(self, label: str) -> "Task":
        """The task with this entry alone."""
        return replace(
            self, entries=tuple(entry for entry in self.entries if entry[0] == label)
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one entry: a status and reason from bench.statuses, and where it
    was measured samples and facts.
    """

    status: str
    reason: str = ""
    samples_s: tuple[float, ...] = ()
    iterations: int = 1
    facts: Mapping = field(default_factory=dict)


class WorkerLost(Exception):
    """The worker has ended or can't be believed any more: what became of it, in whose
    step ("" is nobody's) and which.

    `certain`: `whose` was seen to change the process, and not only to have the turn.
    """

    def __init__(
        self, status: str, reason: str, whose: str, step: str, certain: bool = False
    ):
        super().__init__(reason)
        self.status, self.reason, self.whose, self.step, self.certain = (
            status,
            reason,
            whose,
            step,
            certain,
        )

    @property
    def outcome(self) -> Outcome:
        """What it means for the one who is to blame."""
        return Outcome(
            self.status, f"{self.reason} ({self.step})" if self.step else self.reason
        )


class DeviceLost(Exception):
    """The device's context is gone (an illegal access): nothing more can be done in
    this process.
    """
