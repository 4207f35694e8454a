"""A run as flat rows: one for each case and clock, and one for each sample. COLUMNS says
what a column holds, and in which unit.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.stats import roofline
from batchline.bench.stats.intervals import median_precision
from batchline.bench.statuses import MEASURED

# A path in an error's message: of a user's home, or of anything else that is absolute.
_PATH = re.compile(r"(?<![\w.])(?:~|/)[\w.+-]*(?:/[\w.+-]+)+/?")


@dataclass(frozen=True)
class Column:
    """`kind` is str, int, float or bool; any value may be None."""

    name: str
    kind: type
    what: str


CASES = (
    Column("run", str, "the run's folder, without what it lies in"),
    Column("started", str, "when the run began, ISO 8601"),
    Column("profile", str, "smoke, quick, full or evidence"),
    Column("case", str, "the case's id: op/variant/scenario/dtype/batch"),
    Column("op", str, "the operation"),
    Column("variant", str, "the kernel, by its function's name"),
    Column("scenario", str, "the sizes but for the batch, by their name"),
    Column("dtype", str, "of the inputs"),
    Column("batch", int, "samples"),
    Column("status", str, "what became of the case"),
    Column("reason", str, "why it was not measured"),
    Column("backend", str, "torch, triton, numba_cuda, numba_cpu or a library"),
    Column("is_baseline", bool, "whether the others are compared with it"),
    Column("clock", str, "how it was timed; empty where it was not"),
    Column("ranks", bool, "whether variants are ranked by this clock"),
    Column("median_s", float, "seconds of a call, the median of the samples"),
    Column("low_s", float, "seconds, the lower end of the median's 95% interval"),
    Column("high_s", float, "seconds, its upper end"),
    Column("samples", int, "how many"),
    Column("iterations", int, "calls in a sample, which is their mean"),
    Column("peak_bytes", int, "of memory, the most during a call, without the inputs"),
    Column("input_bytes", int, "of the inputs"),
    Column("output_bytes", int, "of the outputs"),
    Column("least_bytes", int, "that any way of doing it reads and writes"),
    Column("flops", float, "operations, by the op's definition"),
    Column("regime", str, "the ceiling that binds: launch, cache, memory or compute"),
    Column("share", float, "of that ceiling, 1 is all of it"),
    Column("error", float, "against fp64, relative, of the whole output (Frobenius)"),
    Column("error_of_tolerance", float, "the worst element's, 1 is just allowed"),
    Column("config", str, "the tunable's choice, as JSON"),
    Column("device", str, "cpu or cuda"),
    Column("device_name", str, "of the GPU, or of the processor"),
    Column("rank", int, "whose device measured it, in a run of several"),
    Column("commit", str, "of the code that was measured"),
    Column("dirty", bool, "whether it had changes that are in no commit"),
    Column("torch", str, "PyTorch's version"),
    Column("triton", str, "Triton's"),
    Column("numba", str, "Numba's"),
    Column("host", str, "the machine's name on its network, where it was asked for"),
)
SAMPLES = (
    Column("run", str, "the run's folder, without what it lies in"),
    Column("case", str, "the case's id"),
    Column("clock", str, "how it was timed: the clock that ranks"),
    Column("sample", int, "its number, from 0, in the order of measuring"),
    Column("time_s", float, "seconds of a call"),
)


def case_rows(run, name: str, with_host: bool = False) -> Iterator[dict]:
    """A row for each case of the run (a bench.store.records.Run) and each clock that it
    was timed by; one without a clock for a case that was not timed.

    Args:
        name: the run's.
        with_host: also with the machine's name on its network, and with paths as they
        are in reasons.
    """
    about = _about_run(run, name, with_host)
    for record in run.records:
        case = _about_case(record, with_host)
        clocks = _clocks(record)
        for clock in clocks or ("",):
            row = about | case | (_timed(run, record, clock) if clock else {})
            yield {column.name: row.get(column.name) for column in CASES}


def sample_rows(run, name: str) -> Iterator[dict]:
    """A row for each sample of the clock that ranks; the others' are not stored."""
    for record in run.records:
        for number, time_s in enumerate(record.samples_s):
            yield {
                "run": name,
                "case": record.id,
                "clock": record.facts.get("clock"),
                "sample": number,
                "time_s": time_s,
            }


def _about_run(run, name: str, with_host: bool) -> dict:
    machine = run.machine
    revision, versions = machine.get("revision") or {}, machine.get("versions") or {}
    host = (run.benchmark_header.get("machine_info") or {}).get("node")
    return {
        "run": name,
        "started": run.started,
        "profile": run.plan.profile,
        "device": machine.get("device"),
        "device_name": machine.get("device_name"),
        "commit": revision.get("commit"),
        "dirty": revision.get("dirty"),
        "host": host if with_host else None,
        **{library: versions.get(library) for library in ("torch", "triton", "numba")},
    }


def _about_case(record, with_host: bool) -> dict:
    facts = record.facts
    config = facts.get("config")
    reason = record.reason if with_host else without_paths(record.reason)
    own = ("op", "variant", "scenario", "dtype", "batch", "status", "rank")
    kept = (
        "backend",
        "is_baseline",
        "peak_bytes",
        "input_bytes",
        "output_bytes",
        "least_bytes",
        "flops",
        "error",
        "error_of_tolerance",
    )
    return {
        "case": record.id,
        "reason": reason or None,
        "config": json.dumps(config, sort_keys=True) if config else None,
        **{name: getattr(record, name) for name in own},
        **{name: facts.get(name) for name in kept},
    }


def without_paths(text: str) -> str:
    """The text with "…/name" for each absolute path."""
    return _PATH.sub(lambda found: f"…/{found[0].rstrip('/').rpartition('/')[2]}", text)


def _clocks(record) -> Mapping[str, Mapping]:
    """What each clock read that took samples."""
    clocks = record.facts.get("clocks") or {}
    return {name: told for name, told in clocks.items() if "median_s" in told}


def _timed(run, record, clock: str) -> dict:
    told = _clocks(record)[clock]
    median_s, precision = told["median_s"], told.get("precision")
    ranks = record.status == MEASURED and clock == record.facts.get("clock")
    low_s, high_s = _interval(record.samples_s if ranks else (), median_s, precision)
    bound = {}
    if run.ceilings and record.status == MEASURED:
        binding = roofline.bound(
            record.facts, record.dtype, clock, median_s, run.ceilings
        )
        bound = {"regime": binding.regime, "share": binding.share}
    return bound | {
        "clock": clock,
        "ranks": ranks,
        "median_s": median_s,
        "low_s": low_s,
        "high_s": high_s,
        "samples": told.get("samples"),
        "iterations": told.get("iterations"),
    }


def _interval(
    samples: Sequence[float], median_s: float, precision: float | None
) -> tuple[float | None, float | None]:
    """The median's 95% interval, about it; (None, None) where the samples are too few."""
    if samples:
        median_s, precision = statistics.median(samples), median_precision(samples)
    if precision is None or precision == float("inf"):
        return None, None
    return median_s * (1 - precision), median_s * (1 + precision)
