"""What Triton's proton measured, out of its profile: the time of each kernel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

_TIME = "time (ns)"
_CALLS = "count"


@dataclass(frozen=True)
class KernelTime:
    """A kernel's calls, their seconds in all, and its share of all kernels' time."""

    name: str
    calls: int
    seconds: float
    share: float


def kernel_times(profile: Sequence[Mapping]) -> list[KernelTime]:
    """The leaves of a hatchet profile (a list of trees, and the devices last) by name,
    the slowest first.
    """
    totals: dict[str, list[float]] = {}
    for tree in profile:
        for name, calls, nanoseconds in _leaves(tree):
            total_of_one = totals.setdefault(name, [0, 0.0])
            total_of_one[0] += calls
            total_of_one[1] += nanoseconds
    total = sum(nanoseconds for _, nanoseconds in totals.values()) or 1.0
    times = [
        KernelTime(name, int(calls), nanoseconds * 1e-9, nanoseconds / total)
        for name, (calls, nanoseconds) in totals.items()
    ]
    return sorted(times, key=lambda one: -one.seconds)


def _leaves(node: Mapping) -> Iterator[tuple[str, float, float]]:
    children = node.get("children", ())
    metrics = node.get("metrics", {})
    if not children and metrics.get(_TIME):
        yield node["frame"]["name"], metrics.get(_CALLS, 1), metrics[_TIME]
    for child in children:
        yield from _leaves(child)
