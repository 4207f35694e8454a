"""Every storage of torch's that is alive while a variant's launcher runs, as global
memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from batchline.bench.measure.emulator.memory import INITIALISED, GlobalMemory

_aten = torch.ops.aten
_ALLOCATORS = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.empty_permuted,
    _aten.new_empty,
    _aten.new_empty_strided,
}
_LARGE = 2**28  # bytes of a storage that is neither poisoned nor taken as a whole
POISON = 0xFF  # NaN in every floating dtype, -1 in integers


class Storages(TorchDispatchMode):
    """While active, what torch allocates is added to `memory`: uninitialised and
    poisoned where the operation leaves it so, else as written.

    A storage that the launcher gives up is held until the end: an allocator would hand
    its memory out again, and a kernel that still writes there would be noticed less.
    What torch's operations write counts as initialised; what they read is not checked.
    """

    ignores_kernels = True  # as bench.measure.checking.check.Poison

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __init__(self, memory: GlobalMemory):
        super().__init__()
        self.memory = memory
        self._held: dict[int, torch.UntypedStorage] = {}
        self._count = 0

    def add_input(self, tensor: torch.Tensor, name: str) -> None:
        """The storage of an input: all of it has been written. Of one of 256 MiB and
        more that is said of the tensor's own elements only.
        """
        self._note(tensor, name, len(tensor.untyped_storage()) < _LARGE)
        self._mark(tensor)

    def add_argument(self, tensor: torch.Tensor) -> None:
        """A launch's argument, which was perhaps made before the launcher was called."""
        self._note(tensor, "a tensor of the launcher's", True)

    def forget_moved(self) -> None:
        """Forget the places that storages had before they were resized."""
        for start, storage in list(self._held.items()):
            if storage.data_ptr() != start:
                del self._held[start]
                self.memory.forget(start)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in _tensors((args, kwargs)):
            self._note(tensor, "a tensor of the launcher's", True)
        returned = func(*args, **kwargs)
        self.forget_moved()
        is_empty = func.overloadpacket in _ALLOCATORS
        for tensor in _tensors(returned):
            self._note(tensor, str(func.overloadpacket), not is_empty)
        for tensor in _written_to(func, args, kwargs):
            self._note(tensor, str(func.overloadpacket), True)
            self._mark(tensor)
        return returned

    def _note(self, tensor: torch.Tensor, name: str, initialised: bool) -> None:
        """Add the tensor's storage where it is not known yet."""
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            return
        storage = tensor.untyped_storage()
        start, size_bytes = storage.data_ptr(), storage.nbytes()
        if not size_bytes or self.memory.at(start) is not None:
            return
        self._held[start] = storage
        self._count += 1
        dtype = str(tensor.dtype).removeprefix("torch.")
        shown = f"{name} {list(tensor.shape)} {dtype} (allocation {self._count})"
        self.memory.add(start, size_bytes, shown, initialised)
        if not initialised and size_bytes < _LARGE:
            storage.fill_(POISON)

    def _mark(self, tensor: torch.Tensor) -> None:
        """The tensor's elements have been written."""
        if not tensor.numel() or tensor.device.type != "cpu":
            return
        allocation = self.memory.at(tensor.data_ptr())
        if allocation is None or allocation.initialised:
            return
        size = tensor.element_size()
        written = np.lib.stride_tricks.as_strided(
            allocation.shadow[tensor.data_ptr() - allocation.start :],
            (*tensor.shape, size),
            (*(stride * size for stride in tensor.stride()), 1),
        )
        written |= INITIALISED


class Addresses(TorchFunctionMode):
    """Notes the storage of every tensor whose address is asked for: a launch may take
    no more of it than that, and the launcher may have it from an earlier call.
    """

    def __init__(self, storages: Storages):
        super().__init__()
        self._storages = storages

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.data_ptr:
            self._storages.add_argument(args[0])
        return func(*args, **(kwargs or {}))


def _tensors(tree) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))


def _written_to(func, args: tuple, kwargs: dict) -> Iterator[torch.Tensor]:
    """The tensors that the operation changes."""
    arguments = func._schema.arguments
    given = dict(zip((argument.name for argument in arguments), args)) | kwargs
    for argument in arguments:
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(given.get(argument.name))
