"""A metered step on several devices, one process (rank) each: whose gradients are put
together, and {M, n, d} over all ranks' samples.

Each rank knows n of its own samples. M is that of the gradient that the reduction left
in .grad, whole (DistributedDataParallel) or in shards (fully_shard). That it is the
mean of what the ranks contributed, their sum or a multiple of it, is seen from products with one fixed
vector, which are linear in the gradient: of each rank's own before the reduction, and
of .grad after it.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.record import Record
from batchline.bench.noise.meter.step import (
    Gradients,
    ParameterStatistics,
    ScaleOf,
    Step,
)

_SLACK = 1e-3  # of a gradient: what a reduction in fp32 may change its product by
_SPACINGS = 4  # or so many of the coarsest dtype's
_LEAST_SEEN = 0.01  # of a gradient's square, for a factor to be read off its product
_NARROW = 2**-8  # bf16's spacing, where a communication hook may compress
_ADVICE = (
    "clip, unscale and update after the metered step, and let its last backward pass reduce "
    "(no no_sync() there)"
)


def unwrapped(model: nn.Module) -> tuple[nn.Module, DistributedDataParallel | None]:
    """The user's own module within torch.compile's and DistributedDataParallel's, and
    the latter.
    """
    ddp = None
    while True:
        if isinstance(model, DistributedDataParallel):
            ddp = model
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        else:
            return model, ddp


def refuse(name: str, module: nn.Module) -> None:
    """Refuse a module of a model that puts gradients together in a way that the meter
    can't follow.

    Raises:
        UsageError: of FullyShardedDataParallel, and of DistributedDataParallel inside.
    """
    if _is_a(module, "FullyShardedDataParallel"):
        raise UsageError(
            f"{name} is a FullyShardedDataParallel (FSDP1), whose flat parameters have no layers: shard with "
            "torch.distributed.fsdp.fully_shard, or measure under DistributedDataParallel"
        )
    if isinstance(module, DistributedDataParallel):
        raise UsageError(
            f"{name} is a DistributedDataParallel within the model: give the meter that one, or wrap the whole model"
        )


def _is_a(module: nn.Module, kind: str) -> bool:
    """By name: who does not shard needn't wait for its import."""
    return any(cls.__name__ == kind for cls in type(module).__mro__)


def reshard(model: nn.Module) -> None:
    """Let fully_shard's modules have their sharded parameters: after a pass without
    gradients they may have others.
    """
    if not is_initialised():
        return
    for module in model.modules():
        if _is_a(module, "FSDPModule"):
            module.reshard()


class Ranks(NamedTuple):
    """The process groups over which gradients are put together, the innermost first;
    `sharded`: each rank of the first has a part of every gradient. `slack` is how far
    a reduction may be off, as a share of the gradient.
    """

    groups: tuple[distributed.ProcessGroup, ...]
    sharded: bool = False
    slack: float = _SLACK

    @property
    def count(self) -> int:
        count = 1
        for group in self.groups:
            count *= group.size()
        return count

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """x[…] of this rank → [outer, inner, …] of all ranks."""
        for group in self.groups:
            parts = [torch.empty_like(x) for _ in range(group.size())]
            distributed.all_gather(parts, x.contiguous(), group=group)
            x = torch.stack(parts)
        return x if len(self.groups) == 2 else x[None]


def of_ddp(ddp: DistributedDataParallel) -> Ranks | None:
    """The ranks over which it takes means.

    Raises:
        UsageError: within ddp.join(), where ranks end at different steps.
    """
    if ddp._join_config.enable:
        raise UsageError(
            "ranks that join() end at different steps, and a metered step needs all of them: drop the last, "
            "uneven batches (DistributedSampler's drop_last=True)"
        )
    slack = _NARROW * _SPACINGS if ddp._comm_hooks else _SLACK
    group = ddp.process_group
    return Ranks((group,), slack=slack) if group.size() > 1 else None


