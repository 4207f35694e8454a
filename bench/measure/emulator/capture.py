"""A variant's own launcher, with each launch executed on the CPU tensors' memory.

The launcher runs as it does when its kernels are compiled without a GPU
(bench.measure.compiled.compiler); but each launch is bound as Triton's and Numba's own
launchers bind it, and executed at once, so that later launches and the launcher's torch
code see what it wrote.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from batchline.bench.measure.compiled.compiler import (
    NoGpu,
    no_device,
    numba_config,
    triton_config,
)
from batchline.bench.measure.emulator.launch import (
    Entry,
    KernelLaunch,
    LaunchRefused,
    Three,
    read_entry,
    require_arguments,
    require_launchable,
)
from batchline.bench.measure.emulator.memory import GlobalMemory
from batchline.bench.measure.emulator.storages import POISON, Addresses, Storages
from batchline.kernels.op import Tensors, Variant
from batchline.kernels.target import compiling_for

Execute = Callable[[KernelLaunch, GlobalMemory], object]
_TF32 = 11  # .tf32, of the element types of PTX as Triton numbers them
_SWIZZLE_BYTES = (0, 32, 64, 128)  # by CUtensorMapSwizzle
_INTEGERS = {"1": 1, "8": 1, "16": 2, "32": 4, "64": 8}  # bits in a type's name: bytes
_ONE_BLOCK = (1, 1, 1)
_entry_of = functools.lru_cache(maxsize=1024)(read_entry)


@dataclass(frozen=True)
class Call:
    """What a launcher returned, its launches in order, each with its execution, and the
    seconds of that which its compilers (or their caches) took.
    """

    returned: torch.Tensor | Tensors
    launches: tuple[tuple[KernelLaunch, object], ...]
    compile_s: float


def emulate_call(
    variant: Variant,
    inputs: Iterable[torch.Tensor],
    architecture: int,
    execute: Execute,
) -> Call:
    """Call the variant on CPU tensors for sm_`architecture`; `execute` does what each
    launch would.

    Raises:
        ValueError: if the variant's backend is no GPU compiler, the architecture is not
        known, or arguments and PTX disagree. LaunchRefused: if no GPU would take a
        launch. What the compilers, the launcher and `execute` raise passes through.
    """
    capture = {"triton": _capture_triton, "numba_cuda": _capture_numba}.get(
        variant.backend
    )
    if capture is None:
        raise ValueError(
            f"{variant.id} is no GPU kernel: its backend is {variant.backend}"
        )
    storages = Storages(GlobalMemory())
    for number, tensor in enumerate(inputs := tuple(inputs)):
        storages.add_input(tensor, f"input {number}")
    launches = _Launches(storages, architecture, execute)
    with (
        compiling_for(architecture),
        capture(launches),
        storages,
        Addresses(storages),
    ):
        returned = variant(*inputs)
    return Call(returned, tuple(launches.done), launches.compile_s)


class _Launches:
    """Executes launches, and keeps what came of them."""

    def __init__(self, storages: Storages, architecture: int, execute: Execute):
        self.storages = storages
        self.architecture = architecture
        self.done: list[tuple[KernelLaunch, object]] = []
        self.compile_s = 0.0
        self._execute = execute

    @contextlib.contextmanager
    def compiling(self) -> Iterator[None]:
        """The block's seconds are the compilers'."""
        start_s = time.perf_counter()
        yield
        self.compile_s += time.perf_counter() - start_s

    def execute(self, launch: KernelLaunch, entry: Entry) -> None:
        """Execute a launch that a GPU would take."""
        require_arguments(launch, entry)
        require_launchable(launch, entry)
        self.done.append((launch, self._execute(launch, self.storages.memory)))


class EmulatedDriver(NoGpu):
    """A device number of its own keeps what Triton has compiled in this process apart
    from what others are still to compile in it.
    """

    def get_current_device(self):
        return f"emulated sm_{super().get_current_device()}"


@contextlib.contextmanager
def _capture_triton(launches: _Launches) -> Iterator[None]:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    run = JITFunction.run
    active = driver._active  # the public `active` looks for a GPU if there is none yet

    def execute(self, *args, grid, warmup, **kwargs):
        with launches.compiling():
            kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        if not warmup:
            _execute_triton(launches, self, kernel, grid, args, kwargs)
        return kernel

    JITFunction.run = execute
    driver.set_active(EmulatedDriver(launches.architecture))
    try:
        yield
    finally:
        driver._active = active
        JITFunction.run = run


@dataclass(frozen=True)
class BoundTriton:
    """A launch of Triton's, but for the scratch memory that it is given."""

    launch: KernelLaunch
    entry: Entry
    scratch_bytes: int
    scratch_align: int

    def with_scratch(self, address: int) -> KernelLaunch:
        """The launch with its scratch memory at this address (0: it needs none)."""
        trailing = _integer(address, 8), _integer(0, 8)
        return replace(self.launch, arguments=(*self.launch.arguments, *trailing))


