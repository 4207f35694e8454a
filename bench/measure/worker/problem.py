"""One problem as it is measured: its inputs, and what they must give."""

from __future__ import annotations

import itertools
import zlib

from batchline.bench.measure.checking import accuracy, check
from batchline.bench.measure.machine import memory
from batchline.bench.measure.timing.values import Values
from batchline.bench.measure.worker.task import Task
from batchline.kernels.op import Op, Tensors, Variant

_ENOUGH_INPUTS = 2  # copies that a cold clock takes in turn, where one would fit the cache beside its outputs
# Of outputs that were right, kept to compare later ones with. On a GPU, where memory is
# short, judging takes little.
_MOST_KEPT_BYTES = {"cpu": 2**29, "cuda": 2**24}


class Problem:
    """A task's inputs, which all its entries share, and what they must give.

    `values` are at first the same in every run, so that the errors of two runs can be
    compared; then they change.
    """

    def __init__(self, op: Op, task: Task, device: str):
        self.where = f"on {task.scenario} at B={task.batch}"

        def draw(seed: int) -> Tensors:
            return op.make_inputs(task.scenario, task.batch, task.dtype, device, seed)

        seed = zlib.crc32(
            f"{op.name}/{task.scenario}/{task.dtype}/B{task.batch}".encode()
        )
        self.values = Values(op, draw(seed), draw)
        self.values.expected()  # or there is no room to check anything
        self._most_kept_bytes = _MOST_KEPT_BYTES[device]
        self._right: dict[str, Tensors] = (
            {}
        )  # each entry's right outputs on the values of which this is expected:
        self._right_of: check.Expected | None = None

    @property
    def inputs(self) -> Tensors:
        return self.values.inputs

    @property
    def input_bytes(self) -> int:
        return memory.storage_bytes(self.inputs)

    def copies(self, cache_bytes: int, count: int = _ENOUGH_INPUTS) -> list[Tensors]:
        """The inputs, or `count` sets of the same values where they are small enough to
        survive in such a cache.
        """
        return self.values.sets(1 if self.input_bytes > cache_bytes else count)

    def call(self, variant: Variant) -> tuple[Tensors, check.Accuracy]:
        """The variant's outputs, checked."""
        return check.checked_call(
            variant, self.inputs, self.values.expected(), self.where
        )

    def tolerance_multiple(self, variant: Variant) -> float:
        """How many times the op's own error bound the variant's is here; 1 where it
        declares none.
        """
        if variant.tolerance is None:
            return 1.0
        return check.tolerance_multiple(
            check.held_to(variant, self.inputs, self.values.expected()),
            self.values.expected(),
        )

    def require_right(self, label: str, variant: Variant, returned, how: str) -> None:
        """Raise NotMeasured if what an entry returned for the present values is wrong;
        `how` says where it is from.

        Bits that were right for these values once are. A bound of the variant's own is
        asked about inputs that it was never given.
        """
        outputs = self.plain_outputs(variant, returned, how)
        if self._right_of is not self.values.expected():
            self._right, self._right_of = {}, self.values.expected()
        if label in self._right and check.are_same(outputs, self._right[label]):
            accuracy.require_own_memory(outputs, self.inputs, f"{self.where}, {how}")
            return
        expected = check.held_to(variant, self.values.true, self.values.expected())
        check.check_outputs(outputs, self.inputs, expected, f"{self.where}, {how}")
        self._keep(label, outputs)

    def plain_outputs(self, variant: Variant, returned, how: str) -> Tensors:
        """What a variant returned as plain tensors; raises NotMeasured if it is
        anything else (bench.measure.checking.accuracy).
        """
        count = (
            len(self.values.expected().outputs)
            if variant.gives is None
            else variant.gives
        )
        return accuracy.plain_outputs(
            returned, self.inputs, count, f"{self.where}, {how}"
        )

    def _keep(self, label: str, outputs: Tensors) -> None:
        """A copy of right outputs, where all that are kept are not too many bytes, and
        there is room.
        """
        kept = (*outputs, *itertools.chain(*self._right.values()))
        if sum(output.nbytes for output in kept) <= self._most_kept_bytes:
            try:
                self._right[label] = tuple(output.clone() for output in outputs)
            except RuntimeError as error:
                if not memory.is_out_of_memory(error):
                    raise
