"""Untyped storages on the stand-in: what Batchline asks of them, in the order of their
device's stream.
"""

from __future__ import annotations

import torch

from batchline.bench.measure.stand_in import memory
from batchline.bench.measure.stand_in.devices import Device, is_host_only, of_index
from batchline.bench.measure.stand_in.timeline import OPERATION_S

_Storage = torch.UntypedStorage
_device, _clone, _copy, _fill = (
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
    return torch.device("cuda", found.index) if found else _device.__get__(storage)


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
