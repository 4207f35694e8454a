"""Which architecture a kernel is chosen and compiled for: the device's own, or the one
that a compilation asks for.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from contextvars import ContextVar

import torch

from batchline.kernels import architectures
from batchline.kernels.architectures import Architecture

_asked: ContextVar[Architecture | None] = ContextVar(
    "architecture that is compiled for", default=None
)


def target_of(device: torch.device) -> Architecture:
    """The architecture that a launch on tensors of this device is for.

    On a GPU it is the GPU's own. Launches on "cpu" are compiled or interpreted, and
    "meta" tensors are asked about: those are for what `compiling_for` says, or else for
    this machine's GPU ("meta") or sm_90 ("cpu", the same everywhere).

    Raises:
        ValueError: if the GPU is older than every architecture that is known.
    """
    if device.type == "cuda":
        return of_gpu(device.index)
    if asked := _asked.get():
        return asked
    if device.type == "meta" and torch.cuda.is_available():
        return of_gpu(0)
    return architectures.KNOWN[architectures.WITHOUT_GPU]


@functools.cache
def of_gpu(index: int | None) -> Architecture:
    """The architecture of a GPU by its index (None: the current one). It is cached: a
    launch has no time to ask the driver.
    """
    major, minor = torch.cuda.get_device_capability(index)
    return architectures.taken_for(10 * major + minor)


@contextlib.contextmanager
def compiling_for(number: int) -> Iterator[None]:
    """While active, launches on CPU tensors are for sm_`number`.

    Raises:
        ValueError: if that is not known.
    """
    token = _asked.set(architectures.known(number))
    try:
        yield
    finally:
        _asked.reset(token)


def multiprocessors(device: torch.device) -> int:
    """Streaming multiprocessors of the device, or for "meta" of this machine's GPU;
    else an H200's 132.

    So for "cpu", whatever is there: on CPU tensors kernels are compiled and
    interpreted, the same everywhere.
    """
    if device.type == "cpu" or not torch.cuda.is_available():
        return 132
    return torch.cuda.get_device_properties(
        device if device.type == "cuda" else 0
    ).multi_processor_count
