"""Tuning as data: configurations that won on a device, in a file beside the kernels,
and a rule for every other one.

`batchline tune` measures and writes kernels/<op>/tuning/<device>.json. A launch only looks
up: the problem's own entry, or the nearest one of the same traits within a factor of
four in all, or else the rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from batchline.kernels.architectures import Architecture
from batchline.kernels.device_files import file_for, nearby, stored
from batchline.kernels.target import target_of

Config = Mapping[str, int | str | bool]


@dataclass(frozen=True)
class Choice:
    """A configuration and where it comes from: "tuned", "tuned nearby" or "rule"."""

    config: Config
    source: str


class Tunable:
    """The configurations of one variant. Every one must be right on every input: they
    differ in speed alone.

    Args (both take the op's inputs, tensors on the meta device are enough, and then the
    kernels.architectures entry that the launch is for, which a kernel of the CPU does
    not use):
        rule: → the configuration where nothing was measured; it must compile for that
        architecture and fit it. candidates: → the configurations worth timing on these
        inputs, pruned by shape and by what fits the
            architecture, the rule's among them.
    """

    def __init__(
        self,
        *,
        rule: Callable[..., Config],
        candidates: Callable[..., Sequence[Config]],
    ):
        self._rule = rule
        self._candidates = candidates
        self._forced: Config | None = None
        self._known: dict[tuple, Choice] = {}

    def bind(
        self,
        folder: Path,
        name: str,
        describe: Callable[..., tuple[str, tuple[int, ...]]],
    ) -> None:
        """Say whose configurations these are; done by @op.variant."""
        self._folder, self._name, self._describe = folder, name, describe

    def rule(self, *inputs: torch.Tensor, target: Architecture | None = None) -> Config:
        """The rule's configuration for these inputs on `target`, or where that is None
        on their own device's.
        """
        return self._rule(*inputs, target or target_of(inputs[0].device))

    def candidates(
        self, *inputs: torch.Tensor, target: Architecture | None = None
    ) -> Sequence[Config]:
        """The configurations worth timing on these inputs, for the same architecture as
        `rule`.
        """
        return self._candidates(*inputs, target or target_of(inputs[0].device))

    def choose(self, *inputs: torch.Tensor) -> Config:
        """The configuration to launch with. What was found for a shape, its strides and
        dtype is remembered.
        """
        return self.look_up(*inputs).config if self._forced is None else self._forced

    def look_up(self, *inputs: torch.Tensor) -> Choice:
        """The configuration for these inputs on their device, and its source."""
        target = target_of(inputs[0].device)
        tensors = tuple(
            (tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type)
            for tensor in inputs
        )
        key = target.number, tensors
        if key not in self._known:
            self._known[key] = self._search(inputs, target)
        return self._known[key]

    def _search(self, inputs: Sequence[torch.Tensor], target: Architecture) -> Choice:
        path = file_for(self._folder, "tuning", "cuda" if inputs[0].is_cuda else "cpu")
        near = nearby(
            stored(path).get("winners", {}).get(self._name, ()),
            *self._describe(*inputs),
        )
        if not near:
            return Choice(self.rule(*inputs, target=target), "rule")
        distance, nearest = near[0]
        return Choice(nearest["config"], "tuned nearby" if distance else "tuned")

    @contextlib.contextmanager
    def forced(self, config: Config) -> Iterator[None]:
        """While active, every launch takes `config`: how candidates are timed."""
        before, self._forced = self._forced, config
        try:
            yield
        finally:
            self._forced = before
