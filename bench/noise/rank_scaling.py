"""How the time of the mean gradient over all ranks grows with the ranks, from what
`batchline all-reduce` has stored (bench.store.rank_times).

Each of r ranks reduces B samples and sends the sum in a ring (Patarasuk and Yuan 2009):
t(B, r) = call + sample·B + 2(r − 1)·(message + gradient/r). `gradient` is the time in
which a whole gradient goes over the wire. No part is below 0.

Ranks that share cores wait for each other's work. Their times are no part of the law,
and no measurement of scaling.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from batchline.bench.noise.ranks import AllReduce
from batchline.bench.store import rank_times
from batchline.bench.store.files import blamed_on
from batchline.bench.store.rank_times import RankTimes

_ON_PROCESSES = "gloo"  # bench.noise.experiments.local_ranks's, which imports torch
Pair = tuple[str, str]  # a way and the dtype on the wire
At = tuple[int, int]  # how many ranks, and the samples of each


@dataclass(frozen=True)
class ScalingLaw:
    """t(B, r), in seconds; `worst` is the measured time over the law's, less 1, where
    they are the furthest apart.
    """

    call_s: float
    sample_s: float
    message_s: float
    gradient_s: float
    worst: float

    @classmethod
    def of(cls, medians_s: Mapping[At, float]) -> ScalingLaw:
        """Least squares of relative residuals. What can't be told apart is in the
        earlier part: `sample_s` takes two batches, `message_s` two counts of ranks and
        `gradient_s` three.
        """
        times_s = np.array(list(medians_s.values()))
        ranks, batch = np.array(list(medians_s), float).T
        messages = 2 * (ranks - 1)
        counts = len(set(ranks))
        terms = np.stack(
            [
                np.ones_like(ranks),
                batch * (len(set(batch)) > 1),
                messages * (counts > 1),
                messages / ranks * (counts > 2),
            ],
            axis=1,
        )
        design = terms / times_s[:, None]
        scale = np.maximum(design.max(axis=0), np.finfo(float).tiny)
        values, _ = nnls(design / scale, np.ones(len(times_s)))
        values /= scale
        off = times_s / (terms @ values) - 1
        return cls(*map(float, values), float(max(off, key=abs)))

    def seconds(self, batch: float, ranks: int) -> float:
        messages = 2 * (ranks - 1)
        return (
            self.call_s
            + self.sample_s * batch
            + messages * (self.message_s + self.gradient_s / ranks)
        )


@dataclass(frozen=True)
class Scaling:
    """What was measured, by way and wire: the median and the quartiles of the times,
    and the largest error against fp64 by ranks; `wrong` is why one has no time. A way
    that no ranks with a core each have timed has no law.
    """

    times: RankTimes
    medians_s: Mapping[Pair, Mapping[At, float]]
    quartiles_s: Mapping[Pair, Mapping[At, tuple[float, float]]]
    errors: Mapping[Pair, Mapping[int, float]]
    wrong: Mapping[Pair, str]
    laws: Mapping[Pair, ScalingLaw]

    @classmethod
    def of(cls, times: RankTimes) -> Scaling:
        medians_s: dict[Pair, dict[At, float]] = {}
        quartiles_s: dict[Pair, dict[At, tuple[float, float]]] = {}
        errors: dict[Pair, dict[int, float]] = {}
        wrong: dict[Pair, str] = {}
        for row in times.rows:
            pair, at = (row.way, row.wire), (row.ranks, row.batch)
            if row.why_not is not None:
                wrong[pair] = f"{row.ranks} ranks: {row.why_not}"
                continue
            medians_s.setdefault(pair, {})[at] = statistics.median(row.samples_s)
            quartiles_s.setdefault(pair, {})[at] = _quartiles(row.samples_s)
            worst = errors.setdefault(pair, {})
            worst[row.ranks] = max(worst.get(row.ranks, 0.0), row.error)
        laws = {
            pair: ScalingLaw.of(alone)
            for pair, by_place in medians_s.items()
            if (alone := _that_share_nothing(by_place, times))
        }
        return cls(times, medians_s, quartiles_s, errors, wrong, laws)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The counts that were started, from 1 up."""
        return tuple(sorted({row.ranks for row in self.times.rows}))

    @property
    def with_a_core_each(self) -> tuple[int, ...]:
        """Those of them whose ranks have a core, or a GPU, each."""
        return tuple(one for one in self.ranks if not _share_cores(one, self.times))

    def weak(self, pair: Pair, ranks: int, batch: int) -> float | None:
        """The time of one rank over that of so many, each with the same batch: 1 is
        perfect. None where one of them was not measured.
        """
        times_s = self.medians_s[pair]
        if (1, batch) not in times_s or (ranks, batch) not in times_s:
            return None
        return times_s[1, batch] / times_s[ranks, batch]

    def strong(self, pair: Pair, ranks: int, total: int) -> float | None:
        """The time of one rank over that of so many and over their number, with the
        samples of the one dealt among them: 1 is perfect. None where that was not
        measured.
        """
        times_s = self.medians_s[pair]
        at = ranks, total // ranks
        if total % ranks or (1, total) not in times_s or at not in times_s:
            return None
        return times_s[1, total] / times_s[at] / ranks


def _share_cores(ranks: int, times: RankTimes) -> bool:
    return times.backend == _ON_PROCESSES and ranks > times.cores


def _that_share_nothing(
    medians_s: Mapping[At, float], times: RankTimes
) -> dict[At, float]:
    return {
        (ranks, batch): median_s
        for (ranks, batch), median_s in medians_s.items()
        if not _share_cores(ranks, times)
    }


def _quartiles(samples_s: tuple[float, ...]) -> tuple[float, float]:
    """First and third quartile, both the sample itself where there is one."""
    if len(samples_s) < 2:
        return samples_s[0], samples_s[0]
    first, _, third = statistics.quantiles(samples_s, n=4, method="inclusive")
    return first, third


def scaling_in(folder: Path) -> Scaling | None:
    """The scaling that is stored in a run's folder; None where there is none.

    Raises:
        UsageError: if the file can't be read, or is damaged.
    """
    path = rank_times.path_in(folder)
    if not path.exists():
        return None
    with blamed_on(path):
        return Scaling.of(rank_times.load(path))


def all_reduce_of(times: RankTimes) -> AllReduce:
    """The all-reduce alone, for the advisor."""
    return AllReduce.of(
        {
            "backend": times.backend,
            "cores": times.cores,
            "rows": times.all_reduce,
            "why_busy": times.why_busy,
        }
    )
