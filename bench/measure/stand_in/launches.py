"""Launches of Triton's and Numba's kernels on the stand-in: queued, and executed on the
host when it is their turn.

As on CUDA a launch takes tensors of the current device alone: with another one's the
kernel breaks the context.

What a launch gave before on the same bytes is remembered: many are made over and over.

A kernel's result depends on nothing but the memory that its arguments lead to: whole
blocks of it, and those whose addresses are written in them.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

import numpy as np
import torch

from batchline.bench.measure.stand_in import memory
from batchline.bench.measure.stand_in.devices import DEVICES, current, host_only
from batchline.bench.measure.stand_in.timeline import BYTES_PER_S, KERNEL_S, Queue

_MOST_BYTES = 2**27  # of results that are kept
_MOST_WORDS = 4096  # of a block that is looked through for addresses


class Remembered:
    """What launches gave, the last ones used."""

    def __init__(self):
        self._known: OrderedDict[tuple, list[np.ndarray]] = OrderedDict()
        self._bytes = 0

    def compute(
        self,
        kernel: Hashable,
        words: Iterable[Hashable],
        execute: Callable[[list[np.ndarray]], int],
    ) -> int | None:
        """Do what `execute` does to the memory that the addresses among a launch's
        `words` lead to: it is given these blocks, and returns the bytes that it moves.
        None where what it gave was remembered.

        `kernel` and the other words are all else that its result depends on.
        """
        words = list(words)
        blocks = _led_to(word for word in words if type(word) is int)
        places = {block.ctypes.data: number for number, block in enumerate(blocks)}
        key = (
            kernel,
            tuple(_by_place(word, places) for word in words),
            tuple(
                (len(block), hashlib.blake2b(block, digest_size=16).digest())
                for block in blocks
            ),
        )
        if key in self._known:
            self._known.move_to_end(key)
            for block, content in zip(blocks, self._known[key]):
                block[:] = content
            return None
        moved_bytes = execute(blocks)
        self._known[key] = [block.copy() for block in blocks]
        self._bytes += sum(map(len, blocks))
        while self._bytes > _MOST_BYTES:
            _, contents = self._known.popitem(last=False)
            self._bytes -= sum(map(len, contents))
        return moved_bytes


def _led_to(addresses: Iterable[int]) -> list[np.ndarray]:
    """The blocks with these addresses, and those with the addresses that are written in
    them, in the order found.
    """
    found: dict[int, np.ndarray] = {}
    waiting = deque(addresses)
    while waiting:
        block = memory.block_at(waiting.popleft())
        if block is None or block.ctypes.data in found:
            continue
        found[block.ctypes.data] = block
        written = block[: 8 * _MOST_WORDS].view(np.int64)
        waiting += map(int, written[memory.may_be_addresses(written)])
    return list(found.values())


def _by_place(word: Hashable, places: Mapping[int, int]) -> Hashable:
    """An address as the number of its block and where in that; any other word as it is."""
    block = memory.block_at(word) if type(word) is int else None
    return (
        word
        if block is None
        else ("at", places[block.ctypes.data], word - block.ctypes.data)
    )


ILLEGAL = "an illegal memory access was encountered"
_REMEMBERED = Remembered()


class _Traffic:
    """How many bytes each launch moved when it was executed."""

    def __init__(self):
        self._known: dict[Hashable, int] = {}

    def seconds(self, launch: Hashable) -> float:
        """What such a launch moves takes so long, once one has been executed."""
        return self._known.get(launch, 0) / BYTES_PER_S

    def note(self, launch: Hashable, moved_bytes: int | None) -> None:
        if moved_bytes:
            self._known[launch] = moved_bytes


_TRAFFIC = _Traffic()


def queue_launch(
    queue: Queue,
    kernel: Hashable,
    arguments: Iterable,
    execute: Callable[[list[np.ndarray]], int],
) -> None:
    """Queue a kernel; its context breaks if it is given memory of another device than
    the queue's. `execute` is as for `Remembered.compute`.
    """
    words = list(_values_of(arguments))
    places = [memory.device_at(word) if type(word) is int else None for word in words]
    homes = set(places) - {None, memory.PINNED}
    launch = kernel, tuple(word for word, place in zip(words, places) if place is None)

    def compute() -> None:
        if homes - {queue.device}:
            raise RuntimeError(ILLEGAL)
        with host_only():
            _TRAFFIC.note(launch, _REMEMBERED.compute(kernel, words, execute))

    moving_s = _TRAFFIC.seconds(launch)
    seconds = KERNEL_S + moving_s + DEVICES[queue.device].write_back_s()
    queue.add(compute, seconds, is_product=moving_s < KERNEL_S)


def is_on_device(arguments: Iterable) -> bool:
    return any(
        memory.device_at(word) is not None
        for word in _values_of(arguments)
        if type(word) is int
    )


def _values_of(arguments: Iterable) -> Iterator[Hashable]:
    """What a launch is given, as numbers and words: of arrays the address and the
    layout.
    """
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield from (
                argument.data_ptr(),
                argument.dtype,
                *argument.shape,
                *argument.stride(),
            )
        elif isinstance(argument, np.ndarray):
            yield from (
                argument.ctypes.data,
                argument.dtype,
                *argument.shape,
                *argument.strides,
            )
        elif isinstance(argument, (tuple, list)):
            yield from _values_of(argument)
        elif isinstance(getattr(argument, "base", None), torch.Tensor):  # a descriptor
            yield from _values_of(vars(argument).values())
        else:
            yield argument


def queue_of(stream: int) -> Queue:
    """The stream of that number; 0 is the current device's default one."""
    for device in DEVICES:
        if stream in device.queues:
            return device.queues[stream]
    return current().default