def of_shards(names: Mapping[nn.Parameter, str]) -> Ranks | None:
    """The ranks of fully_shard's mesh; None where no parameter is sharded.

    Raises:
        UsageError: if some are and others are not, or otherwise than fully_shard's
        over one mesh, along their first dimension.
    """
    meshes = {}
    for parameter, name in names.items():
        mesh = getattr(parameter, "device_mesh", None)
        meshes.setdefault(mesh, name)
        if mesh is not None:
            _refuse_placements(name, parameter)
    if set(meshes) == {None}:
        return None
    if len(meshes) > 1:
        raise UsageError(
            f"{' and '.join(meshes.values())} are put together over different ranks: apply fully_shard to the "
            "whole model on one mesh, or leave some out by layers="
        )
    (mesh,) = meshes
    dims = reversed(range(mesh.ndim))
    return Ranks(tuple(mesh.get_group(dim) for dim in dims), sharded=True)


def _refuse_placements(name: str, parameter: nn.Parameter) -> None:
    *others, last = parameter.placements
    plain = last.is_shard(0) and type(last).__name__ == "Shard"
    if len(others) > 1 or not plain or not all(one.is_replicate() for one in others):
        placed = ", ".join(map(str, parameter.placements))
        raise UsageError(
            f"{name} is placed as ({placed}): of DTensors only those that fully_shard splits along dimension 0 are "
            "measured, over one or two mesh dimensions; with tensor parallel layers, use process groups of data "
            "parallel ranks and leave these out by layers="
        )


def find(
    names: Mapping[nn.Parameter, str],
    ddp: DistributedDataParallel | None,
    group: distributed.ProcessGroup | str | None,
) -> Ranks | None:
    """The ranks that a step's gradient is of; None for this one alone, as far as is
    known before the step.

    Args:
        group: "auto", the ranks among whom gradients are put together by the user's
            own hand, or None.
    """
    shards = of_shards(names)
    if group is None and (shards or ddp):
        raise UsageError(
            "process_group=None takes a rank's own samples for all, and this model's gradients are put together "
            'over ranks: process_group="auto"'
        )
    if shards:
        return shards
    if ddp:
        return of_ddp(ddp)
    if group in ("auto", None):
        return None
    return Ranks((group,)) if group.size() > 1 else None


def is_initialised() -> bool:
    """Whether there is a process group, if only of this process."""
    return distributed.is_available() and distributed.is_initialized()


def is_distributed() -> bool:
    """Whether there are other ranks at all."""
    return is_initialised() and distributed.get_world_size() > 1


@dataclass(frozen=True)
class Together:
    """{‖B·ḡ‖, n, d} by parameter over all ranks, the samples of each call or rank, the
    gradient over what the ranks contributed (`share`), and what is assumed.

    `weights`[B] of all ranks' samples, where they were told. `why_not`: why there is no
    answer. `of_ranks`: whether it is of several. `preconditioned`: the statistics of
    gradients over √v̂ + eps, or why there are none; None where they were not asked for.
    """

    statistics: dict[str, ParameterStatistics]
    samples: list[int]
    share: float = 1.0
    assumed: str | None = None
    why_not: str | None = None
    weights: np.ndarray | None = None
    of_ranks: bool = False
    preconditioned: dict[str, ParameterStatistics] | str | None = None