def bind_triton(
    function, kernel, grid, args: tuple, kwargs: Mapping, architecture: int
) -> BoundTriton | None:
    """The launch of the compiled kernel as triton.backends.nvidia.driver's CudaLauncher
    makes it, while the driver that it was compiled by is active; None for a grid
    without blocks, of which Triton launches nothing.
    """
    from triton.runtime import driver

    bound = _bound_arguments(function, driver._active, args, kwargs)
    metadata, ptx = kernel.metadata, kernel.asm["ptx"]
    blocks = _three(grid(bound) if callable(grid) else grid)
    if 0 in blocks:
        return None
    ctas = getattr(metadata, "num_ctas", 1)
    descriptors = iter(getattr(metadata, "tensordesc_meta", None) or ())
    arguments: list[bytes] = []
    for type_, value in zip(kernel.src.signature.values(), bound.values()):
        arguments += _triton_argument(type_, value, descriptors)
    entry = _entry_of(ptx)
    launch = KernelLaunch(
        kernel=function.__name__,
        entry=entry.name,
        ptx=ptx,
        architecture=architecture,
        grid=(blocks[0] * ctas, *blocks[1:]),
        block=(entry.required_threads or 32 * metadata.num_warps, 1, 1),
        cluster=(ctas, 1, 1),
        dynamic_shared_bytes=metadata.shared,
        arguments=tuple(arguments),
        registers=_registers_of(kernel.asm["cubin"]),
        config=triton_config(function, args, kwargs),
    )
    scratch_bytes = launch.blocks * metadata.global_scratch_size
    return BoundTriton(launch, entry, scratch_bytes, metadata.global_scratch_align)


def _bound_arguments(function, active, args: tuple, kwargs: Mapping) -> Mapping:
    """All parameters of the kernel with their values, in their order."""
    binder = function.device_caches[active.get_current_device()][-1]
    return binder(*args, **kwargs)[0]


def _execute_triton(
    launches: _Launches, function, kernel, grid, args: tuple, kwargs: Mapping
) -> None:
    bound = bind_triton(function, kernel, grid, args, kwargs, launches.architecture)
    if bound is None:
        return
    for value in (*args, *kwargs.values()):
        _note_tensors(launches.storages, value)
    memory = launches.storages.memory
    with scratch(memory, bound.scratch_bytes, bound.scratch_align) as address:
        launches.execute(bound.with_scratch(address), bound.entry)


def _registers_of(cubin: bytes) -> int | None:
    from batchline.bench.measure.emulator.compiled import registers_of

    return registers_of(cubin)


