"""The stand-in's devices: two of one model, each with its memory and its streams; one
is current.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import _disable_current_modes

from batchline.bench.measure.stand_in import memory
from batchline.bench.measure.stand_in.timeline import Queue
from batchline.kernels.architectures import KNOWN, WITHOUT_GPU

COUNT = 2
_WRITTEN_BACK_BYTES_PER_S = 1e8  # as slow as shows beside the time of a kernel
ARCHITECTURE = KNOWN[WITHOUT_GPU]
PROPERTIES = SimpleNamespace(
    name="stand-in GPU, no time here was measured",
    major=ARCHITECTURE.capability[0],
    minor=ARCHITECTURE.capability[1],
    total_memory=memory.CAPACITY_BYTES,
    multi_processor_count=2,
    L2_cache_size=2**20,
    shared_memory_per_block_optin=ARCHITECTURE.shared_bytes_per_block,
    shared_memory_per_multiprocessor=ARCHITECTURE.shared_bytes_per_sm,
    max_threads_per_multi_processor=ARCHITECTURE.warps_per_sm
    * ARCHITECTURE.threads_per_warp,
    warp_size=ARCHITECTURE.threads_per_warp,
    regs_per_multiprocessor=ARCHITECTURE.registers_per_sm,
    uuid="00000000-0000-0000-0000-000000000000",
)


class Device:
    """One of them."""

    def __init__(self, index: int):
        self.index = index
        self.pool = memory.Pool(index)
        self.default = Queue(index)
        self.queue = self.default  # torch's current stream
        self.queues = {self.default.number: self.default}
        self._unwritten_bytes = 0  # what its L2 holds and its memory does not have yet

    def new_queue(self) -> Queue:
        queue = Queue(self.index)
        self.queues[queue.number] = queue
        return queue

    def write_back_s(self, read_bytes: int = 0, written_bytes: int = 0) -> float:
        """Seconds that work takes in addition, to write back what was written before it; it
        reads and writes so much.

        Work that reads as much as the L2 holds has that written back in its own time.
        """
        seconds = self._unwritten_bytes / _WRITTEN_BACK_BYTES_PER_S
        self._unwritten_bytes = min(written_bytes, PROPERTIES.L2_cache_size)
        return 0.0 if read_bytes >= PROPERTIES.L2_cache_size else seconds

    def synchronize(self) -> None:
        for queue in self.queues.values():
            queue.synchronize()

    def finish(self) -> None:
        """Do all that is queued: before memory goes back to the host, for it may be
        read until then.
        """
        for queue in self.queues.values():
            queue.compute()

    def empty(self, nbytes: int) -> torch.UntypedStorage:
        """New memory on the current stream; of a graph's own while it is captured."""
        graph = self.queue.capture
        if graph:
            self.pool.graphs.add(graph)
        else:
            self.queue.compute()  # what used the memory before
        return self.pool.storage(
            nbytes, (graph or self.queue).number, before_freeing=self.finish
        )


DEVICES = [Device(index) for index in range(COUNT)]
PINNED = memory.Pool(memory.PINNED)


class Host:
    """How many blocks of host_only this is in."""

    depth = 0


class Current:
    """Which device is current."""

    index = 0


def current() -> Device:
    return DEVICES[Current.index]


def of_index(index: int | None) -> Device:
    return current() if index is None else DEVICES[index]


def home(tensor: torch.Tensor) -> int | None:
    """The index of the device that the tensor is on; None for a CPU's and for one
    without memory.
    """
    if tensor.device.type != "cpu":
        return None
    place = memory.device_at(tensor.untyped_storage().data_ptr())
    return None if place == memory.PINNED else place


def is_pinned(tensor: torch.Tensor) -> bool:
    return memory.device_at(tensor.untyped_storage().data_ptr()) == memory.PINNED


@contextlib.contextmanager
def host_only() -> Iterator[None]:
    """torch as it is, without the stand-in's part in it."""
    Host.depth += 1
    try:
        with torch._C.DisableTorchFunction(), _disable_current_modes():
            yield
    finally:
        Host.depth -= 1


def is_host_only() -> bool:
    return Host.depth > 0
