"""The time of an all-reduce over ranks, by torch.distributed: gloo between processes of
this machine, or nccl where it has several GPUs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import distributed

from batchline.bench.noise.experiments import local_ranks

_COUNTS = (2, 4)  # of gloo's ranks: more than these share the cores of most machines
_SMALLEST_BYTES = 4096  # whose time is nearly all latency


def measure(gradient_bytes: int, most_ranks: int, device: str) -> dict:
    """backend; cores, that the ranks have between them; rows: [{"ranks", "bytes", "samples_s"}], of the
    gradient's size and of smaller ones.

    Raises:
        UsageError: where a rank fails or ends, or they are not done in time.
    """
    backend, most = local_ranks.backend_of(device)
    counts = [2**power for power in range(1, most.bit_length())] if most else _COUNTS
    counts = [count for count in counts if count <= max(2, most_ranks)]
    sizes = sizes_to(gradient_bytes)
    rows = local_ranks.run(times, backend, max(counts), tuple(counts), sizes)
    return {"backend": backend, "cores": local_ranks.cores(), "rows": rows}


def sizes_to(gradient_bytes: int) -> tuple[int, ...]:
    """The sizes in bytes that are timed for a gradient."""
    parts = 1, 4, 16, 2**30
    return tuple(
        sorted({max(_SMALLEST_BYTES, gradient_bytes // part) for part in parts})
    )


def times(
    rank: int, device: str, counts: Sequence[int], sizes: Sequence[int]
) -> list[dict]:
    """One rank's part: rows as `measure` has them."""
    return [
        {
            "ranks": count,
            "bytes": size,
            "samples_s": _samples_s(size, group, device),
        }
        for count, group in local_ranks.groups(rank, counts)
        for size in sizes
    ]


def _samples_s(size: int, group, device: str) -> list[float]:
    gradient = torch.zeros(size // 4, device=device)
    works = {"all-reduce": lambda: distributed.all_reduce(gradient, group=group)}
    return local_ranks.samples_s(works, group, device)["all-reduce"]
