"""One problem as it is measured: its inputs, what they must give, and each variant as it is launched on them."""
from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace

from bench.measure import capacity, check
from bench.measure.task import Task
from bench.measure.values import Values
from kernels.backends import DISPATCH
from kernels.op import Op, Tensors, Variant

_ENOUGH_INPUTS = 2  # copies that a cold clock takes in turn, where one would fit the cache beside its outputs


class Problem:
    """A task's inputs, which all its entries share, and what they must give.

    `values` are at first the same in every run, so that the errors of two runs can be compared; then they change.
    """

    def __init__(self, op: Op, task: Task, device: str):
        self.where = f"on {task.scenario} at B={task.batch}"

        def draw(seed: int) -> Tensors:
            return op.make_inputs(task.scenario, task.batch, task.dtype, device, seed)

        seed = zlib.crc32(f"{op.name}/{task.scenario}/{task.dtype}/B{task.batch}".encode())
        self.values = Values(op, draw(seed), draw)

    @property
    def inputs(self) -> Tensors:
        return self.values.inputs

    @property
    def input_bytes(self) -> int:
        return capacity.storage_bytes(self.inputs)

    def copies(self, cache_bytes: int, count: int = _ENOUGH_INPUTS) -> list[Tensors]:
        """The inputs, or `count` sets of the same values where they are small enough to survive in such a cache."""
        return self.values.sets(1 if self.input_bytes > cache_bytes else count)

    def call(self, variant: Variant) -> tuple[Tensors, check.Accuracy]:
        """The variant's outputs, checked."""
        return check.checked_call(variant, self.inputs, self.values.expected(), self.where)

    def check(self, variant: Variant, returned, how: str) -> None:
        """Raise NotMeasured if what the variant returned for the present values is wrong; `how` says where it is from.

        A bound of the variant's own is asked about inputs that it was never given.
        """
        expected = check.held_to(variant, self.values.true, self.values.expected())
        check.check_outputs(returned, self.inputs, expected, f"{self.where}, {how}")


def launched_with(variant: Variant, config: Mapping | None) -> Variant:
    """The variant with a configuration that it would not choose itself; as it is for None.

    What hands on to another looks up all the same, and then hands on to the one that is asked for.
    """
    if config is None:
        return variant
    if variant.backend == DISPATCH:
        return replace(variant, function=variant.op.dispatch.behind_look_up(config["variant"]))

    def function(*inputs):
        with variant.tunable.forced(config):
            return variant.function(*inputs)

    function.__name__ = variant.name
    return replace(variant, function=function)


def configured(variant: Variant, inputs: Tensors, config: Mapping | None = None) -> dict:
    """The configuration that a variant takes for these inputs, and where it has it from; {} if it has but one.

    Of what hands on to another variant it is that one.
    """
    if variant.backend == DISPATCH and config is None:
        choice = variant.op.dispatch.look_up(*inputs)
        return {"config": {"variant": choice.variant}, "config_source": choice.source}
    if config is not None:
        return {"config": dict(config), "config_source": "asked for"}
    if not variant.tunable:
        return {}
    choice = variant.tunable.look_up(*inputs)
    return {"config": dict(choice.config), "config_source": choice.source}
