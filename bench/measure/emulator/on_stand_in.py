"""Launches of Triton's and Numba's kernels on the stand-in GPU: compiled for its
architecture, queued, and executed in emulation when it is their turn.

What a check finds breaks the context, as an illegal access does on CUDA.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable

from batchline.bench.measure.compiled.compiler import no_device
from batchline.bench.measure.emulator.capture import (
    EmulatedDriver,
    bind_numba,
    bind_triton,
    scratch,
)
from batchline.bench.measure.emulator.execution import LATE, execute
from batchline.bench.measure.emulator.launch import (
    KernelLaunch,
    require_arguments,
    require_launchable,
)
from batchline.bench.measure.emulator.memory import GlobalMemory
from batchline.bench.measure.stand_in import launches
from batchline.bench.measure.stand_in.devices import ARCHITECTURE, current, host_only
from batchline.kernels import backends

_SECTOR_BYTES = 32


def install() -> None:
    """Take over the launches of the backends that are installed."""
    if backends.why_absent("triton") is None:
        _install_triton()
    if backends.why_absent("numba_cuda") is None:
        _install_numba()


def _install_triton() -> None:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    compile_and_launch = JITFunction.run
    driver.set_active(EmulatedDriver(ARCHITECTURE.number))

    def run(self, *arguments, grid, warmup, **options):
        with host_only():
            kernel = compile_and_launch(
                self, *arguments, grid=grid, warmup=True, **options
            )
            if warmup:
                return kernel
            given = *arguments, *options, *options.values()
            _require_on_device(given)
            bound = bind_triton(
                self, kernel, grid, arguments, options, ARCHITECTURE.number
            )
            if bound is not None:
                require_launchable(bound.launch, bound.entry)
                identity = self, grid if isinstance(grid, tuple) else None
                launches.queue_launch(
                    current().queue,
                    identity,
                    given,
                    functools.partial(_execute_triton, bound, (arguments, options)),
                )
            return kernel

    JITFunction.run = run


def _require_on_device(given: Iterable) -> None:
    if not launches.is_on_device(given):
        raise ValueError(
            "Pointer argument cannot be accessed from Triton (cpu tensor?)"
        )


def _execute_triton(bound, held, blocks) -> int:
    """`held` are the arguments, so that their memory stays theirs until then."""
    memory = _memory_of(blocks)
    with scratch(memory, bound.scratch_bytes, bound.scratch_align) as address:
        launch = bound.with_scratch(address)
        require_arguments(launch, bound.entry)
        return _execute(launch, memory)


def _install_numba() -> None:
    from numba.cuda.dispatcher import CUDADispatcher

    from batchline.kernels._cuda import launch

    CUDADispatcher.__getitem__ = lambda kernel, configuration: _Launch(
        kernel, configuration
    )
    # Both ask the driver.
    launch._allow_shared_bytes = lambda kernel, numbers, device_index: None
    backends.cuda.external_stream = int
    backends.cuda.defer_cleanup = contextlib.nullcontext  # it asks the driver
    backends.cuda.as_cuda_array = _as_array


class _Launch:
    """A kernel with its grid, its block and its stream."""

    def __init__(self, kernel, configuration: tuple):
        self._kernel, self._configuration = kernel, configuration

    def __call__(self, *arguments) -> None:
        with host_only():
            _require_on_device(arguments)
            with no_device(ARCHITECTURE.number):
                launch, entry = bind_numba(
                    self._kernel, self._configuration, arguments, ARCHITECTURE.number
                )
            require_arguments(launch, entry)
            require_launchable(launch, entry)
            grid, block, *rest = self._configuration
            identity = self._kernel, str((grid, block, rest[1:]))
            launches.queue_launch(
                launches.queue_of(rest[0] if rest else 0),
                identity,
                arguments,
                functools.partial(_execute_numba, launch, arguments),
            )


def _execute_numba(launch: KernelLaunch, held, blocks) -> int:
    return _execute(launch, _memory_of(blocks))


def _as_array(tensor, sync: bool = True):
    """numba.cuda.as_cuda_array: the tensor's memory, with its strides."""
    with host_only():
        return tensor.detach().numpy()


def _memory_of(blocks: Iterable) -> GlobalMemory:
    """The blocks, uint8 arrays, as global memory; what was written in them is not
    known.
    """
    memory = GlobalMemory()
    for block in blocks:
        memory.add(block.ctypes.data, len(block), "a block of the stand-in's", True)
    return memory


def _execute(launch: KernelLaunch, memory: GlobalMemory) -> int:
    """Execute a launch; the bytes of global memory that it moved.

    Raises:
        RuntimeError: for the first fault that was found.
    """
    execution = execute(launch, memory, LATE)
    for found in execution.findings:
        if found.is_fault:
            raise RuntimeError(f"{launches.ILLEGAL}: {launch.kernel}: {found}")
    return execution.counts.sectors * _SECTOR_BYTES
