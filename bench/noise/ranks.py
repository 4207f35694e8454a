"""How many ranks are worth having, each with a device and a batch of its own, from the
step times of one and the time of an all-reduce.

On r ranks with b samples each an update takes t(b) + a_r and has the noise of B = r·b,
so that T = (t(b) + a_r)·(1 + φ/(r·b)): the problem of one rank with a step that is a_r
longer and the noise scale φ/r.

a_r of a gradient of `size` bytes is straight between the sizes that were timed, for
each count that was. For larger counts it is a ring's (Patarasuk and Yuan 2009): 2(r − 1)
messages of size/r bytes, each a latency and size/r over a bandwidth, fitted to all that
was timed; and no less than at the largest count that was.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import nnls

from batchline.bench.noise import step_time
from batchline.bench.noise.step_time import Curve, signal_weight

WORTH = 1.25  # times as fast must a doubling of the ranks make training


@dataclass(frozen=True)
class AllReduce:
    """Seconds of an all-reduce: `curves` over the bytes, for each count that was timed,
    and (latency_s, seconds per byte) of one message of a `ring`. `cores`: of the machine
    that all ranks were on; `why_busy`: others had too much of them, None if not.
    """

    backend: str
    cores: int
    curves: Mapping[int, Curve]
    ring: tuple[float, float]
    most_bytes: int
    why_busy: str | None = None

    @classmethod
    def of(cls, measured: Mapping) -> AllReduce:
        """From what bench.noise.experiments.all_reduce.measure gives."""
        medians: dict[int, dict[int, float]] = {}
        for row in measured["rows"]:
            of_count = medians.setdefault(row["ranks"], {})
            of_count[row["bytes"]] = statistics.median(row["samples_s"])
        curves = {count: _curve(of_count) for count, of_count in medians.items()}
        return cls(
            measured["backend"],
            measured["cores"],
            curves,
            _ring(medians),
            max(row["bytes"] for row in measured["rows"]),
            measured.get("why_busy"),
        )

    def is_timed(self, ranks: int) -> bool:
        """Whether this count was timed; one rank needs none."""
        return ranks == 1 or ranks in self.curves

    def seconds(self, ranks: int, size: float) -> float:
        """Of `size` bytes over so many ranks."""
        if ranks == 1:
            return 0.0
        if ranks in self.curves:
            return self.curves[ranks].step_s(size)
        latency_s, byte_s = self.ring
        modelled_s = 2 * (ranks - 1) * (latency_s + size / ranks * byte_s)
        fewer = [count for count in self.curves if count < ranks]
        least_s = self.seconds(max(fewer), size) if fewer else 0.0
        return max(modelled_s, least_s)

    @property
    def laws(self) -> tuple[str, ...]:
        """ "2 ranks: 252 µs + bytes/(1.8 GB/s)", one for each count that was timed."""
        return tuple(
            f"{ranks} ranks: {curve.alpha_s * 1e6:.0f} µs"
            + (f" + bytes/({1e-9 / curve.beta_s:.3g} GB/s)" if curve.beta_s else "")
            for ranks, curve in sorted(self.curves.items())
        )


def _curve(medians: Mapping[int, float]) -> Curve:
    sizes = np.array(sorted(medians), float)
    times = np.array([medians[size] for size in sorted(medians)])
    if len(sizes) == 1:  # as if it did not depend on the size
        sizes, times = np.append(sizes, 2 * sizes), np.append(times, times)
    return step_time.curve(sizes, times)


def _ring(medians: Mapping[int, Mapping[int, float]]) -> tuple[float, float]:
    """Least squares of relative residuals, neither part below 0."""
    rows = []
    for ranks, of_count in medians.items():
        for size, time_s in of_count.items():
            messages = 2 * (ranks - 1)
            rows.append((messages / time_s, messages * size / ranks / time_s))
    design = np.array(rows)
    scale = design.max(axis=0)
    values, _ = nnls(design / scale, np.ones(len(rows)))
    latency_s, byte_s = values / scale
    return float(latency_s), float(byte_s)


@dataclass(frozen=True)
class RankCount:
    """So many ranks at their best batch; `speed` is the time to a loss of one rank over
    theirs, `efficiency` that over the ranks. `is_timed`: whether their all-reduce was.
    """

    ranks: int
    is_timed: bool
    all_reduce_s: float
    rank_batch: int
    step_s: float
    speed: float

    @property
    def batch(self) -> int:
        return self.ranks * self.rank_batch

    @property
    def efficiency(self) -> float:
        return self.speed / self.ranks


@dataclass(frozen=True)
class Ranks:
    """The counts from 1 up, and the largest that is `worth` having: each doubling up to
    it makes training at least WORTH times as fast.
    """

    all_reduce: AllReduce
    noise_scale: float
    gradient_bytes: int
    counts: tuple[RankCount, ...]

    @property
    def worth(self) -> int:
        best = self.counts[0]
        for count in self.counts[1:]:
            doublings = math.log2(count.ranks / best.ranks)
            if count.speed / best.speed < WORTH**doublings:
                break
            best = count
        return best.ranks

    @property
    def sentences(self) -> tuple[str, ...]:
        at = next(count for count in self.counts if count.ranks == self.worth)
        best = (
            "One rank is as many as is worth having"
            if at.ranks == 1
            else f"{at.ranks} ranks are worth having, at batch {at.batch:,} ({at.rank_batch:,} each): they are "
            f"predicted to train {at.speed:.2f}x as fast as one"
        )
        modelled = [count.ranks for count in self.counts if not count.is_timed]
        limit = (
            f"A doubling is worth it where it makes training {WORTH:g}x as fast or faster."
            if at is not self.counts[-1]
            else "More were not looked at."
        )
        beyond = (
            f"The all-reduce over {', '.join(map(str, modelled))} ranks is not measured but modelled, as a ring's."
            if modelled
            else ""
        )
        return tuple(filter(None, (f"{best}.", limit, beyond)))


def advise_ranks(
    curve: Curve,
    noise_scale: float,
    all_reduce: AllReduce,
    gradient_bytes: int,
    most_ranks: int,
    most: float = math.inf,
    cap: float = math.inf,
) -> Ranks:
    """The counts 1, 2, 4, … and `most_ranks`.

    Args:
        curve: t(b) of one rank.
        noise_scale: φ, finite and above 0.
        most: the largest batch that fits on one rank.
        cap: the largest batch of all ranks together.
    """
    powers = [2**power for power in range(most_ranks.bit_length())]
    counts: list[RankCount] = []
    one_s = None
    for ranks in sorted({*powers, most_ranks}):
        if ranks > cap:
            break
        reduce_s = all_reduce.seconds(ranks, gradient_bytes)
        longer = replace(curve, intercepts=curve.intercepts + reduce_s)
        of_one = noise_scale / ranks
        batch = float(longer.fastest(signal_weight(of_one), min(most, cap // ranks)))
        if not math.isfinite(batch):
            break
        time_s = longer.step_s(batch) * (1 + of_one / batch)
        one_s = one_s or time_s
        counts.append(
            RankCount(
                ranks,
                all_reduce.is_timed(ranks),
                reduce_s,
                int(batch),
                longer.step_s(batch),
                one_s / time_s,
            )
        )
    if not counts:
        raise ValueError(
            "no number of ranks can be advised: the time to a loss falls as far as the batch grows"
        )
    return Ranks(all_reduce, noise_scale, gradient_bytes, tuple(counts))
