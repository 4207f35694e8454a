"""The frontier: what a run measured, as pytest-benchmark's JSON, and as the Records
that all judging and showing reads.

Nothing here or right of here imports torch, so a report renders on any machine.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.files import stored_path, write_whole
from batchline.bench.stored_files import blamed_on, read_json

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
THE_MACHINE_WAS = "the machine was "  # busy, throttled: so begins the reason where no variant is to blame
FILE_NAME = "run.json"
_CONFIRMED = (
    "published",
    "again",
    "why_not",
    "unranked",
)  # bench.confirm says what they are
FORMAT = 1  # of our part; runs before it have none
OURS = "batchline"  # the key under which our part stands in pytest-benchmark's document and in its machine_info


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


@dataclass(frozen=True)
class Record:
    """One planned case and what came of it. Times in seconds, sizes in bytes.

    `samples_s` are the raw rounds of the first clock, each the mean of `iterations`
    calls in a row. `facts` is what else was recorded: clock, precision, discarded
    (samples), clocks (each clock's median_s, precision and samples, or why it has
    none), peak_bytes, memory_method, input_bytes, output_bytes, error (relative,
    Frobenius), error_of_tolerance, own_tolerance (the variant's, instead of the op's),
    gives (the first so many outputs; None is all), flops, least_bytes, bound (regime,
    least_s, share), state, energy_j, sustained (bench.measure.sustained), alone (not
    timed in turns with the others: bench.measure.blame), confirmed (bench.confirm). A
    clock that was not sampled in turns says why as its `alone`.
    """

    op: str
    variant: str
    scenario: str
    dtype: str
    batch: int
    status: str
    reason: str = ""
    samples_s: tuple[float, ...] = ()
    iterations: int = 1
    facts: Mapping = field(default_factory=dict)

    @property
    def id(self) -> str:
        return case_id(self.op, self.variant, self.scenario, self.dtype, self.batch)

    @property
    def median_s(self) -> float:
        """Median of the samples; raises statistics.StatisticsError where there are
        none.
        """
        return statistics.median(self.samples_s)

    @property
    def quartiles_s(self) -> tuple[float, float]:
        """First and third quartile of the samples (both the sample itself where there
        is one).
        """
        if len(self.samples_s) < 2:
            return self.median_s, self.median_s
        first, _, third = statistics.quantiles(self.samples_s, n=4, method="inclusive")
        return first, third


@dataclass(frozen=True)
class Run:
    """A whole run: its machine and settings (`about`), every planned case, what the
    compilers said of GPU kernels.
    """

    about: Mapping
    machine: Mapping
    records: tuple[Record, ...]

    def groups(self) -> dict[tuple[str, str, str], list[Record]]:
        """Records by (op, scenario, dtype), in the order of the plan."""
        groups: dict[tuple[str, str, str], list[Record]] = {}
        for record in self.records:
            groups.setdefault((record.op, record.scenario, record.dtype), []).append(
                record
            )
        return groups


def case_id(op: str, variant: str, scenario: str, dtype: str, batch: int) -> str:
    """The stable name of a case; a change of it loses the case's history."""
    return f"{op}/{variant}/{scenario}/{dtype}/B{batch}"


def parse_case_id(name: str) -> dict:
    """The parts of a case id, as Record's first five fields."""
    op, variant, scenario, dtype, batch = name.split("/")
    return {
        "op": op,
        "variant": variant,
        "scenario": scenario,
        "dtype": dtype,
        "batch": int(batch.removeprefix("B")),
    }


def load(folder: Path) -> Run:
    """The run stored in `folder`. Whoever works on it does so inside
    `blamed_on(path_in(folder))`.

    Raises:
        UsageError: if there is no run.json, or it is not one of ours.
    """
    path = path_in(folder)
    try:
        document = read_json(path)
    except OSError as error:
        raise UsageError(
            f"no run in {folder}: {FILE_NAME}: {error.strerror or error}"
        ) from error
    with blamed_on(path):
        return parse(document)


def path_in(folder: Path) -> Path:
    """Where a run's folder has the run, which may be compressed."""
    return stored_path(Path(folder) / FILE_NAME)


def parse(document: Mapping) -> Run:
    """The run in pytest-benchmark's document with our part in it.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: if it is not as Batchline
        writes it.
    """
    about = document[OURS]
    if about.get("format", FORMAT) > FORMAT:
        raise ValueError(
            f"the run is of format {about['format']}, and this Batchline reads {FORMAT}: use a newer one"
        )
    measured = {bench["param"]: bench for bench in document["benchmarks"]}
    confirmed = about.get("confirmed", {})
    records = tuple(
        _record(case | confirmed.get(case["id"], {}), measured.get(case["id"]))
        for case in about["cases"]
    )
    return Run(about, document["machine_info"][OURS], records)


def _record(case: Mapping, bench: Mapping | None) -> Record:
    """One case; what was confirmed of it in a process of its own (bench.confirm), or
    not, is in it.
    """
    parts = parse_case_id(case["id"])
    if case["status"] not in STATUSES:
        raise ValueError(f"{case['id']} has the status {case['status']!r}")
    if (
        case["status"] != MEASURED
    ):  # whatever pytest-benchmark kept of it: a case that failed has no times
        return Record(**parts, status=case["status"], reason=case["reason"])
    stats, facts = bench["stats"], bench["extra_info"]
    if not stats["data"] or not all(0 < sample < math.inf for sample in stats["data"]):
        raise ValueError(f"{case['id']} has a sample that is no time")
    if "published" in case:
        facts = facts | {
            "confirmed": {name: case[name] for name in _CONFIRMED if name in case}
        }
    return Record(
        **parts,
        status=MEASURED,
        samples_s=tuple(stats["data"]),
        iterations=stats["iterations"],
        facts=facts,
    )


def save(folder: Path, document: Mapping) -> Path:
    """Write pytest-benchmark's document, with our part in it, as `folder`/run.json.

    The file appears whole or not at all.
    """
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False)
    return write_whole(Path(folder) / FILE_NAME, text)
