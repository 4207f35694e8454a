"""A survey read back from its record: the points of training over all seeds, and the
advice that follows at each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from batchline.bench.noise.advice import Advice
from batchline.bench.noise.advisor import advise
from batchline.bench.stats.noise_scale import NoiseEstimate, NoiseScale, over_batches


@dataclass(frozen=True)
class Moment:
    """A workload after so many updates: the estimates of each seed there, and of all
    seeds together.

    The interval of `estimate` is that of the batches drawn; how far the seeds are
    apart, `by_seed` shows.
    """

    updates: int
    loss: float
    by_seed: Mapping[int, NoiseEstimate]
    estimate: NoiseEstimate
    layers: Mapping[str, NoiseEstimate]
    tests: Mapping[str, float]
    two_batch_sizes: NoiseScale
    cosines: Mapping[int, tuple[float, ...]]


def moments(workload: Mapping) -> list[Moment]:
    """The points of training in order; the batches of all seeds count alike."""
    return [
        _moment(updates, points) for updates, points in by_updates(workload).items()
    ]


def middle(workload: Mapping) -> Moment:
    """The middle point of training, for which the one advice is given: the noise scale
    grows from start to end.
    """
    in_order = moments(workload)
    return in_order[len(in_order) // 2]


def advice(
    workload: Mapping,
    moment: Moment,
    current_batch: int | None = None,
    cost_cap: float | None = None,
) -> Advice:
    """The batch that the noise at that point of training, the step times and the memory
    lead to.

    Raises:
        ValueError: as bench.noise.advisor.advise; and where its steps could not be
        timed.
    """
    if workload.get("why_not_timed"):
        raise ValueError(f"its steps could not be timed: {workload['why_not_timed']}")
    return advise(
        workload["steps"],
        moment.estimate.to_json(),
        workload["limit_bytes"],
        current_batch=(
            workload["train_batch"] if current_batch is None else current_batch
        ),
        cost_cap=cost_cap,
    )


def by_updates(workload: Mapping) -> dict[int, list[Mapping]]:
    """The stored points of all seeds, by how far training was."""
    grouped: dict[int, list[Mapping]] = {}
    for point in sorted(workload.get("points", ()), key=lambda point: point["updates"]):
        grouped.setdefault(point["updates"], []).append(point)
    return grouped


def estimate_of(points: Sequence[Mapping]) -> NoiseEstimate:
    """The estimate over the batches of all the points."""
    if len(points) == 1:
        return NoiseEstimate.from_json(points[0]["estimate"])
    return _pooled([point["estimate"] for point in points])


def cosines_of(points: Sequence[Mapping]) -> dict[int, tuple[float, ...]]:
    """The cosines of all the points, by batch."""
    by_batch: dict[int, list[float]] = {}
    for point in points:
        for entry in point["cosines"]:
            by_batch.setdefault(entry["batch"], []).extend(entry["cosines"])
    return {batch: tuple(cosines) for batch, cosines in sorted(by_batch.items())}


def _moment(updates: int, points: Sequence[Mapping]) -> Moment:
    count = len(points)
    tests = {
        name: sum(point["tests"][name] for point in points) / count
        for name in points[0]["tests"]
    }
    two = [point["two_batch_sizes"] for point in points]
    return Moment(
        updates,
        sum(point["loss"] for point in points) / count,
        {point["seed"]: NoiseEstimate.from_json(point["estimate"]) for point in points},
        estimate_of(points),
        {
            layer: _pooled([point["layers"][layer] for point in points])
            for layer in points[0]["layers"]
        },
        tests,
        NoiseScale(
            *(sum(scale[part] for scale in two) / count for part in ("trace", "square"))
        ),
        cosines_of(points),
    )


def _pooled(stored: Sequence[Mapping]) -> NoiseEstimate:
    pairs = [NoiseScale(*pair) for estimate in stored for pair in estimate["pairs"]]
    return over_batches(pairs, stored[0]["batch"])
