"""The type of a workload, and how its samples are drawn: independently for noise, by
permutation for epochs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class Samples:
    """Inputs and targets, a row a sample, on the CPU."""

    inputs: torch.Tensor
    targets: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def rows(self, rows: torch.Tensor, device: str) -> Batch:
        """The samples of these row numbers, on the device."""
        return self.inputs[rows].to(device), self.targets[rows].to(device)

    def draw(self, batch: int, generator: torch.Generator, device: str) -> Batch:
        """Independent samples, with replacement: what the noise scale's estimators
        assume.
        """
        return self.rows(
            torch.randint(len(self), (batch,), generator=generator), device
        )

    def epoch(
        self, batch: int, generator: torch.Generator, device: str
    ) -> Iterator[Batch]:
        """Every sample once, in a new order, in batches; what is left over at the end
        is a smaller one.
        """
        for rows in torch.randperm(len(self), generator=generator).split(batch):
            yield self.rows(rows, device)

    def epochs(
        self, batch: int, generator: torch.Generator, device: str
    ) -> Iterator[Batch]:
        """Epochs without end."""
        while True:
            yield from self.epoch(batch, generator, device)


@dataclass(frozen=True)
class Workload:
    """A training problem. `title` says what it is and whose data it has.

    `losses`: model, inputs, targets → [B], each sample's own loss (a mean over its
    tokens, where it has some), of which training takes the mean. `load` gives the
    samples to train on and those held out; it is asked once. `batch` and
    `learning_rate` are those of plain SGD at which the workload trains well.
    """

    name: str
    title: str
    make_model: Callable[[], nn.Module]
    losses: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor]
    load: Callable[[], tuple[Samples, Samples]]
    batch: int
    learning_rate: float

    def model(
        self, seed: int, device: str = "cpu", dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """The untrained model; the same for a seed whatever the device, and torch's own
        generator is left as it was.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make_model().to(device, dtype)

    @functools.cached_property
    def _data(self) -> tuple[Samples, Samples]:
        return self.load()

    @property
    def train(self) -> Samples:
        return self._data[0]

    @property
    def held_out(self) -> Samples:
        return self._data[1]
