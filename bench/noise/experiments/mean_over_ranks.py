"""The mean gradient over the samples of all ranks, in several ways: each rank holds
g[B,P] in fp32, with the same B, and gets ḡ[P] in fp32.

A way is a plain function `way(g, wire, group)`: `wire` is the dtype in which the ranks
send what they have summed up. It is checked against fp64 on every group of ranks before
it is timed there, and what is wrong has no time.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import distributed

from batchline.bench.noise.experiments import all_reduce, local_ranks
from batchline.kernels.elements import subnormal_step, unit_roundoff
from batchline.kernels.grad_reduce import grad_reduce

BUCKET_BYTES = 2**18  # a quarter of the gradient of a 512x512 layer
_LONGEST_S = 900  # for all of it
_FP32 = unit_roundoff(torch.float32)
Pair = tuple[str, str]  # a way and its wire
Way = Callable[[torch.Tensor, torch.dtype, object], torch.Tensor]


def torch_one_message(g: torch.Tensor, wire: torch.dtype, group) -> torch.Tensor:
    """torch.mean over the rank's samples, then one all_reduce of it (the baseline)."""
    local = g.mean(0).to(wire)
    if local.numel():
        distributed.all_reduce(local, group=group)
    return local.float() / distributed.get_world_size(group)


def own_one_message(g: torch.Tensor, wire: torch.dtype, group) -> torch.Tensor:
    """grad_reduce's fastest variant over the rank's samples, then one all_reduce."""
    local = grad_reduce(g).to(wire)
    if local.numel():
        distributed.all_reduce(local, group=group)
    return local.float() / distributed.get_world_size(group)


def own_bucketed(g: torch.Tensor, wire: torch.dtype, group) -> torch.Tensor:
    """A bucket of parameters is sent while grad_reduce's fastest variant reduces the
    next one.
    """
    total = torch.empty(g.shape[1], dtype=wire, device=g.device)
    step = BUCKET_BYTES // wire.itemsize
    under_way = []
    for start in range(0, len(total), step):
        bucket = total[start : start + step]
        bucket.copy_(grad_reduce(g[:, start : start + step]))
        under_way.append(distributed.all_reduce(bucket, group=group, async_op=True))
    for one in under_way:
        one.wait()
    return total.float() / distributed.get_world_size(group)


WAYS: Mapping[str, Way] = MappingProxyType(
    {way.__name__: way for way in (torch_one_message, own_one_message, own_bucketed)}
)


PAIRS: tuple[Pair, ...] = tuple(
    (way, wire) for wire in ("float32", "bfloat16") for way in WAYS
)


def _strided(g: torch.Tensor) -> torch.Tensor:
    """The same numbers, every second one of a wider tensor."""
    return g.repeat_interleave(2, dim=1)[:, ::2]


def _transposed(g: torch.Tensor) -> torch.Tensor:
    return g.t().contiguous().t()


_BUCKET = BUCKET_BYTES // 4  # parameters in fp32, and half of those that bf16 has
PROBES = MappingProxyType(
    {
        "ragged last bucket": (3, 2 * _BUCKET + 7, None),
        "less than a bucket": (5, 261, None),
        "one sample": (1, _BUCKET, None),
        "one parameter": (4, 1, None),
        "no parameter": (4, 0, None),
        "strided": (4, _BUCKET + 1, _strided),
        "transposed": (4, 4099, _transposed),
    }
)
"""(B, P, how it lies in memory), of each rank."""


def mean_of_all(g: torch.Tensor, group) -> torch.Tensor:
    """The mean[P] over the samples of all ranks in fp64, of g[B,P] of each of them."""
    return _sum_of_ranks(_mean(g), group) / distributed.get_world_size(group)


def tolerance(g: torch.Tensor, wire: torch.dtype, group) -> torch.Tensor:
    """The error[P] that correct arithmetic may have, of g[B,P] of each rank, in fp64.

    A local mean in fp32 in any order is off by (B+2)·u₃₂·mean|g| (Higham, Accuracy and
    Stability of Numerical Algorithms, 2nd ed., §4.2). Rounding R of them to the wire's
    dtype and adding them in any order is off by R·u·Σ|m_r|; then 1/R.
    """
    ranks = distributed.get_world_size(group)
    local = (len(g) + 2) * _FP32 * _mean(g, torch.abs)
    sent = _mean(g).abs() + local
    off = _sum_of_ranks(local + ranks * unit_roundoff(wire) * sent, group) / ranks
    sent = _sum_of_ranks(sent, group) / ranks
    return 1.01 * (off + 2 * _FP32 * sent) + ranks * subnormal_step(wire)


def _mean(
    g: torch.Tensor, of: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.double
) -> torch.Tensor:
    """The mean[P] of g[B,P] in fp64, a sample at a time: a copy of g in fp64 would be
    twice its size.
    """
    total = torch.zeros(g.shape[1], dtype=torch.float64, device=g.device)
    for sample in g:
        total += of(sample)
    return total / len(g)


