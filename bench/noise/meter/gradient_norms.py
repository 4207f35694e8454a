"""GradientNorms: the noise scale of a DistributedDataParallel training from the norms of
its gradients alone, before and after the reduction.

Nothing of the model's layers is looked at. A rank's own gradient is that of a small
batch, and the reduced one that of all ranks' samples: two batch sizes are enough
(McCandlish et al. 2018, app. A), once there are several steps.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from batchline.bench.errors import UsageError
from batchline.bench.noise.meter.history import History, Past
from batchline.bench.stats.noise_scale import two_batch_sizes

_MOST_STEPS = 10_000  # that are remembered
_MOST_WAITING = 64  # steps whose numbers are on the device


def average(
    group: distributed.ProcessGroup, bucket: distributed.GradBucket
) -> torch.futures.Future:
    """The mean over ranks, as DistributedDataParallel takes it without a hook."""
    buffer = bucket.buffer().div_(group.size())
    work = distributed.all_reduce(buffer, group=group, async_op=True)
    return work.get_future().then(lambda done: done.value()[0])


class _Pass:
    """What one reduction has left: [Σ‖g_r‖², Σb, Σb²] over ranks, on its way, and the
    squares of each bucket's mean.
    """

    def __init__(self):
        self.own: list[torch.Tensor] = []
        self.reduced: list[torch.Tensor] = []
        self.sums: torch.Tensor | None = None
        self.work: distributed.Work | None = None


class GradientNorms:
    """Two norms of each reduced step of a DistributedDataParallel model.

        norms = GradientNorms(ddp)
        for x, y in loader:
            criterion(ddp(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        print(norms.history())

    It is a communication hook: whatever the layers are will do, and a step costs two
    reads of the gradients and a reduction of three numbers. Each step says far less
    than NoiseMeter's: the interval is over many. Micro-batches under no_sync() are part
    of the small batch. The noise scale is free of the loss's scale; tr Σ and ‖G‖² are
    those of a loss that is a mean over each rank's samples.

    Args:
        ddp: of two ranks or more, each with as many samples; NaN, overflow and uneven
            ranks leave a step out.
        samples: of each rank between two reductions; None counts dimension 0 of the
            first tensor that the model is called with, gradients enabled.
        reduce: the communication hook that makes the mean, hook(group, bucket) → a
            future; one that compresses makes M that of what it leaves.

    Raises:
        UsageError: of another model, of one rank, or of one that has a communication
        hook (give it as `reduce`, unregistered).
    """

    def __init__(
        self,
        ddp: DistributedDataParallel,
        samples: int | None = None,
        reduce: Callable = average,
    ):
        if not isinstance(ddp, DistributedDataParallel):
            raise UsageError(
                "GradientNorms reads what DistributedDataParallel reduces, and this is "
                f"{type(ddp).__name__}: NoiseMeter takes other models"
            )
        self._group = ddp.process_group
        if self._group.size() < 2:
            raise UsageError(
                "GradientNorms compares a rank's gradient with all ranks' and needs two of them: NoiseMeter takes one"
            )
        if ddp._comm_hooks:
            raise UsageError(
                "the model has a communication hook already: build it without, and give that hook as reduce="
            )
        self._told = samples
        self._reduce = reduce
        self._counted = 0
        self._open = _Pass()
        self._waiting: list[_Pass] = []
        self._past: deque[Past] = deque(maxlen=_MOST_STEPS)
        self._left_out = 0
        ddp.register_comm_hook(self._group, self._hook)
        ddp.register_forward_pre_hook(self._counts, with_kwargs=True)

    def history(self, half_life: float = 200) -> History:
        """Of the steps so far; each counts half as much after so many more. On a GPU,
        this waits for them.
        """
        self._collect()
        return History(tuple(self._past), half_life, self._left_out)

    def _counts(self, _: nn.Module, args: tuple, kwargs: dict) -> None:
        if not torch.is_grad_enabled():
            return
        values = [*args, *kwargs.values()]
        first = next((one for one in values if isinstance(one, torch.Tensor)), None)
        if first is not None and first.dim():
            self._counted += len(first)

    def _hook(self, group, bucket):  # torch refuses annotations that are strings
        one = self._open
        one.own.append(_square(bucket.buffer()))
        future = self._reduce(group, bucket).then(lambda done: _kept(one, done))
        if bucket.is_last():
            self._open = _Pass()
            self._sends(one)
        return future

    def _sends(self, one: _Pass) -> None:
        samples = self._told or self._counted
        self._counted = 0
        own = torch.stack(one.own).sum()
        one.sums = torch.stack(
            [own, own.new_tensor(samples), own.new_tensor(samples**2)]
        )
        one.work = distributed.all_reduce(one.sums, group=self._group, async_op=True)
        self._waiting.append(one)
        if len(self._waiting) > _MOST_WAITING:
            self._collect(keep=1)  # the last is under way

    def _collect(self, keep: int = 0) -> None:
        count = len(self._waiting) - keep
        for one in self._waiting[:count]:
            one.work.wait()
            self._takes(one.sums.tolist(), float(sum(one.reduced)))
        del self._waiting[:count]

    def _takes(self, sums: list[float], reduced: float) -> None:
        own, samples, squares = sums
        ranks = self._group.size()
        small = round(samples / ranks)
        even = small > 0 and squares * ranks == samples**2
        if not even or not math.isfinite(own) or not math.isfinite(reduced):
            self._left_out += 1
            return
        scale = two_batch_sizes(small, own / ranks, small * ranks, reduced)
        self._past.append(Past(scale.trace, scale.square, small * ranks))


def _kept(one: _Pass, done: torch.futures.Future) -> torch.Tensor:
    value = done.value()
    reduced = value[0] if isinstance(value, (list, tuple)) else value
    one.reduced.append(_square(reduced))
    return reduced


def _square(x: torch.Tensor) -> torch.Tensor:
    """‖x‖², a scalar in fp64."""
    return torch.linalg.vector_norm(x, dtype=torch.float64).square()