class Across:
    """One metered step whose gradient may be of several ranks.

    Args:
        model: that is called, within its wrappers.
        names: every parameter that is measured, and its name.
        ranks: as far as they are known before the step.
        dots: take d too.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Mapping[nn.Parameter, str],
        ranks: Ranks | None,
        dots: bool = False,
    ):
        self._model = model
        self._names = names
        self._ranks = ranks
        self.dots = dots
        self._products: dict[nn.Parameter, torch.Tensor] = {}
        self._seen: set[nn.Parameter] = set()
        self._before: dict[nn.Parameter, torch.Tensor] = {}
        self._put_back: list[Callable[[], object]] = []

    def begin(self, gradients: Gradients) -> None:
        """See each parameter's gradient before it is reduced.

        Args:
            gradients: of the step, which are told those of sharded parameters too.
        """
        self._gradients = gradients
        gradients.copies = (
            True  # a reduction writes into .grad, which may be what was seen
        )
        for parameter in self._names:
            if parameter.grad is not None:
                self._before[parameter] = torch.linalg.vector_norm(
                    _local(parameter.grad), dtype=torch.float64
                )
            self._watch(parameter, functools.partial(self._receives, parameter))
        look = self._model.register_forward_pre_hook(self._looks_for_ddp)
        self._put_back.append(look.remove)

    def restore(self) -> None:
        while self._put_back:
            self._put_back.pop()()

    def layers(self, layers: Sequence) -> Sequence:
        """The layers, as they must be measured where their parameters are sharded."""
        if not (self._ranks and self._ranks.sharded):
            return layers
        for layer in layers:
            if layer.metered is None:
                raise UsageError(
                    f"{layer.name} ({type(layer.module).__name__}) is replayed by torch.func after the step, when "
                    "its weights are sharded again: leave it out by layers=, or measure under "
                    "DistributedDataParallel"
                )
        return [_Sharded(layer, self) for layer in layers]

    def stands_in(self, parameter: nn.Parameter, key: nn.Parameter) -> None:
        """Look at the gradients of what stands in for a sharded parameter, once."""
        if parameter in self._seen:
            return
        self._seen.add(parameter)
        self._watch(parameter, functools.partial(self._receives, key))
        self._watch(parameter, functools.partial(self._gradients.receives, key))

    def _watch(self, parameter: nn.Parameter, hook: Callable) -> None:
        self._put_back.append(parameter.register_hook(hook).remove)

    @property
    def probes(self) -> Callable[[bool, bool], bool] | None:
        """Whether to look at the model on parts of the batch: all ranks or none, for
        sharded weights are put together by all. None where each may do as it likes.
        """
        return self._agree_on_probe if self._ranks and self._ranks.sharded else None

    def _agree_on_probe(self, wanted: bool, possible: bool) -> bool:
        facts = torch.tensor([int(wanted), int(possible)], device=self._device)
        heads = self._ranks.gather(facts).flatten(0, 1)
        return bool(heads[:, 0].any() and heads[:, 1].all())

    def _receives(self, key: nn.Parameter, gradient: torch.Tensor) -> None:
        product = product_of(gradient.detach())
        self._products[key] = self._products.get(key, 0) + product

    def _looks_for_ddp(self, *_) -> None:
        ddp = DistributedDataParallel._get_active_ddp_module()
        if self._ranks is None and ddp is not None:
            self._ranks = of_ddp(ddp)

    def fails(self, error: UsageError) -> None:
        """Tell the other ranks that this one has no statistics.

        Raises:
            UsageError: `error`.
        """
        if self._ranks:
            self._ranks.gather(self._header([], failed=True))
        raise error

    def puts_together(
        self,
        record: Record,
        statistics: dict[str, ParameterStatistics],
        samples: list[int],
    ) -> Together:
        """What this rank measured and what the others did. Every rank calls it.

        Raises:
            UsageError: if .grad is not made of what the ranks contributed, or another
            rank could not measure its own.
        """
        if not self._ranks:
            return self._alone(statistics, samples)
        own = record.weights(sum(samples), part=True)
        header = self._header(
            samples,
            why_not=record.why_not is not None,
            weighted=record.weighted,
            optimizer=record.scale_of is not None,
        )
        heads = self._ranks.gather(header).flatten(0, 1).tolist()
        why_not = record.why_not or _agree(heads)
        batches = [head[_HEADER.index("batch")] for head in heads]
        gathered = self._gather(record, statistics, max(batches))
        share = self._share(gathered)
        weights = self._weights(own, batches) if record.weighted else None
        if weights is not None and not weights.sum() > 0:
            why_not = why_not or "the weights= of all ranks' samples are 0"
        if len(set(batches)) > 1 and not record.weighted and not why_not:
            why_not = (
                f"ranks have {', '.join(map(str, batches))} samples: the mean of their means weighs samples unlike "
                "(give each rank as many, or divide the sum of all by its weights=)"
            )
        why_not = why_not or gathered.why_not(batches)
        merged = self._merge(statistics, gathered, batches, share)
        preconditioned = self._precondition(record, batches, share)
        ranks = len(batches)
        how = {1.0: "sum", 1 / ranks: "mean"}.get(share)
        assumed = f"the gradient is the {how or 'mean'} of those of {ranks} ranks, each of which has samples of its own"
        if how is None:
            times = f"{share * ranks:.4g}"
            assumed += f"; it was then multiplied by {times}, as in clipping, which is taken back"
            share = 1 / ranks
        if record.weighted:
            assumed += "; each rank's loss is over the sum of all ranks' weights"
        return Together(
            merged,
            batches,
            share,
            assumed,
            why_not,
            weights,
            of_ranks=True,
            preconditioned=preconditioned,
        )

    def _precondition(
        self, record: Record, batches: Sequence[int], share: float
    ) -> dict[str, ParameterStatistics] | str | None:
        """As `Record.preconditioned`, of all ranks' samples: one exchange more."""
        if record.scale_of is None:
            return None
        own = record.preconditioned()
        known = {} if isinstance(own, str) else own
        gathered = self._gather(record, known, max(batches), record.scale_of)
        every = self._merge(known, gathered, batches, share)
        return own if isinstance(own, str) else every

    def _weights(self, own: np.ndarray | None, batches: Sequence[int]) -> np.ndarray:
        """[B] of all ranks' samples; 0 of a rank that has none that are right."""
        numbers = torch.zeros(max(batches), dtype=torch.float64, device=self._device)
        if own is not None:
            numbers[: len(own)] = torch.from_numpy(own)
        by_rank = self._ranks.gather(numbers).flatten(0, 1).cpu().numpy()
        return np.concatenate([one[:b] for one, b in zip(by_rank, batches)])

    def _header(
        self,
        samples: list[int],
        failed: bool = False,
        why_not: bool = False,
        weighted: bool = False,
        optimizer: bool = False,
    ) -> torch.Tensor:
        listed = "\n".join(self._names.values())
        values = {
            "failed": failed,
            "why_not": why_not,
            "weighted": weighted,
            "optimizer": optimizer,
            "parameters": zlib.crc32(listed.encode()),
            "batch": sum(samples),
            "calls": len(samples),
        }
        return torch.tensor(
            [int(values[key]) for key in _HEADER],
            device=self._device,
            dtype=torch.int64,
        )

    @property
    def _device(self) -> torch.device:
        return _local(next(iter(self._names))).device

    def _gather(
        self,
        record: Record,
        statistics: Mapping[str, ParameterStatistics],
        batch: int,
        scale_of: ScaleOf | None = None,
    ) -> _Gathered:
        """Of all ranks: one exchange. Of gradients times each parameter's scale, where
        that is given.
        """
        rows = []
        for parameter, name in self._names.items():
            numbers = torch.zeros(
                len(_ROW) + batch * (1 + self.dots),
                dtype=torch.float64,
                device=self._device,
            )
            final = self._final(parameter)
            if scale_of is not None:
                final = _scaled(final, scale_of(parameter))
            one = statistics.get(name)
            numbers[_ROW.index("before")] = self._before.get(parameter, 0.0)
            if final is not None:
                local = _local(final)
                norm = torch.linalg.vector_norm(local, dtype=torch.float64)
                numbers[_ROW.index("after")] = norm
                numbers[_ROW.index("product_after")] = product_of(
                    local, _first_row(parameter) if self._ranks.sharded else 0
                )
            if one is not None:
                numbers[_ROW.index("present")] = 1
                numbers[_ROW.index("norm")] = one.norm
                numbers[_ROW.index("gap")] = 0.0 if one.gap is None else one.gap
                numbers[_ROW.index("product")] = self._products.get(parameter, 0.0)
                n = one.squared_norms
                numbers[len(_ROW) : len(_ROW) + len(n)] = n
            if self.dots:
                if scale_of is not None:
                    final = _scaled(final, scale_of(parameter))
                d = self._dots_with_the_whole(record, parameter, final)
                if d is not None:
                    start = len(_ROW) + batch
                    numbers[start : start + len(d)] = d
            rows.append(numbers)
        return _Gathered(self._ranks.gather(torch.stack(rows)), batch)

    def _final(self, parameter: nn.Parameter) -> torch.Tensor | None:
        return None if parameter.grad is None else parameter.grad.detach()

    def _dots_with_the_whole(
        self, record: Record, parameter: nn.Parameter, final: torch.Tensor | None
    ) -> torch.Tensor | None:
        """[b]: the product of each of this rank's samples' contributions and .grad."""
        if final is None:
            return None
        if self._ranks.sharded:
            final = final.full_tensor()
        direction = final.flatten()
        if direction.dtype != torch.float64:
            direction = direction.float()
        return torch.cat(
            [
                (
                    step.along(parameter, direction)
                    if step.knows(parameter)
                    else direction.new_zeros(step.samples)
                ).double()
                for step in record.steps
            ]
        )

    def _share(self, gathered: _Gathered) -> float:
        """What .grad is of the sum of what the ranks contributed: 1/ranks or 1; or what
        clipping or unscaling made of it, one factor for all parameters.

        Raises:
            UsageError: if it is none of these.
        """
        names = list(self._names.values())
        before = gathered.column("before").amax((0, 1))
        if (before > 0).any():
            name = names[int(before.argmax())]
            raise UsageError(
                f"{name} had a gradient before the metered step, and the reduction adds to it: call zero_grad() before"
            )
        contributed = gathered.column("product").sum((0, 1))
        norms = gathered.column("norm").square().sum((0, 1)).sqrt()
        after = gathered.column("product_after")  # [outer, inner, parameters]
        if self._ranks.sharded:
            after = after.sum(1, keepdim=True)
        slack = self._slack(names)
        fitted = (after.mean((0, 1)) * contributed).sum() / contributed.square().sum()
        seen = contributed.square().sum() > _LEAST_SEEN * norms.square().sum()
        shares = [1 / self._ranks.count, 1.0]
        if seen and fitted.isfinite() and fitted > 0:
            shares.append(fitted.item())
        worst = {}
        for share in shares:
            off = (after - share * contributed).abs() / (share * slack * norms + 1e-300)
            off = torch.where(off.isfinite(), off, 0.0).amax((0, 1))
            if off.max() <= 1:
                return share
            worst[share] = names[int(off.argmax())]
        own = gathered.column("product")
        unreduced = (own - gathered.column("product_after")).abs() <= slack * norms
        name = worst[1 / self._ranks.count]
        if unreduced.all():
            raise UsageError(
                f"the gradients of the {self._ranks.count} ranks were not put together within the metered step: "
                f"{_ADVICE}"
            )
        raise UsageError(
            f"{name}: its gradient at the end of the metered step is neither the mean nor the sum of what the "
            f"{self._ranks.count} ranks contributed: {_ADVICE}"
        )

    def _slack(self, names: Sequence[str]) -> torch.Tensor:
        """By parameter, as a share of its gradient."""
        wide = [
            max(self._ranks.slack, _SPACINGS * torch.finfo(parameter.dtype).eps)
            for parameter in self._names
        ]
        return torch.tensor(wide, dtype=torch.float64, device=self._device)

    def _merge(
        self,
        statistics: Mapping[str, ParameterStatistics],
        gathered: _Gathered,
        batches: Sequence[int],
        share: float,
    ) -> dict[str, ParameterStatistics]:
        after = gathered.column("after").square()
        after = after.sum(1) if self._ranks.sharded else after.mean(1)
        norms = after.mean(0).sqrt() / share
        gaps = gathered.column("gap").amax((0, 1)) * len(batches)
        n = gathered.samples(batches, 0)
        d = gathered.samples(batches, 1) / share / sum(batches) if self.dots else None
        merged = {}
        for number, name in enumerate(self._names.values()):
            if not gathered.column("present")[..., number].any():
                continue
            own = statistics.get(name)
            has_gap = own is not None and own.gap is not None
            merged[name] = ParameterStatistics(
                norms[number],
                n[number],
                None if d is None else d[number],
                gaps[number] if has_gap else None,
                own.eps if own is not None else 0.0,
            )
        return merged

    def _alone(self, statistics, samples: list[int]) -> Together:
        """Of this rank's samples: no wrapper was seen that puts ranks together.

        Raises:
            UsageError: if something did so all the same.
        """
        if not is_distributed():
            return Together(statistics, samples)
        slack = 0.0
        gap = 0.0
        for parameter, name in self._names.items():
            one = statistics.get(name)
            final = self._final(parameter)
            if one is None or final is None or parameter in self._before:
                continue
            product = self._products.get(parameter, 0.0)
            gap = gap + (product_of(final) - product).abs()
            slack = slack + _SLACK * one.norm.double()
        if gap > slack:
            raise UsageError(
                "gradients were changed after the backward pass of a metered step, and no DistributedDataParallel or "
                f"fully_shard was seen: tell process_group=, over which they are put together, and {_ADVICE}"
            )
        return Together(
            statistics,
            samples,
            assumed=(
                f"this rank's {sum(samples)} samples are all of the step: neither DistributedDataParallel nor "
                "fully_shard was seen (process_group= tells of another way)"
            ),
        )


