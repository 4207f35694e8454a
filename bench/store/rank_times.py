"""The mean gradient over ranks as `batchline all-reduce` has timed it, stored as a file of
its own: FILE_NAME where it lies in the folder of a run. Imports nothing that measures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.store import formats
from batchline.bench.store.files import (
    blamed_on,
    read_json,
    stored_path,
    write_json,
)
from batchline.bench.store.records import Row

FILE_NAME = "ranks.json"
_MOST = 2**53  # of a count: the largest that a float has exactly


@dataclass(frozen=True)
class WayTimes(Row):
    """One way of having the mean on so many ranks, each with `batch` samples, and
    `wire` the dtype that is sent.

    `samples_s` are of the slowest rank; `error` is relative (Frobenius), against fp64.
    A way that is wrong has `why_not` in place of both.
    """

    way: str
    wire: str
    ranks: int
    batch: int
    samples_s: tuple[float, ...] = ()
    error: float | None = None
    why_not: str | None = None


@dataclass(frozen=True)
class AllReduceTimes(Row):
    """An all-reduce alone, of so many bytes over so many ranks."""

    ranks: int
    bytes: int
    samples_s: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class RankTimes:
    """All that one call of `batchline all-reduce` has measured.

    `started` is ISO 8601, "" in files of before; `machine` is as
    bench.measure.machine.environment.machine describes it. `cores` are those that
    gloo's ranks had between them; `parameters` is P, `batches` the samples of a rank.
    `why_busy`: others had too much of the cores meanwhile, None if not.
    """

    machine: Mapping
    backend: str
    cores: int
    parameters: int
    bucket_bytes: int
    batches: tuple[int, ...]
    rows: tuple[WayTimes, ...]
    all_reduce: tuple[AllReduceTimes, ...]
    started: str = ""
    why_busy: str | None = None


def load(path: Path) -> RankTimes:
    """What is stored in a file, or as FILE_NAME in a folder. Whoever works on it does
    so inside `blamed_on` of it.

    Raises:
        UsageError: if there is none, or it is not one of ours.
    """
    path = stored_path(path / FILE_NAME) if path.is_dir() else path
    try:
        document = read_json(path)
    except OSError as error:
        raise UsageError(
            f"can't read {path} ({error.strerror}): `batchline all-reduce --to` writes it"
        ) from error
    with blamed_on(path):
        present = formats.RANK_TIMES.upgrade(document, path)
        present.pop("format", None)
        times = formats.from_json(RankTimes, present)
        _require_possible(times)
        return times


def save(path: Path, times: RankTimes) -> Path:
    """Write the file, which appears whole or not at all."""
    document = {"format": formats.RANK_TIMES.number, **formats.to_json(times)}
    return write_json(path, document)


def path_in(folder: Path) -> Path:
    """Where a run's folder has it, which may be compressed."""
    return stored_path(folder / FILE_NAME)


def _require_possible(times: RankTimes) -> None:
    """Raise ValueError or KeyError where a part can't have been measured."""
    times.machine["device_name"].strip()
    for count in _counts(times):
        if not (isinstance(count, int) and 1 <= count <= _MOST):
            raise ValueError(f"{count!r:.80} is no count")
    for row in (*times.rows, *times.all_reduce):
        if not all(0 < sample < math.inf for sample in row.samples_s):
            raise ValueError(f"a sample of {row.ranks} ranks is no time")
    for row in times.rows:
        if row.why_not is None and not (row.samples_s and 0 <= row.error < math.inf):
            raise ValueError(f"{row.way} was right, and has no time or no error")


def _counts(times: RankTimes) -> Iterator[int]:
    yield from (times.cores, times.parameters, times.bucket_bytes, *times.batches)
    for row in times.rows:
        yield from (row.ranks, row.batch)
    for row in times.all_reduce:
        yield from (row.ranks, row.bytes)
