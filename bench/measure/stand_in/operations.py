"""Operations of torch's on the stand-in's tensors, which lie in host memory that is a
device's.

torch computes each operation at once, after what its stream had to do; that is late
enough, for whoever reads a tensor by torch waits for it on CUDA too. What waits there
waits here, and no capture can hold it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from batchline.bench.measure.stand_in.devices import (
    Device,
    home,
    host_only,
    is_pinned,
    of_index,
)
from batchline.bench.measure.stand_in.products import ONLY_ON_CUDA
from batchline.bench.measure.stand_in.timeline import BYTES_PER_S, OPERATION_S

_aten = torch.ops.aten
_EMPTY = {
    _aten.empty,
    _aten.empty_like,
    _aten.empty_strided,
    _aten.new_empty,
    _aten.new_empty_strided,
    _aten.empty_permuted,
}
_WAITS = {
    _aten._local_scalar_dense,
    _aten.equal,
    _aten.is_nonzero,
    _aten.nonzero,
    _aten.masked_select,
    _aten.unique_dim,
    _aten._unique2,
    _aten.repeat_interleave,
}
_SUMS = {_aten.sum, _aten.mean}
_PRODUCTS = {_aten.mm, _aten.bmm, _aten.addmm, _aten.baddbmm}
_CPU = torch.device("cpu")


class Operations(TorchDispatchMode):
    """Every operation of torch's on the devices' tensors."""

    ignores_kernels = True  # as bench.measure.checking.check.Poison: or an op's own call would be its baseline
    supports_higher_order_operators = True

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunction():
            return _operation(func, args, dict(kwargs or {}))


def _computed(func, args: tuple, kwargs: dict):
    return ONLY_ON_CUDA.get(func, func)(*args, **kwargs)


def _operation(func, args: tuple, kwargs: dict):
    tensors = list(_tensors((args, kwargs)))
    homes = {place for tensor in tensors if (place := home(tensor)) is not None}
    asked = kwargs.get("device")
    if asked is not None and asked.type == "cuda":
        kwargs["device"] = _CPU
        device = of_index(asked.index)
    elif homes and (asked is None or func.overloadpacket is _aten.new_empty_strided):
        kwargs |= (
            {"device": _CPU} if asked is not None else {}
        )  # by torch itself, for a gradient: where the other is
        device = of_index(min(homes))
    elif homes and asked.type == "cpu":
        return _to_host(func, args, kwargs, of_index(min(homes)))
    else:
        return func(*args, **kwargs)
    packet = func.overloadpacket
    if packet is _aten.copy_:
        return _copy(*args, **kwargs)
    if packet is not _aten._to_copy:
        _require_one_device(tensors, homes)
    if func.is_view:
        return func(*args, **kwargs)
    if packet in _WAITS or (
        packet is _aten.index
        and any(t.dtype in (torch.bool, torch.uint8) for t in args[1] if t is not None)
    ):
        device.queue.synchronize()
    if packet in _EMPTY:
        made = _placed(func(*args, **kwargs), device, copied=False)
        if device.queue.capture:
            _forget_before_each_replay(made, device)
        return made
    if device.queue.capture:
        return _captured(func, args, kwargs, device)
    device.queue.compute()
    cast = _cast_before_a_sum(packet, tensors, kwargs, device)
    returned = _placed(_computed(func, args, kwargs), device)
    read, written = (
        sum(tensor.nbytes for tensor in _tensors(tree))
        for tree in ((args, kwargs), returned)
    )
    seconds = _seconds(read + written) + device.write_back_s(
        read - _bytes_written_to(func, args, kwargs), written
    )
    device.queue.add(None, seconds, packet in _PRODUCTS)
    del cast
    return returned


def _seconds(nbytes: int) -> float:
    """Of an operation that reads and writes so many bytes."""
    return OPERATION_S + nbytes / BYTES_PER_S


def _cast_before_a_sum(
    packet, tensors: list[torch.Tensor], kwargs: dict, device: Device
):
    """The memory of the copy that CUDA's sums make of what they are to add in another
    dtype (ATen's ReduceOps).

    From fp16 and bf16 to fp32 they make none.
    """
    dtype = kwargs.get("dtype")
    if packet not in _SUMS or dtype in (None, tensors[0].dtype):
        return None
    if tensors[0].dtype.itemsize == 2 and dtype == torch.float32:
        return None
    return device.empty(tensors[0].numel() * dtype.itemsize)


def _tensors(tree) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for part in tree:
            yield from _tensors(part)
    elif isinstance(tree, dict):
        yield from _tensors(tuple(tree.values()))


def _require_one_device(tensors: list[torch.Tensor], homes: set[int]) -> None:
    found = {f"cuda:{index}" for index in homes}
    found |= {
        "cpu"
        for tensor in tensors
        if tensor.dim() and tensor.device == _CPU and home(tensor) is None
    }
    if len(found) > 1:
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(found))}!"
        )


def _placed(returned, device: Device, copied: bool = True):
    """What an operation returned, in the device's memory where it is new."""

    def place(tensor: torch.Tensor) -> torch.Tensor:
        if home(tensor) is not None or tensor.device != _CPU:
            return tensor
        new = _like(tensor, device)
        if copied:
            new.copy_(tensor)
        return new

    return tree_map_only(torch.Tensor, place, returned)


def _like(tensor: torch.Tensor, device: Device) -> torch.Tensor:
    """New memory on the device for such a tensor."""
    storage = tensor.untyped_storage()
    return torch.empty(0, dtype=tensor.dtype).set_(
        device.empty(len(storage)),
        tensor.storage_offset(),
        tensor.shape,
        tensor.stride(),
    )


def _captured(func, args: tuple, kwargs: dict, device: Device):
    """Compute nothing now: give memory for the results, which every replay writes to."""
    written = _written_to(func, args, kwargs)
    kept = [tensor.clone() for tensor in written]
    before = _computed(func, args, kwargs)
    for tensor, content in zip(written, kept):
        tensor.copy_(content)
    returned = _placed(before, device, copied=False)
    results = [
        (new, number)
        for number, (new, old) in enumerate(zip(_tensors(returned), _tensors(before)))
        if new is not old
    ]

    def compute() -> None:
        with host_only():
            again = list(_tensors(_computed(func, args, kwargs)))
            for new, number in results:
                new.copy_(again[number])

    nbytes = sum(
        tensor.nbytes for tensor in (*_tensors((args, kwargs)), *_tensors(before))
    )
    device.queue.add(compute, _seconds(nbytes), func.overloadpacket in _PRODUCTS)
    return returned


def _forget_before_each_replay(made: torch.Tensor, device: Device) -> None:
    """What a graph's own memory holds when a replay begins is nobody's: NaN, so that it
    must be written each time.
    """

    def compute() -> None:
        with host_only():
            made.untyped_storage().fill_(255)

    device.queue.add(compute, 0.0)


def _written_to(func, args: tuple, kwargs: dict) -> list[torch.Tensor]:
    """The tensors that the operation changes."""
    given = (
        dict(zip((argument.name for argument in func._schema.arguments), args)) | kwargs
    )
    return [
        tensor
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(given.get(argument.name))
    ]


def _bytes_written_to(func, args: tuple, kwargs: dict) -> int:
    return sum(tensor.nbytes for tensor in _written_to(func, args, kwargs))


def _copy(
    target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
) -> torch.Tensor:
    """copy_, between any two of the devices and the host."""
    to, of = home(target), home(source)
    queue = of_index(to if to is not None else of).queue
    on_host = next(
        (tensor for tensor, place in ((target, to), (source, of)) if place is None),
        None,
    )

    def compute() -> None:
        with host_only():
            target.copy_(source)

    if on_host is not None and not is_pinned(on_host) and on_host.dim():
        queue.require_not_captured()
    if on_host is target and not (non_blocking and is_pinned(target)):
        queue.synchronize()
        target.copy_(source)
        return target
    if queue.capture or (on_host is not None and non_blocking and is_pinned(on_host)):
        # It reads or writes the host's memory when it is its turn.
        queue.add(compute, _seconds(target.nbytes + source.nbytes))
        return target
    for place in {to, of} - {None}:
        of_index(place).queue.compute()
    target.copy_(source)
    queue.add(None, _seconds(target.nbytes + source.nbytes))
    return target


def _to_host(func, args: tuple, kwargs: dict, device: Device):
    """An operation on a device's tensor whose result is a CPU's."""
    device.queue.synchronize()
    returned = func(*args, **kwargs)
    return tree_map_only(
        torch.Tensor,
        lambda tensor: tensor.clone() if home(tensor) is not None else tensor,
        returned,
    )


def moved(
    tensor: torch.Tensor, to: int | None, non_blocking: bool = False
) -> torch.Tensor:
    """A tensor of the same values on a device, or for None on the CPU."""
    if home(tensor) == to:
        return tensor
    dense = torch.empty_like(tensor, device=_CPU)
    new = dense if to is None else _like(dense, of_index(to))
    return _copy(new, tensor.detach(), non_blocking)