_HEADER = (
    "failed",
    "why_not",
    "weighted",
    "optimizer",
    "parameters",
    "batch",
    "calls",
)
_ROW = ("present", "norm", "gap", "before", "product", "product_after", "after")


class _Gathered(NamedTuple):
    """[outer, inner, parameters, …]: the numbers of _ROW, then n and maybe d of `batch`
    samples, of each rank.
    """

    rows: torch.Tensor
    batch: int

    def column(self, name: str) -> torch.Tensor:
        """[outer, inner, parameters]."""
        return self.rows[..., _ROW.index(name)]

    def why_not(self, batches: Sequence[int]) -> str | None:
        """Why all ranks' samples are not so many after all."""
        n = self.rows.flatten(0, 1)[..., len(_ROW) : len(_ROW) + max(batches)]
        several = len(batches) > 1 and n.isfinite().all() and n.any()
        if several and (n == n[:1]).all():
            return (
                "all ranks have the same samples, or their parts: give each its own (DistributedSampler); where ranks "
                "share a sample, as context parallel ones do, its gradient is on none of them"
            )
        return None

    def samples(self, batches: Sequence[int], which: int) -> torch.Tensor:
        """[parameters, samples of all ranks]: n (0) or d (1)."""
        start = len(_ROW) + which * self.batch
        by_rank = self.rows.flatten(0, 1)[..., start : start + self.batch]
        return torch.cat([one[:, :b] for one, b in zip(by_rank, batches)], 1)


