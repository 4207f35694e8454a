"""Numba's CUDA simulator with the threads of a block as coroutines, each run up to its
next barrier.

Its own are threads of the system, which it asks all the time whether they wait: ten
times slower. The order of the turns is drawn anew after each barrier, so that what
lacks one is soon wrong.
"""

from __future__ import annotations

import random
import sys
import threading
import types

import greenlet
import numpy as np
from numba.core.types import abstract
from numba.cuda.simulator import kernel, kernelapi

from batchline.kernels._cuda import ptx_simulated


class _Thread(greenlet.greenlet):
    """What the simulator's BlockThread is to the code that runs in it."""

    def __init__(
        self,
        manager: kernel.BlockManager,
        place: tuple[int, ...],
        block: tuple[int, ...],
    ):
        super().__init__()
        size = kernel.Dim3(*manager._block_dim)
        self._manager = manager
        self.threadIdx, self.blockIdx = kernel.Dim3(*place), kernel.Dim3(*block)
        self.thread_id = place[0] + size.x * (place[1] + size.y * place[2])

    def run(self, *arguments) -> None:
        self._manager._f(*arguments)

    def syncthreads(self) -> None:
        self.parent.switch()

    syncthreads_count = kernel.BlockThread.syncthreads_count
    syncthreads_and = kernel.BlockThread.syncthreads_and
    syncthreads_or = kernel.BlockThread.syncthreads_or


def _run(manager: kernel.BlockManager, block: tuple[int, ...], *arguments) -> None:
    """Run one block: all threads up to a barrier, then all up to the next. What one
    raises ends it.
    """
    live = [_Thread(manager, place, block) for place in np.ndindex(*manager._block_dim)]
    for thread in live:
        thread.switch(*arguments)
    while live := [thread for thread in live if not thread.dead]:
        _ORDER.shuffle(live)
        for thread in live:
            thread.switch()


def _shared_array(shared: kernelapi.FakeCUDAShared, shape, dtype, alignment=None):
    """cuda.shared.array: the same one for all threads of a block that ask for it in the
    same line.
    """
    if shape == 0 or alignment is not None:
        return _array(shared, shape, dtype, alignment)
    caller = sys._getframe(1)
    place = caller.f_code.co_filename, caller.f_lineno
    if (
        place not in shared._allocations
    ):  # its own looks for the line in the whole stack, each time
        shared._allocations[place] = _array(kernelapi.FakeCUDAShared(0), shape, dtype)
    return shared._allocations[place]


def _call_kernel(called: kernel.FakeCUDAKernel, *arguments):
    """A call of a kernel or, in one, of a device function: in a module that has the
    fake `cuda` already, a plain call.
    """
    if called._device and kernelapi._swap_refcount.get(id(called.fn.__globals__)):
        return called.fn(*arguments)
    return _call(called, *arguments)


def _cast(numba_type: abstract.Type, *arguments):
    """float32(x): what asks first whether x is a type takes most of the time of a small
    kernel.
    """
    if len(arguments) == 1 and isinstance(arguments[0], (int, float, np.generic)):
        return numba_type.cast_python_value(arguments[0])
    return _of_type(numba_type, *arguments)


_ORDER = random.Random(0)
_array = kernelapi.FakeCUDAShared.array
_call, _of_type = kernel.FakeCUDAKernel.__call__, abstract.Type.__call__


def install() -> None:
    """Put this in the place of the simulator's own."""
    kernel.BlockManager.run = _run
    kernelapi.FakeCUDAShared.array = _shared_array
    kernel.FakeCUDAKernel.__call__ = _call_kernel
    abstract.Type.__call__ = _cast
    # Who asks for the thread that it is in gets the coroutine.
    kernelapi.threading = ptx_simulated.threading = types.SimpleNamespace(
        **vars(threading) | {"current_thread": greenlet.getcurrent}
    )
