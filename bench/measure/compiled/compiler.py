"""What the compilers make of the GPU variants, with no GPU at hand.

A variant's own launcher runs on CPU tensors while Triton and Numba are told to compile
for the asked architecture instead of launching, so what is compiled is what the
launcher would launch: its tile, its warps, its specialisation on alignment and
divisibility. Nothing is executed.

Numba's dispatcher asks the driver for the device's compute capability, compiles and
links, and loads the cubin on the device. Here it is told a capability, and nothing is
loaded.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch

from batchline.bench.measure.compiled import converged, sass
from batchline.kernels import architectures, backends
from batchline.kernels.architectures import Architecture
from batchline.kernels.op import Variant
from batchline.kernels.target import compiling_for

_MATRIX_INSTRUCTIONS = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b")
_THREADS = re.compile(r"\.reqntid (\d+)")


@dataclass(frozen=True)
class Launch:
    """A launch as it was captured: what `codegen.Compiled` says of it, and the code in
    which the rest stands.

    `shared_bytes` is None where the cubin knows all of it.
    """

    kernel: str
    config: str
    architecture: int
    threads: int
    shared_bytes: int | None
    warp_specialized: bool
    ptx: str
    cubin: bytes


class Launches:
    """What a launcher launched: how often, and what came of those that had not been
    seen.
    """

    def __init__(self, seen: set):
        self._seen = seen
        self.count = 0
        self.new: list[Launch] = []

    def is_new(self, *key) -> bool:
        self.count += 1
        if key in self._seen:
            return False
        self._seen.add(key)
        return True


def matrix_instruction(ptx: str) -> str | None:
    """The tensor-core instruction in the PTX: wgmma.mma_async, tcgen05.mma, mma.sync or
    None.
    """
    found = _MATRIX_INSTRUCTIONS.search(ptx)
    return found.group(1) if found else None


@contextlib.contextmanager
def no_device(architecture: int) -> Iterator[None]:
    """Within it Numba takes sm_`architecture` for the current device, and what is
    loaded on it goes nowhere.
    """
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import devices

    device = SimpleNamespace(
        compute_capability=divmod(architecture, 10), id=architecture
    )
    context = SimpleNamespace(device=device, create_module_image=_not_loaded)
    get_current_device, get_context = dispatcher.get_current_device, devices.get_context
    dispatcher.get_current_device = (
        lambda: device
    )  # a kernel and its device functions are typed for it
    devices.get_context = lambda devnum=None: context  # they are linked for it
    try:
        yield
    finally:
        dispatcher.get_current_device, devices.get_context = (
            get_current_device,
            get_context,
        )


def compile_as_launched(kernel, signature: tuple) -> tuple[str, bytes]:
    """The PTX and the cubin of a kernel for these argument types, within `no_device`.

    Where the kernel is optimized at link time, the PTX is the linker's.
    """
    from numba.cuda.dispatcher import CUDADispatcher

    # A dispatcher of its own, for one keeps what it compiled whatever the architecture.
    dispatcher = CUDADispatcher(kernel.py_func, targetoptions=kernel.targetoptions)
    code = dispatcher.compile(signature)._codelibrary
    ptx = code.get_lto_ptx() if kernel.targetoptions["lto"] else code.get_asm_str()
    return ptx.rstrip("\0"), code.get_cubin().code


def _not_loaded(cubin, setup_functions, teardown_functions) -> SimpleNamespace:
    """What stands where a loaded module would."""
    module = SimpleNamespace(initialized=True)
    function = SimpleNamespace(
        module=module, set_shared_memory_carveout=lambda carveout: None
    )
    module.get_function = lambda name: function
    return module


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one architecture, as it would be launched.

    `config` is its compile-time constants, warps and stages. Registers and stack bytes
    are per thread, shared memory per block, without what the system reserves.
    `code_bytes` is the size of the machine code, `spills` counts the loads and stores
    of the stack, `barriers` the instructions on barriers.
    `matrix_instruction` is the tensor-core instruction in the PTX (wgmma.mma_async,
    tcgen05.mma, mma.sync) or None, and `matrix` how many of its kind the machine code
    has; `loads` and `stores` count those on global memory by the bytes a thread ("16",
    "4"…, "TMA"). `warp_specialized` is whether the compiler made partitions of warps.
    `warp_fault` is where an instruction of a whole warp may run without all of it, or
    None.
    """

    kernel: str
    config: str
    architecture: int
    threads: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    code_bytes: int
    spills: int
    barriers: int
    matrix_instruction: str | None
    matrix: int
    loads: dict[str, int]
    stores: dict[str, int]
    warp_specialized: bool
    warp_fault: str | None = None


