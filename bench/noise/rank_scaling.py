"""How the time of the mean gradient over all ranks grows with the ranks, from what
bench.noise.experiments.mean_over_ranks has measured.

Each of r ranks reduces B samples and sends the sum in a ring (Patarasuk and Yuan 2009):
t(B, r) = call + sample·B + 2(r − 1)·(message + gradient/r). `gradient` is the time in
which a whole gradient goes over the wire. No part is below 0.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from batchline.bench.errors import UsageError

FORMAT = 1
Pair = tuple[str, str]  # a way and the dtype on the wire


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
    def of(cls, medians_s: Mapping[tuple[int, int], float]) -> ScalingLaw:
        """Least squares of relative residuals. `medians_s`: by ranks and batch."""
        places = np.array(list(medians_s), float)
        times_s = np.array(list(medians_s.values()))
        ranks, batch = places.T
        messages = 2 * (ranks - 1)
        terms = np.stack(
            [np.ones_like(ranks), batch, messages, messages / ranks], axis=1
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
    """What was measured, by way and wire: `medians_s` by ranks and a rank's batch,
    `errors` the largest against fp64 by ranks, `wrong` why one has no time.
    """

    backend: str
    cores: int
    parameters: int
    bucket_bytes: int
    batches: tuple[int, ...]
    ranks: tuple[int, ...]
    medians_s: Mapping[Pair, Mapping[tuple[int, int], float]]
    errors: Mapping[Pair, Mapping[int, float]]
    wrong: Mapping[Pair, str]
    why_busy: str | None = None

    @classmethod
    def of(cls, measured: Mapping) -> Scaling:
        """From what bench.noise.experiments.mean_over_ranks.measure gives."""
        medians_s: dict[Pair, dict[tuple[int, int], float]] = {}
        errors: dict[Pair, dict[int, float]] = {}
        wrong: dict[Pair, str] = {}
        for row in measured["rows"]:
            pair, ranks = (row["way"], row["wire"]), row["ranks"]
            if "why_not" in row:
                wrong[pair] = f"{ranks} ranks: {row['why_not']}"
                continue
            median_s = statistics.median(row["samples_s"])
            medians_s.setdefault(pair, {})[ranks, row["batch"]] = median_s
            worst = errors.setdefault(pair, {})
            worst[ranks] = max(worst.get(ranks, 0.0), row["error"])
        return cls(
            measured["backend"],
            measured["cores"],
            measured["parameters"],
            measured["bucket_bytes"],
            tuple(measured["batches"]),
            tuple(sorted({row["ranks"] for row in measured["rows"]})),
            medians_s,
            errors,
            wrong,
            measured.get("why_busy"),
        )

    def law(self, pair: Pair) -> ScalingLaw:
        return ScalingLaw.of(self.medians_s[pair])

    def weak(self, pair: Pair, ranks: int, batch: int) -> float | None:
        """The time of one rank over that of so many, each with the same batch: 1 is
        perfect. None where one of them was not measured.
        """
        times_s = self.medians_s[pair]
        if (1, batch) not in times_s or (ranks, batch) not in times_s:
            return None
        return times_s[1, batch] / times_s[ranks, batch]

    def strong(self, pair: Pair, ranks: int, total: int) -> float | None:
        """How many times as fast so many ranks are as one, with the samples of one
        dealt among them: `ranks` is perfect. None where that was not measured.
        """
        times_s = self.medians_s[pair]
        place = ranks, total // ranks
        if total % ranks or (1, total) not in times_s or place not in times_s:
            return None
        return times_s[1, total] / times_s[place]


def all_reduce_of(document: Mapping) -> dict:
    """What bench.noise.ranks.AllReduce reads, of a stored measurement.

    Raises:
        UsageError: if it is of another format.
    """
    if document.get("format") != FORMAT:
        raise UsageError(
            f"it is of format {document.get('format')}, and this Batchline reads {FORMAT}: "
            "run `batchline all-reduce` again"
        )
    return {
        "backend": document["backend"],
        "cores": document["cores"],
        "rows": document["all_reduce"],
        "why_busy": document["why_busy"],
    }