def _triton_argument(type_, value, descriptors: Iterator[Mapping]) -> list[bytes]:
    """The .params of one argument, of a type as the compiled signature names it: none
    for a constant (an int that is 1 and None are some), several for a tuple or a
    descriptor.
    """
    if isinstance(type_, tuple):
        parts = (
            _triton_argument(*part, descriptors) for part in zip(type_, tuple(value))
        )
        return [one for part in parts for one in part]
    if type_ == "constexpr":
        return []
    if type_.startswith("tensordesc"):
        return _described(value, next(descriptors, None))
    if type_.startswith("*"):
        return [_integer(_address(value), 8)]
    return [_scalar(type_, value)]


def _address(value) -> int:
    return value.data_ptr() if hasattr(value, "data_ptr") else int(value or 0)


def _scalar(type_: str, value) -> bytes:
    """A number of Triton's type "i32", "u8", "fp32", "bf16"…"""
    kind, bits = type_.rstrip("0123456789"), type_.lstrip("abcdefghijklmnopqrstuvwxyz")
    if kind in ("i", "u") and bits in _INTEGERS:
        return _integer(int(value), _INTEGERS[bits])
    formats = {"fp16": "<e", "fp32": "<f", "f32": "<f", "fp64": "<d"}
    if type_ in formats:
        return struct.pack(formats[type_], value)
    if type_ == "bf16":
        (word,) = struct.unpack("<I", struct.pack("<f", value))
        return _integer(word + 0x7FFF + (word >> 16 & 1) >> 16, 2)  # to nearest even
    raise ValueError(f"a kernel's argument of type {type_} is not known here")


def _integer(value: int, size_bytes: int) -> bytes:
    return (value & (1 << 8 * size_bytes) - 1).to_bytes(size_bytes, "little")


def _described(descriptor, meta: Mapping | None) -> list[bytes]:
    """A host TensorDescriptor as its tensor map (or, where the compiled code uses none,
    the address, shape, strides and flags), then the shape in 32 bits and the strides.
    """
    shape = [_integer(size, 4) for size in descriptor.shape]
    strides = [_integer(stride, 8) for stride in descriptor.strides]
    if meta is not None:
        return [_tensor_map(descriptor, meta), *shape, *strides]
    flags = descriptor.padding == "nan", getattr(descriptor, "round_f32_to_tf32", False)
    return [
        _integer(_address(descriptor.base), 8),
        *(_integer(size, 8) for size in descriptor.shape),
        *strides,
        *(_integer(int(flag), 1) for flag in flags),
        *shape,
        *strides,
    ]


def _tensor_map(descriptor, meta: Mapping) -> bytes:
    """As triton.backends.nvidia.driver's make_tensordesc_arg and driver.c's
    fillTMADescriptorTiled: dimensions from the innermost, strides in bytes.
    """
    from batchline.bench.measure.emulator import tensor_maps

    shape = list(descriptor.shape)
    if meta.get("fp4_padded"):
        shape[-1] *= 2
    strides = [meta["elem_size"] * stride for stride in descriptor.strides[:-1]]
    is_tf32 = getattr(descriptor, "round_f32_to_tf32", False)
    try:
        return tensor_maps.encode(
            address=_address(descriptor.base),
            element_type=_TF32 if is_tf32 else meta["elem_type"],
            shape=shape[::-1],
            strides=strides[::-1],
            box=list(reversed(meta["block_size"])),
            swizzle=_SWIZZLE_BYTES[meta["swizzle"]],
            fill=int(descriptor.padding == "nan"),
        )
    except ValueError as error:
        raise LaunchRefused(f"no {error}") from error


def _note_tensors(storages: Storages, value) -> None:
    """Whatever tensors an argument holds."""
    if isinstance(value, torch.Tensor):
        storages.add_argument(value)
    elif isinstance(getattr(value, "base", None), torch.Tensor):
        storages.add_argument(value.base)
    elif isinstance(value, (tuple, list)):
        for part in value:
            _note_tensors(storages, part)


