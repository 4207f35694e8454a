"""Tensors on the stand-in: what they say of where they are is as on CUDA, and what
moves them moves them.

Untyped storages on the stand-in: what Batchline asks of them, in the order of their
device's stream.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.overrides import TorchFunctionMode

from batchline.bench.measure.stand_in import memory
from batchline.bench.measure.stand_in.devices import (
    PINNED,
    Device,
    current,
    home,
    is_host_only,
    is_pinned,
    of_index,
)
from batchline.bench.measure.stand_in.operations import moved
from batchline.bench.measure.stand_in.timeline import OPERATION_S

_Storage = torch.UntypedStorage
_device_of_storage, _clone, _copy, _fill = (
    _Storage.device,
    _Storage.clone,
    _Storage.copy_,
    _Storage.fill_,
)


def _home(storage: torch.UntypedStorage) -> Device | None:
    """The device that it is on; None on the CPU, and while the host works on it
    (devices.host_only).
    """
    if is_host_only():
        return None
    place = memory.device_at(storage.data_ptr())
    return None if place in (None, memory.PINNED) else of_index(place)


def _now(*devices: Device | None) -> None:
    """Let what the devices' streams had to do be done; then comes one more operation."""
    for device in filter(None, devices):
        device.queue.require_not_captured()
        device.queue.compute()
        device.queue.add(None, OPERATION_S)


def device(storage: torch.UntypedStorage) -> torch.device:
    found = _home(storage)
    return (
        torch.device("cuda", found.index)
        if found
        else _device_of_storage.__get__(storage)
    )


def clone(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    found = _home(storage)
    if found is None:
        return _clone(storage)
    _now(found)
    return _copy(found.empty(len(storage)), storage)


def copy_(
    storage: torch.UntypedStorage,
    source: torch.UntypedStorage,
    non_blocking: bool = False,
):
    _now(_home(storage), _home(source))
    return _copy(storage, source)


def fill_(storage: torch.UntypedStorage, value: int) -> torch.UntypedStorage:
    _now(_home(storage))
    return _fill(storage, value)


def cpu(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    found = _home(storage)
    if found is None:
        return storage
    found.queue.synchronize()
    return _copy(_Storage(len(storage)), storage)


def install() -> None:
    _Storage.device = property(device)
    _Storage.clone, _Storage.copy_, _Storage.fill_, _Storage.cpu = (
        clone,
        copy_,
        fill_,
        cpu,
    )


class Devices(TorchFunctionMode):
    """What tensors say of where they are, and what moves them."""

    ignores_kernels = True  # as bench.measure.stand_in.operations.Operations: or an op's own call would be its baseline

    def __torch_function__(self, func, types, args=(), kwargs=None):
        handler = _HANDLED.get(func)
        return (
            handler(func, *args, **(kwargs or {}))
            if handler
            else func(*args, **(kwargs or {}))
        )


def _handled(*names: str, of=torch.Tensor) -> Callable:
    def register(handler: Callable) -> Callable:
        for name in names:
            function = getattr(of, name)
            _HANDLED[function if callable(function) else function.__get__] = handler
        return handler

    return register


_HANDLED: dict[object, Callable] = {}


@_handled("device")
def _device(get, tensor):
    place = home(tensor)
    return get(tensor) if place is None else torch.device("cuda", place)


@_handled("is_cuda")
def _is_cuda(get, tensor):
    return home(tensor) is not None


@_handled("is_cpu")
def _is_cpu(get, tensor):
    return get(tensor) and home(tensor) is None


@_handled("get_device")
def _get_device(function, tensor):
    place = home(tensor)
    return -1 if place is None else place


@_handled("is_pinned")
def _is_pinned(function, tensor, *device):
    return is_pinned(tensor)


@_handled("pin_memory")
def _pin_memory(function, tensor, *device):
    if home(tensor) is not None:
        raise RuntimeError(
            f"cannot pin '{tensor.type()}' only dense CPU tensors can be pinned"
        )
    pinned = torch.empty(0, dtype=tensor.dtype).set_(
        PINNED.storage(tensor.nbytes, 0), 0, tensor.shape
    )
    return pinned.copy_(tensor)


@_handled("numpy", "__array__")
def _numpy(function, tensor, *args, **kwargs):
    if (place := home(tensor)) is not None:
        raise TypeError(
            f"can't convert cuda:{place} device type tensor to numpy. Use Tensor.cpu() to copy the tensor "
            "to host memory first."
        )
    return function(tensor, *args, **kwargs)


@_handled("tolist")
def _tolist(function, tensor):
    return function(moved(tensor, None))


@_handled("cpu")
def _cpu(function, tensor, *args, **kwargs):
    return moved(tensor, None)


@_handled("cuda")
def _cuda(function, tensor, device=None, non_blocking=False, **kwargs):
    return moved(tensor, _index(device), non_blocking)


@_handled("to")
def _to(function, tensor, *args, **kwargs):
    args = list(args)
    if "other" in kwargs:
        args.insert(0, kwargs.pop("other"))
    target = kwargs.pop("device", None)
    if args and isinstance(args[0], torch.Tensor):
        other = args.pop(0)
        place = home(other)
        target, kwargs["dtype"] = (
            other.device if place is None else torch.device("cuda", place)
        ), other.dtype
    elif args and (
        isinstance(args[0], (str, torch.device))
        or type(args[0]) is int
        or args[0] is None
    ):
        target = args.pop(0)
    if target is None or torch.device(target).type == "meta":
        return (
            function(tensor, *args, **kwargs)
            if target is None
            else function(tensor, target, *args, **kwargs)
        )
    place = _index(target)
    if home(tensor) != place:
        tensor = moved(tensor, place, bool(kwargs.get("non_blocking")))
    return function(tensor, *args, **kwargs) if args or kwargs else tensor


@_handled("tensor", "as_tensor", of=torch)
def _tensor(function, data, *args, device=None, **kwargs):
    if isinstance(data, torch.Tensor) and device is None:
        return function(data, *args, **kwargs)
    made = function(data, *args, **kwargs)
    return (
        made
        if device is None or torch.device(device).type == "meta"
        else moved(made, _index(device))
    )


@_handled("new_tensor")
def _new_tensor(function, tensor, data, *args, device=None, **kwargs):
    made = function(tensor, data, *args, **kwargs)
    return moved(made, home(tensor) if device is None else _index(device))


def _index(device) -> int | None:
    """The index of a device of CUDA; None for the CPU."""
    if device is None:
        return current().index
    device = (
        torch.device("cuda", device)
        if isinstance(device, int)
        else torch.device(device)
    )
    if device.type == "cpu":
        return None
    return current().index if device.index is None else device.index