def compile_variant(
    variant: Variant,
    inputs: tuple[torch.Tensor, ...],
    architecture: int,
    seen: set | None = None,
) -> list[Compiled]:
    """Compile every kernel that `variant` would launch on `inputs` (CPU tensors; their
    values don't matter).

    The arguments and errors are those of `launches_of`.
    """
    return read(launches_of(variant, inputs, architecture, seen))


def launches_of(
    variant: Variant,
    inputs: tuple[torch.Tensor, ...],
    architecture: int,
    seen: set | None = None,
) -> list[Launch]:
    """Capture and compile every launch of `variant` on `inputs`; `read` has the facts.

    A launch that `seen` holds is left out, and each new one is added: it is known by
    its kernel, its compile-time constants, its arguments' types, and whether all of its
    sizes and strides are multiples of 16.

    Raises:
        ValueError: if the variant's backend is not a GPU compiler, or the architecture
        is not known. RuntimeError: if its launcher launched nothing, or whatever the
        compiler raises.
    """
    capture = {"triton": _capture_triton, "numba_cuda": _capture_numba}.get(
        variant.backend
    )
    if capture is None:
        raise ValueError(
            f"{variant.id} is no GPU kernel: its backend is {variant.backend}"
        )
    launches = Launches(seen if seen is not None else set())
    with compiling_for(architecture), capture(architecture, launches):
        variant(*inputs)
    if not launches.count:
        raise RuntimeError(
            f"{variant.id} launched no kernel on {[tuple(tensor.shape) for tensor in inputs]}"
        )
    return launches.new


def read(launches: Sequence[Launch]) -> list[Compiled]:
    """The facts of many launches, in their order; many at once cost little more than
    one.
    """
    compiled: dict[int, Compiled] = {}
    for architecture in {launch.architecture for launch in launches}:
        numbers = [
            number
            for number, launch in enumerate(launches)
            if launch.architecture == architecture
        ]
        binaries = sass.read(
            [launches[number].cubin for number in numbers], architecture
        )
        compiled |= {
            number: _compiled(launches[number], binary)
            for number, binary in zip(numbers, binaries)
        }
    return [compiled[number] for number in range(len(launches))]


def _compiled(launch: Launch, binary: sass.Binary) -> Compiled:
    target = architectures.known(launch.architecture)
    reserved = target.shared_bytes_reserved if target.reserved_in_cubin else 0
    shared = (
        max(0, binary.shared_bytes - reserved)
        if launch.shared_bytes is None
        else launch.shared_bytes
    )
    return Compiled(
        launch.kernel,
        launch.config,
        launch.architecture,
        launch.threads,
        binary.registers,
        binary.stack_bytes,
        shared,
        binary.code_bytes,
        binary.spills,
        binary.barriers,
        matrix_instruction(launch.ptx),
        binary.matrix,
        binary.loads,
        binary.stores,
        launch.warp_specialized,
        converged.fault(launch.ptx, binary.listing),
    )


@contextlib.contextmanager
def _capture_triton(architecture: int, launches: Launches) -> Iterator[None]:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launch, active = (
        JITFunction.run,
        driver._active,
    )  # the public `active` looks for a GPU when there is none yet

    def compile_only(self, *args, grid, warmup, **kwargs):
        config = triton_config(self, args, kwargs)
        numbers = [arg for arg in args if isinstance(arg, int)]
        if not launches.is_new(
            self.__name__,
            config,
            all(arg % 16 == 0 or arg == 1 for arg in numbers),
            *(arg.dtype for arg in args if isinstance(arg, torch.Tensor)),
        ):
            return None
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        if why := _why_too_large(kernel.metadata, architectures.known(architecture)):
            raise RuntimeError(f"{self.__name__} {why}")
        ptx = kernel.asm["ptx"]
        launches.new.append(
            Launch(
                self.__name__,
                config,
                architecture,
                int(_THREADS.search(ptx).group(1)),
                kernel.metadata.shared,
                "ttg.warp_specialize" in kernel.asm["ttgir"],
                ptx,
                kernel.asm["cubin"],
            )
        )
        return kernel

    JITFunction.run = compile_only
    driver.set_active(NoGpu(architecture))
    try:
        yield
    finally:
        driver._active = active
        JITFunction.run = launch


