"""Tuning as data: a file beside the kernels has the configurations that were fastest on
a device, and a rule covers the rest.

`batchline tune` measures and writes kernels/<op>/tuning/<device>.json. A launch only
looks up: the problem's own entry, else the nearest one of the same traits within a
factor of four in all sizes together, else the rule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import torch

from batchline.kernels.architectures import Architecture
from batchline.kernels.device_files import file_for, nearby, stored
from batchline.kernels.target import target_of

Config = Mapping[str, int | str | bool]
_MOST_REMEMBERED = 4096  # problems, so that sizes that never repeat fill no memory


def distinct(configs: Iterable[Config]) -> list[Config]:
    """The configurations in their order, each once."""
    return list({tuple(config.items()): config for config in configs}.values())


@dataclass(frozen=True)
class Choice:
    """A configuration and where it comes from: "tuned", "tuned nearby" or "rule"."""

    config: Config
    source: str


class Tunable:
    """The configurations of one variant. Every one must be right on every input: they
    differ in speed alone.

    Both functions take the op's inputs, for which tensors on the meta device are
    enough, then the kernels.architectures entry that the launch is for. A CPU kernel
    does not use that.

    Args:
        rule: → the configuration where nothing was measured. It must compile for the
            architecture and fit it.
        candidates: → the configurations worth timing on these inputs, pruned by shape
            and by what fits the architecture. The rule's is among them.
    """

    def __init__(
        self,
        *,
        rule: Callable[..., Config],
        candidates: Callable[..., Sequence[Config]],
    ):
        self._rule = rule
        self._candidates = candidates
        self._forced: ContextVar[Config | None] = ContextVar("forced", default=None)
        self._known: dict[tuple, Choice] = {}

    def bind(
        self,
        folder: Path,
        name: str,
        describe: Callable[..., tuple[str, tuple[int, ...]]],
    ) -> None:
        """Name the variant that these configurations are of; @op.variant does it."""
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
        """The configuration to launch with: the forced one, or what `look_up` gives."""
        forced = self._forced.get()
        return self.look_up(*inputs).config if forced is None else forced

    def look_up(self, *inputs: torch.Tensor) -> Choice:
        """The configuration for these inputs on their device, and its source.

        It is remembered for their shapes, strides, dtypes and device.
        """
        target = target_of(inputs[0].device)
        tensors = tuple(
            (tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type)
            for tensor in inputs
        )
        key = target.number, tensors
        choice = self._known.get(key)
        if choice is None:
            choice = self._search(inputs, target)
            if len(self._known) >= _MOST_REMEMBERED:
                self._known.clear()
            self._known[key] = choice
        return choice

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
        """In the block every launch from this thread takes `config`: so candidates are
        timed.
        """
        token = self._forced.set(config)
        try:
            yield
        finally:
            self._forced.reset(token)
