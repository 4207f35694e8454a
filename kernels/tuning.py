"""Tuning as data: configurations that won on a device, in a file beside the kernels, and a rule for every other one.

`make tune` measures and writes kernels/<op>/tuning/<device>.json. A launch only looks up: the problem's own entry,
or the nearest one of the same traits within a factor of four in all, or else the rule.
"""
from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from kernels.device import device_name, slug

Config = Mapping[str, int | str | bool]
_NEAR = 2.0  # in doublings, summed over the sizes


@dataclass(frozen=True)
class Choice:
    """A configuration and where it comes from: "tuned", "tuned nearby" or "rule"."""

    config: Config
    source: str


class Tunable:
    """The configurations of one variant. Every one must be right on every input: they differ in speed alone.

    Args (both take the op's inputs; tensors on the meta device are enough):
        rule: → the configuration where nothing was measured; it must compile for every architecture.
        candidates: → the configurations worth timing on these inputs, pruned by shape, the rule's among them.
    """

    def __init__(self, *, rule: Callable[..., Config], candidates: Callable[..., Sequence[Config]]):
        self.rule = rule
        self.candidates = candidates
        self._forced: Config | None = None
        self._known: dict[tuple, Choice] = {}

    def bind(self, folder: Path, name: str, describe: Callable[..., tuple[str, tuple[int, ...]]]) -> None:
        """Say whose configurations these are; done by @op.variant."""
        self._folder, self._name, self._describe = folder, name, describe

    def choose(self, *inputs: torch.Tensor) -> Config:
        """The configuration to launch with. What was found for a shape, its strides and dtype is remembered."""
        return self.look_up(*inputs).config if self._forced is None else self._forced

    def look_up(self, *inputs: torch.Tensor) -> Choice:
        """The configuration for these inputs on their device, and its source."""
        key = tuple((tensor.shape, tensor.stride(), tensor.dtype, tensor.device.type) for tensor in inputs)
        if key not in self._known:
            self._known[key] = self._search(inputs)
        return self._known[key]

    def _search(self, inputs: Sequence[torch.Tensor]) -> Choice:
        traits, sizes = self._describe(*inputs)
        device = "cuda" if inputs[0].is_cuda else "cpu"
        entries = [entry for entry in stored(file_for(self._folder, device)).get("winners", {}).get(self._name, ())
                   if entry["traits"] == traits]
        nearest = min(entries, key=lambda entry: _distance(entry["sizes"], sizes), default=None)
        if nearest is None or _distance(nearest["sizes"], sizes) > _NEAR:
            return Choice(self.rule(*inputs), "rule")
        return Choice(nearest["config"], "tuned" if tuple(nearest["sizes"]) == sizes else "tuned nearby")

    @contextlib.contextmanager
    def forced(self, config: Config) -> Iterator[None]:
        """While active, every launch takes `config`: how candidates are timed."""
        before, self._forced = self._forced, config
        try:
            yield
        finally:
            self._forced = before


def file_for(folder: Path, device: str) -> Path:
    """Where the winners of an op's variants on this machine's "cpu" or "cuda" are kept."""
    return folder / "tuning" / f"{slug(device_name(device))}.json"


@functools.cache
def stored(path: Path) -> Mapping:
    """What a tuning file holds: its device, when and how long it was measured, and the winners; {} if there is none.

    Raises:
        ValueError: if the file is damaged.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return document if document["winners"] is not None else {}
    except FileNotFoundError:
        return {}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a tuning file ({error}): remove it, and `make tune` writes it anew") from error


def _distance(one: Sequence[int], other: Sequence[int]) -> float:
    """Doublings between two problems' sizes, summed over them; a size of 0 is near nothing but itself."""
    return sum(0.0 if a == b else abs(math.log2(a / b)) if a and b else math.inf for a, b in zip(one, other))
