"""Launches of Triton's and Numba's kernels on the stand-in: queued, and interpreted on
the host when it is their turn.

As on CUDA a launch takes tensors of the current device alone: with another one's the
kernel breaks the context.

Launches that were computed before on the same bytes: an interpreter takes up to
seconds for what they gave.

A kernel's result depends on nothing but the memory that its arguments lead to: whole
blocks of it, and those whose addresses are written in them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

import numpy as np
import torch

from batchline.bench.measure.stand_in import memory
from batchline.bench.measure.stand_in.devices import DEVICES, current, host_only
from batchline.bench.measure.stand_in.timeline import BYTES_PER_S, KERNEL_S, Queue
from batchline.kernels import backends

_MOST_BYTES = 2**27  # of results that are kept
_MOST_WORDS = 4096  # of a block that is looked through for addresses


class Remembered:
    """What launches gave, the last ones used."""

    def __init__(self):
        self._known: OrderedDict[tuple, list[np.ndarray]] = OrderedDict()
        self._bytes = 0

    def compute(
        self, kernel: Hashable, words: Iterable[Hashable], interpret: Callable[[], None]
    ) -> None:
        """Do what `interpret` does to the memory that the addresses among a launch's
        `words` lead to.

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
            return
        interpret()
        self._known[key] = [block.copy() for block in blocks]
        self._bytes += sum(map(len, blocks))
        while self._bytes > _MOST_BYTES:
            _, contents = self._known.popitem(last=False)
            self._bytes -= sum(map(len, contents))


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
    """How many bytes launches have read and written, as far as the interpreter says:
    Triton's does.
    """

    def __init__(self):
        self.counted_bytes = 0
        self._known: dict[Hashable, int] = {}

    def seconds(self, launch: Hashable) -> float:
        """What such a launch moves takes so long, once one has been interpreted."""
        return self._known.get(launch, 0) / BYTES_PER_S

    @contextlib.contextmanager
    def of(self, launch: Hashable) -> Iterator[None]:
        """What is counted in the block is such a launch's; nothing is where its results
        were remembered.
        """
        before = self.counted_bytes
        yield
        if self.counted_bytes > before:
            self._known[launch] = self.counted_bytes - before


_TRAFFIC = _Traffic()


def install() -> None:
    """Take over the launches of the backends that are installed."""
    if backends.why_absent("triton") is None:
        _install_triton()
    if backends.why_absent("numba_cuda") is None:
        _install_numba()


def queue_launch(
    queue: Queue, kernel: Hashable, arguments: Iterable, interpret: Callable[[], None]
) -> None:
    """Queue a kernel; its context breaks if it is given memory of another device than
    the queue's.
    """
    words = list(_values_of(arguments))
    places = [memory.device_at(word) if type(word) is int else None for word in words]
    homes = set(places) - {None, memory.PINNED}
    launch = kernel, tuple(word for word, place in zip(words, places) if place is None)

    def compute() -> None:
        if homes - {queue.device}:
            raise RuntimeError(ILLEGAL)
        with host_only(), _TRAFFIC.of(launch):
            _REMEMBERED.compute(kernel, words, interpret)

    moving_s = _TRAFFIC.seconds(launch)
    seconds = KERNEL_S + moving_s + DEVICES[queue.device].write_back_s()
    queue.add(compute, seconds, is_product=moving_s < KERNEL_S)


def _is_on_device(arguments: Iterable) -> bool:
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
        elif hasattr(argument, "_ary"):  # Numba's array
            yield from _values_of((argument._ary,))
        elif isinstance(argument, backends.TensorDescriptor):
            yield from _values_of(vars(argument).values())
        else:
            yield argument


def _install_triton() -> None:
    from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder

    InterpreterBuilder.create_masked_load = _counted(
        InterpreterBuilder.create_masked_load, 0
    )
    InterpreterBuilder.create_masked_store = _counted(
        InterpreterBuilder.create_masked_store, 1
    )
    interpret = InterpretedFunction.run

    def run(self, *arguments, grid, warmup, **options):
        with host_only():
            given = *arguments, *options, *options.values()
            if warmup or not _is_on_device(given):
                return interpret(self, *arguments, grid=grid, warmup=warmup, **options)
            kernel = self, grid if isinstance(grid, tuple) else None
            return queue_launch(
                current().queue,
                kernel,
                given,
                lambda: interpret(
                    self, *arguments, grid=grid, warmup=warmup, **options
                ),
            )

    InterpretedFunction.run = run


def _counted(access: Callable, mask_place: int) -> Callable:
    """A load or store of the interpreter's, that counts the bytes that its mask lets
    through.

    `mask_place`: which of its operands behind the pointers the mask is.
    """

    @functools.wraps(access)
    def count(builder, pointers, *operands, **options):
        elements = int(np.count_nonzero(operands[mask_place].data))
        _TRAFFIC.counted_bytes += (
            elements * pointers.get_element_ty().primitive_bitwidth // 8
        )
        return access(builder, pointers, *operands, **options)

    return count


def _install_numba() -> None:
    from numba.cuda.simulator.kernel import FakeCUDAKernel

    quicken_the_simulator()
    configure, simulate = FakeCUDAKernel.__getitem__, FakeCUDAKernel.__call__

    class Launch:
        """A kernel with its grid, its block and its stream."""

        def __init__(self, kernel, grid, block, stream=0, shared_bytes=0):
            self._kernel, self._shape, self._stream = (
                kernel,
                (grid, block, stream, shared_bytes),
                stream,
            )

        def __call__(self, *arguments):
            def interpret() -> None:
                simulate(configure(self._kernel, self._shape), *arguments)

            with host_only():
                if _is_on_device(arguments):
                    grid, block, _, shared_bytes = self._shape
                    kernel = self._kernel, str((grid, block, shared_bytes))
                    queue_launch(_queue_of(self._stream), kernel, arguments, interpret)
                else:
                    interpret()

    FakeCUDAKernel.__getitem__ = lambda kernel, configuration: Launch(
        kernel, *configuration
    )
    backends.cuda.external_stream = int
    backends.cuda.as_cuda_array = _as_array


def _queue_of(stream: int) -> Queue:
    """The stream of that number; 0 is the current device's default one."""
    for device in DEVICES:
        if stream in device.queues:
            return device.queues[stream]
    return current().default


def _as_array(tensor: torch.Tensor, sync: bool = True):
    """numba.cuda.as_cuda_array: the tensor's memory, with its strides."""
    with host_only():
        return backends.cuda.cudadrv.devicearray.FakeCUDAArray(tensor.detach().numpy())


def quicken_the_simulator() -> None:
    """Make Numba's simulator fast in this process, where the library for that is
    installed.
    """
    if importlib.util.find_spec("greenlet"):
        from batchline.bench.measure.stand_in import simulator

        simulator.install()