def _why_too_large(metadata, target: Architecture) -> str | None:
    """Why no GPU of the target could launch what Triton has compiled, or None."""
    columns = getattr(metadata, "tmem_size", 0)
    if columns > target.tensor_memory_columns:  # its code is empty
        return f"needs {columns} columns of tensor memory, and {target} has {target.tensor_memory_columns}"
    if metadata.shared > target.shared_bytes_per_block:
        return (
            f"needs {metadata.shared} B of shared memory, and a block of {target} has at most "
            f"{target.shared_bytes_per_block}"
        )
    return None


class NoGpu:
    """What Triton asks of a driver in order to compile. The device number keeps the
    architectures' caches apart.
    """

    def __init__(self, architecture: int):
        from triton.backends.compiler import GPUTarget

        self._architecture = architecture
        self._target = GPUTarget("cuda", architecture, 32)

    def get_current_target(self):
        return self._target

    def get_current_device(self):
        return self._architecture

    def get_current_stream(self, device=None):
        return 0


@contextlib.contextmanager
def _capture_numba(architecture: int, launches: Launches) -> Iterator[None]:
    from numba import typeof, types
    from numba.cuda.dispatcher import CUDADispatcher

    getitem = CUDADispatcher.__getitem__

    def numba_type(argument):
        return types.int64 if isinstance(argument, int) else typeof(argument)

    def compile_only(self, configuration):
        block = (
            configuration[1]
            if isinstance(configuration[1], tuple)
            else (configuration[1],)
        )

        def launch(*args):
            signature, config = tuple(
                numba_type(argument) for argument in args
            ), numba_config(self.py_func)
            if not launches.is_new(self.py_func, config, block, signature):
                return
            ptx, cubin = compile_as_launched(self, signature)
            launches.new.append(
                Launch(
                    self.py_func.__name__,
                    config,
                    architecture,
                    math.prod(block),
                    _dynamic_shared_bytes(configuration),
                    warp_specialized=False,
                    ptx=ptx,
                    cubin=cubin,
                )
            )

        return launch

    CUDADispatcher.__getitem__ = compile_only
    try:
        with no_device(architecture):
            yield
    finally:
        CUDADispatcher.__getitem__ = getitem


def _dynamic_shared_bytes(configuration: tuple) -> int | None:
    """Of a Numba launch (grid, block, stream, bytes); None where it has none, and its
    arrays of shared memory have their sizes in the cubin. A kernel has one of both.
    """
    return (*configuration, 0, 0)[3] or None


def triton_config(kernel, args: tuple, kwargs: dict) -> str:
    """ "BLOCK_M=128 BLOCK_N=64, 8 warps, 3 stages" of a launch."""
    given = dict(zip((parameter.name for parameter in kernel.params), args)) | kwargs
    constants = {
        parameter.name: given[parameter.name]
        for parameter in kernel.params
        if parameter.is_constexpr and parameter.name in given
    }
    shown = " ".join(f"{name}={value}" for name, value in constants.items())
    return f"{shown}, {kwargs.get('num_warps', 4)} warps, {kwargs.get('num_stages', 3)} stages"


def numba_config(function) -> str:
    """The numbers that a kernel made by a factory closes over."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or ())
    return " ".join(
        f"{name}={cell.cell_contents}"
        for name, cell in cells
        if isinstance(cell.cell_contents, int)
    )


def why_cannot_compile(backend: str) -> str | None:
    """Why `backend`'s kernels can't be compiled here, or None."""
    if backend not in backends.INTERPRETED_BACKENDS:
        return f"{backend} is not a GPU compiler"
    return backends.why_absent(backend) or backends.why_absent("triton")