def _agree(heads: Sequence[Sequence[int]]) -> str | None:
    """Why there is no answer on some rank.

    Raises:
        UsageError: if ranks measure different things, or one could not measure.
    """
    for rank, head in enumerate(heads):
        facts = dict(zip(_HEADER, head))
        if facts["failed"]:
            raise UsageError(
                f"rank {rank} could not measure its own samples: it says why"
            )
        first = dict(zip(_HEADER, heads[0]))
        if facts["parameters"] != first["parameters"]:
            raise UsageError(
                f"ranks 0 and {rank} have different parameters, as stages of a pipeline have: measure each over the "
                "ranks that have the same (process_group=)"
            )
        for told in ("weighted", "optimizer"):
            if facts[told] != first[told]:
                name = {"weighted": "weights="}.get(told, "optimizer=")
                raise UsageError(
                    f"of ranks 0 and {rank} one was told {name} and the other not: tell each its own"
                )
        if facts["calls"] != first["calls"]:
            return f"rank 0 called the model {first['calls']} times, and rank {rank} {facts['calls']}"
        if facts["why_not"]:
            return f"rank {rank} has no answer: its own reading says why"
    return None


def _local(x: torch.Tensor) -> torch.Tensor:
    """A DTensor's part on this rank; another tensor as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def _scaled(
    gradient: torch.Tensor | None, scale: torch.Tensor | None
) -> torch.Tensor | None:
    """A gradient times scale[P], element by element; None where one is not there."""
    if gradient is None or scale is None:
        return None
    return gradient * scale.view(gradient.shape)


def _first_row(parameter: nn.Parameter) -> int:
    """Of the part of a parameter on this rank, split as torch.chunk does."""
    mesh = parameter.device_mesh
    rows = len(parameter)
    parts = mesh.size(mesh.ndim - 1)
    return min(rows, -(-rows // parts) * mesh.get_local_rank(mesh.ndim - 1))


def product_of(gradient: torch.Tensor, first_row: int = 0) -> torch.Tensor:
    """A scalar in fp64: the product of rows g[r,…] with a fixed vector, of which they
    are the rows from `first_row` on. Linear, so parts add up.
    """
    g = gradient.detach()
    if not g.numel():
        return torch.zeros((), dtype=torch.float64, device=g.device)
    rows = g.flatten(1) if g.dim() > 1 else g.reshape(-1, 1)
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    along = rows[:, 0]
    if rows.shape[1] > 1:
        along = torch.mv(rows, _waves(rows.shape[1], 2**0.5, 0, rows))
    along = along.double()
    return along @ _waves(len(rows), 1.0, first_row, along)


def _waves(count: int, pace: float, first: int, like: torch.Tensor) -> torch.Tensor:
    """√2·cos of equal paces, whose squares are 1 in the mean."""
    places = torch.arange(first, first + count, device=like.device, dtype=torch.float64)
    return (places * pace + pace).cos().mul(2**0.5).to(like.dtype)


class _Sharded:
    """A layer whose parameters fully_shard puts together for a call: what it measures
    is looked for then.
    """

    def __init__(self, layer, across: Across):
        self.name = layer.name
        self.module = layer.module
        self._layer = layer
        self._across = across

    def forward_for(self, step: Step, forward: Callable) -> Callable:
        """What stands in for the module's own forward in a metered step."""

        def call(*args, **kwargs):
            if not torch.is_grad_enabled():
                return forward(*args, **kwargs)
            keys = {}
            for key, sharded in self._layer.parameters.items():
                parameter = self.module.get_parameter(key)
                self._refuse(key, parameter)
                keys[parameter] = sharded
                self._across.stands_in(parameter, sharded)
            view = _Unsharded(step, keys)
            layer = replace(self._layer, parameters={})
            result = layer.forward_for(view, forward)(*args, **kwargs)
            # of a view, fully_shard would lose its hook at the first write into it
            is_view = isinstance(result, torch.Tensor) and result._is_view()
            return result.clone() if is_view else result

        return call

    def _refuse(self, key: str, parameter: nn.Parameter) -> None:
        if hasattr(parameter, "placements"):
            raise UsageError(
                f"{self.name}.{key} is a DTensor in its own call: tensor parallel layers are not measured, leave "
                "them out by layers="
            )


class _Unsharded:
    """A step, to a layer that knows its parameters by what stands in for them."""

    keeps_parameters = False

    def __init__(self, step: Step, keys: Mapping[nn.Parameter, nn.Parameter]):
        self._step = step
        self._keys = keys

    def __getattr__(self, name: str):
        return getattr(self._step, name)

    def calls(self, layer, x, parameters, moved: bool = False) -> None:
        self._step.calls(layer, x, [self._keys[one] for one in parameters], moved)

    def once(self, parameter: nn.Parameter) -> bool:
        # in another dtype the gradient that autograd gets is a copy, not to be recognised
        key = self._keys[parameter]
        return parameter.dtype == key.dtype and self._step.once(key)

    def looks_up(self, parameter: nn.Parameter) -> None:
        self._step.looks_up(self._keys[parameter])

    def once_beside_lookups(self, parameter: nn.Parameter) -> bool:
        return self._step.once_beside_lookups(self._keys[parameter])

    def adds(self, parameter: nn.Parameter, use) -> None:
        self._step.adds(self._keys[parameter], use)

    def replaces(self, parameter: nn.Parameter, gradient, n, d) -> torch.Tensor:
        return self._step.replaces(self._keys[parameter], gradient, n, d)