@contextlib.contextmanager
def scratch(memory: GlobalMemory, size_bytes: int, align: int) -> Iterator[int]:
    """The address of so much uninitialised memory, or 0 for none."""
    if not size_bytes:
        yield 0
        return
    held = np.full(size_bytes + align, POISON, np.uint8)
    start = -(-held.ctypes.data // align) * align
    memory.add(start, size_bytes, "global scratch", False)
    try:
        yield start
    finally:
        memory.forget(start)


@contextlib.contextmanager
def _capture_numba(launches: _Launches) -> Iterator[None]:
    from numba.cuda.dispatcher import CUDADispatcher

    getitem = CUDADispatcher.__getitem__

    def configured(self, configuration):
        return functools.partial(_execute_numba, launches, self, configuration)

    CUDADispatcher.__getitem__ = configured
    try:
        with no_device(launches.architecture):
            yield
    finally:
        CUDADispatcher.__getitem__ = getitem


def _execute_numba(launches: _Launches, kernel, configuration: tuple, *args) -> None:
    with launches.compiling():
        launch, entry = bind_numba(kernel, configuration, args, launches.architecture)
    for arg in args:
        _note_array(launches.storages.memory, arg)
    launches.execute(launch, entry)


def bind_numba(
    kernel, configuration: tuple, args: tuple, architecture: int
) -> tuple[KernelLaunch, Entry]:
    """The launch of the kernel on these arguments (integers, NumPy's arrays) as
    numba.cuda.dispatcher's _Kernel.launch makes it, and the head of its PTX; within
    compiler.no_device(architecture).
    """
    from numba import typeof, types

    from batchline.bench.measure.emulator.compiled import numba_kernel

    signature = tuple(
        types.int64 if isinstance(arg, int) else typeof(arg) for arg in args
    )
    compiled = numba_kernel(kernel, signature, architecture)
    entry = _entry_of(compiled.ptx)
    launch = KernelLaunch(
        kernel=kernel.py_func.__name__,
        entry=entry.name,
        ptx=compiled.ptx,
        architecture=architecture,
        grid=_three(configuration[0]),
        block=_three(configuration[1]),
        cluster=_ONE_BLOCK,
        dynamic_shared_bytes=configuration[3] if len(configuration) > 3 else 0,
        arguments=tuple(
            one
            for type_, arg in zip(signature, args)
            for one in _numba_argument(type_, arg)
        ),
        registers=compiled.registers,
        config=numba_config(kernel.py_func),
    )
    return launch, entry


def _numba_argument(type_, value) -> list[bytes]:
    """The .params of one argument, as numba.cuda.dispatcher's _prepare_args gives them.

    An array is its reference count's and its parent's addresses (none), the numbers of
    elements and of an element's bytes, the address, the shape and the strides in bytes.
    """
    from numba import types

    if isinstance(type_, types.Array):
        fields = (
            0,
            0,
            value.size,
            value.itemsize,
            value.ctypes.data,
            *value.shape,
            *value.strides,
        )
        return [_integer(field, 8) for field in fields]
    if isinstance(type_, types.BaseTuple):
        parts = (_numba_argument(*part) for part in zip(type_, value))
        return [one for part in parts for one in part]
    if isinstance(type_, types.Integer):
        return [_integer(int(value), type_.bitwidth // 8)]
    if type_ in (types.float32, types.float64):
        return [struct.pack("<f" if type_ == types.float32 else "<d", value)]
    raise ValueError(f"a kernel's argument of Numba's type {type_} is not known here")


def _note_array(memory: GlobalMemory, value) -> None:
    """NumPy's memory where no storage of torch's has it."""
    if not isinstance(value, np.ndarray) or not value.size:
        return
    first, behind = np.lib.array_utils.byte_bounds(value)
    if memory.at(first) is None:
        memory.add(first, behind - first, "an array of NumPy's", True)


def _three(grid) -> Three:
    given = tuple(grid) if isinstance(grid, (tuple, list)) else (grid,)
    return (*map(int, given), 1, 1)[:3]
