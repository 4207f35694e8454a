"""A GPU as launchers see it, with none at hand: tensors of shapes alone that say they
lie on it, and its properties.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

from batchline.kernels import target

_DEVICE = torch.device("cuda", 0)


@dataclass(frozen=True)
class Gpu:
    """What a launcher asks of a GPU. `architecture` is 90 for sm_90; `shared_bytes` the
    most that a block can have.
    """

    name: str
    architecture: int
    multiprocessors: int
    shared_bytes: int

    @property
    def capability(self) -> tuple[int, int]:
        return divmod(self.architecture, 10)


H200 = Gpu("NVIDIA H200", 90, 132, 227 * 1024)


def this_gpu() -> Gpu:
    """This machine's first GPU."""
    found = torch.cuda.get_device_properties(0)
    return Gpu(
        found.name,
        10 * found.major + found.minor,
        found.multi_processor_count,
        found.shared_memory_per_block_optin,
    )


@contextlib.contextmanager
def pretended(gpu: Gpu) -> Iterator[None]:
    """In the block, tensors of device "meta" say that they are on this GPU, and
    torch.cuda answers for it.

    Nothing is allocated: whoever asks for a tensor on "cuda" gets one on "meta". It
    takes no CUDA build of torch.
    """
    properties = SimpleNamespace(
        name=gpu.name,
        major=gpu.capability[0],
        minor=gpu.capability[1],
        multi_processor_count=gpu.multiprocessors,
        shared_memory_per_block_optin=gpu.shared_bytes,
    )
    stream = SimpleNamespace(cuda_stream=0)
    answers = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "current_stream": stream,
        "is_current_stream_capturing": False,
        "get_device_properties": properties,
        "get_device_capability": gpu.capability,
        "get_device_name": gpu.name,
    }
    before = {name: getattr(torch.cuda, name) for name in answers}
    target.of_gpu.cache_clear()  # it keeps what another GPU is
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *args, answer=answer: answer)
    try:
        with _OnGpu():
            yield
    finally:
        target.of_gpu.cache_clear()
        for name, function in before.items():
            setattr(torch.cuda, name, function)


class _OnGpu(TorchFunctionMode):
    """What tensors of device "meta" say of where they are, and where tensors for a GPU
    are made.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if handler := _HANDLED.get(func):
            return handler(func, *args)
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is torch.baddbmm and "out_dtype" in (kwargs or {}):
            # PyTorch 2.13 can't tell the shape of that without a GPU. It is the sum's.
            return args[0]
        named = {name: _not_on_gpu(value) for name, value in (kwargs or {}).items()}
        return func(*map(_not_on_gpu, args), **named)


def _not_on_gpu(argument):
    """The argument, with "meta" where it names a GPU."""
    if isinstance(argument, torch.device) and argument.type == "cuda":
        return torch.device("meta")
    return (
        "meta"
        if isinstance(argument, str) and argument.partition(":")[0] == "cuda"
        else argument
    )


def _device(get, tensor):
    device = get(tensor)
    return _DEVICE if device.type == "meta" else device


def _is_cuda(get, tensor):
    return torch.Tensor.device.__get__(tensor).type == "meta"


def _is_meta(get, tensor):
    return False


def _pin_memory(function, tensor, *device):
    return tensor


_HANDLED: dict[object, Callable] = {
    torch.Tensor.device.__get__: _device,
    torch.Tensor.is_cuda.__get__: _is_cuda,
    torch.Tensor.is_meta.__get__: _is_meta,
    torch.Tensor.pin_memory: _pin_memory,
}