def _sum_of_ranks(values: torch.Tensor, group) -> torch.Tensor:
    """values[P] of each rank, summed."""
    total = values.clone()
    if total.numel():
        distributed.all_reduce(total, group=group)
    return total


def why_wrong(way: Way, wire: torch.dtype, group, device: str) -> str | None:
    """What a way gets wrong on a group of ranks, on any of PROBES; None if nothing.
    All ranks get the same answer.
    """
    for name, (batch, parameters, laid) in PROBES.items():
        g = _draw(batch, parameters, group, device)
        allowed = tolerance(g, wire, group)
        mean = way(laid(g) if laid else g, wire, group)
        why = _difference(mean, mean_of_all(g, group), allowed)
        worst = torch.tensor([float(why is not None)], device=device)
        distributed.all_reduce(worst, group=group)
        if worst.item():
            return f"on {name}: {why or 'another rank differs'}"
    return None


def _difference(
    mean: torch.Tensor, expected: torch.Tensor, allowed: torch.Tensor
) -> str | None:
    if mean.shape != expected.shape or mean.dtype != torch.float32:
        return f"it is {mean.dtype} of shape {tuple(mean.shape)}"
    share = (mean.double() - expected).abs() / allowed
    if share.numel() and not (worst := share.max().item()) <= 1:
        return f"off by {worst:.3g} times what rounding can do"
    return None


def _draw(batch: int, parameters: int, group, device: str) -> torch.Tensor:
    """g[B,P] of this rank: other numbers on each rank."""
    draw = torch.Generator(device).manual_seed(distributed.get_rank(group))
    return torch.randn(batch, parameters, generator=draw, device=device)


def measure(
    parameters: int, batches: Sequence[int], most_ranks: int, device: str
) -> dict:
    """Every way on 1, 2, 4, … ranks, at each batch of a rank.

    backend; cores, that gloo's ranks have between them; parameters; bucket_bytes; batches; rows: [{"way",
    "wire", "ranks", "batch", "samples_s", "error"}] or with "why_not" for the last two
    (error: relative, Frobenius, against fp64); all_reduce: rows as
    bench.noise.experiments.all_reduce has them, of this gradient's size and below.

    Raises:
        UsageError: where the ranks' memory is not there, a rank fails or ends, or they
        are not done in time.
    """
    backend, most = local_ranks.backend_of(device)
    most = min(most, most_ranks) if most else most_ranks
    counts = tuple(2**power for power in range(most.bit_length()))
    if backend == local_ranks.GLOO:
        local_ranks.require_memory(counts[-1], 4 * parameters * max(batches))
    rows, reduces = local_ranks.run(
        _times,
        backend,
        counts[-1],
        counts,
        parameters,
        tuple(batches),
        longest_s=_LONGEST_S,
    )
    return {
        "backend": backend,
        "cores": local_ranks.cores(),
        "parameters": parameters,
        "bucket_bytes": BUCKET_BYTES,
        "batches": list(batches),
        "rows": rows,
        "all_reduce": reduces,
    }


def _times(
    rank: int,
    device: str,
    counts: Sequence[int],
    parameters: int,
    batches: Sequence[int],
) -> tuple[list[dict], list[dict]]:
    """One rank's part: the rows of the ways, and those of the all-reduce alone."""
    rows = []
    for _, group in local_ranks.groups(rank, counts):
        g = _draw(max(batches), parameters, group, device)
        wrong = {
            pair: why_wrong(WAYS[pair[0]], getattr(torch, pair[1]), group, device)
            for pair in PAIRS
        }
        for batch in batches:
            rows += _rows(g[:batch], group, wrong)
    sizes = all_reduce.sizes_to(4 * parameters)
    return rows, all_reduce.times(rank, device, counts[1:], sizes)


def _rows(g: torch.Tensor, group, wrong: Mapping[Pair, str | None]) -> list[dict]:
    """The rows of all ways on one group, for this g[B,P] of the rank. Only those that
    are not `wrong` are timed, in turns.
    """
    device = g.device.type
    works = {
        (way, wire): functools.partial(WAYS[way], g, getattr(torch, wire), group)
        for way, wire in PAIRS
        if not wrong[way, wire]
    }
    taken_s = local_ranks.samples_s(works, group, device)
    expected = mean_of_all(g, group)
    rows = []
    for pair in PAIRS:
        row = {
            "way": pair[0],
            "wire": pair[1],
            "ranks": distributed.get_world_size(group),
            "batch": len(g),
        }
        if wrong[pair]:
            rows.append(row | {"why_not": wrong[pair]})
            continue
        error = (works[pair]().double() - expected).norm() / expected.norm()
        rows.append(row | {"samples_s": taken_s[pair], "error": error.item()})
    return rows
