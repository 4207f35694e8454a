"""One problem as it is measured: its inputs, what they must give, and each variant as it is launched on them."""
from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from bench.measure import capacity, check
from bench.measure.task import Task
from kernels.backends import DISPATCH
from kernels.dispatch import Dispatch
from kernels.op import Op, Tensors, Variant

_ENOUGH_INPUTS = 2  # copies that a cold clock takes in turn, where one would fit the cache beside its outputs


class Problem:
    """A task's inputs, the same in every run, and the reference's outputs for them."""

    def __init__(self, op: Op, task: Task, device: str):
        self.where = f"on {task.scenario} at B={task.batch}"
        seed = zlib.crc32(f"{op.name}/{task.scenario}/{task.dtype}/B{task.batch}".encode())
        self.inputs = op.make_inputs(task.scenario, task.batch, task.dtype, device, seed)
        self.expected = check.expect(op, self.inputs)

    @property
    def input_bytes(self) -> int:
        return capacity.storage_bytes(self.inputs)

    def copies(self, cache_bytes: int, count: int = _ENOUGH_INPUTS) -> list[Tensors]:
        """The inputs, or `count` sets of the same values where they are small enough to survive in such a cache."""
        if self.input_bytes > cache_bytes:
            return [self.inputs]
        return [self.inputs, *(tuple(map(_twin, self.inputs)) for _ in range(count - 1))]

    def call(self, variant: Variant) -> tuple[Tensors, check.Accuracy]:
        """The variant's outputs, checked."""
        return check.checked_call(variant, self.inputs, self.expected, self.where)

    def check(self, variant: Variant, returned, how: str) -> None:
        """Raise NotMeasured if what the variant returned earlier is wrong; `how` says where it came from."""
        expected = check.held_to(variant, self.inputs, self.expected)
        check.check_outputs(returned, self.inputs, expected, f"{self.where}, {how}")


def launched_with(variant: Variant, config: Mapping | None) -> Variant:
    """The variant with a configuration that it would not choose itself; as it is for None.

    What hands on to another goes by the "table" that is given, if one is; where a "variant" is asked for it looks up
    all the same, and then hands on to that one.
    """
    if config is None:
        return variant
    if variant.backend == DISPATCH:
        return replace(variant, function=_handing_on(_dispatch(variant, config), config.get("variant")))

    def function(*inputs):
        with variant.tunable.forced(config):
            return variant.function(*inputs)

    function.__name__ = variant.name
    return replace(variant, function=function)


def configured(variant: Variant, inputs: Tensors, config: Mapping | None = None) -> dict:
    """The configuration that a variant takes for these inputs, and where it has it from; {} if it has but one.

    Of what hands on to another variant it is that one.
    """
    if variant.backend == DISPATCH:
        if config and "variant" in config:
            return {"config": {"variant": config["variant"]}, "config_source": "asked for"}
        choice = _dispatch(variant, config or {}).look_up(*inputs)
        return {"config": {"variant": choice.variant}, "config_source": choice.source}
    if config is not None:
        return {"config": dict(config), "config_source": "asked for"}
    if not variant.tunable:
        return {}
    choice = variant.tunable.look_up(*inputs)
    return {"config": dict(choice.config), "config_source": choice.source}


def _dispatch(variant: Variant, config: Mapping) -> Dispatch:
    dispatch = variant.op.dispatch
    return dispatch.by_table(config["table"]) if "table" in config else dispatch


def _handing_on(dispatch: Dispatch, name: str | None) -> Callable:
    if name is not None:
        return dispatch.behind_look_up(name)

    def dispatched(*inputs):
        return dispatch.function(*inputs)(*inputs)

    return dispatched


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, shape and strides in memory of its own."""
    storage = tensor.untyped_storage().clone()
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(
        storage, tensor.storage_offset(), tensor.shape, tensor.stride())
