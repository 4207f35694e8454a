"""What the compilers make of the GPU variants, with no GPU at hand.

A variant's own launcher runs on CPU tensors while Triton and Numba are told to compile for the asked architecture
instead of launching, so what is compiled is what the launcher would launch: its tile, its warps, its specialisation
on alignment and divisibility. Nothing is executed.
"""
from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import kernels
from kernels import backends
from kernels.op import Variant

ARCHITECTURES = (80, 90, 100)
_LONGEST_S = 900  # a hundred kernels at a few seconds each; a compiler that hangs must not hold the report up
_REPOSITORY = Path(__file__).resolve().parents[2]
_MATRIX_INSTRUCTIONS = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)\b")


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one architecture. Bytes are per thread for the stack and per block for shared memory.

    A stack above zero is where spilled registers live. `matrix_instruction` is the tensor-core instruction in the PTX
    (wgmma.mma_async, tcgen05.mma, mma.sync) or None.
    """

    kernel: str
    architecture: int
    registers: int
    stack_bytes: int
    shared_bytes: int
    matrix_instruction: str | None


def compile_variant(variant: Variant, inputs: tuple[torch.Tensor, ...], architecture: int) -> list[Compiled]:
    """Compile every kernel that `variant` would launch on `inputs` (CPU tensors; their values don't matter).

    Raises:
        ValueError: if the variant's backend is not a GPU compiler.
        RuntimeError: if its launcher launched nothing, or whatever the compiler raises.
    """
    capture = {"triton": _capture_triton, "numba_cuda": _capture_numba}.get(variant.backend)
    if capture is None:
        raise ValueError(f"{variant.id} is no GPU kernel: its backend is {variant.backend}")
    compiled: list[Compiled] = []
    with capture(architecture, compiled):
        variant(*inputs)
    if not compiled:
        raise RuntimeError(f"{variant.id} launched no kernel on {[tuple(tensor.shape) for tensor in inputs]}")
    return compiled


@contextlib.contextmanager
def _capture_triton(architecture: int, compiled: list[Compiled]) -> Iterator[None]:
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    launch, active = JITFunction.run, driver._active  # the public `active` looks for a GPU when there is none yet

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = launch(self, *args, grid=grid, warmup=True, **kwargs)
        resources = _resources(kernel.asm["cubin"])
        compiled.append(Compiled(self.__name__, architecture, resources["REG"], resources["STACK"],
                                 kernel.metadata.shared, _matrix_instruction(kernel.asm["ptx"])))
        return kernel

    JITFunction.run = compile_only
    driver.set_active(_NoGpu(architecture))
    try:
        yield
    finally:
        driver._active = active
        JITFunction.run = launch


class _NoGpu:
    """What Triton asks of a driver in order to compile. The device number keeps the architectures' caches apart."""

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
def _capture_numba(architecture: int, compiled: list[Compiled]) -> Iterator[None]:
    from numba import types, typeof
    from numba.cuda import compile_ptx, dispatcher

    capability = divmod(architecture, 10)
    get_current_device, getitem = dispatcher.get_current_device, dispatcher.CUDADispatcher.__getitem__

    class Device:
        compute_capability = capability

    def numba_type(argument):
        return types.int64 if isinstance(argument, int) else typeof(argument)

    def compile_only(self, configuration):
        def launch(*args):
            ptx, _ = compile_ptx(self.py_func, tuple(numba_type(argument) for argument in args), cc=capability)
            resources = _resources(_assemble(ptx, architecture))
            compiled.append(Compiled(self.py_func.__name__, architecture, resources["REG"], resources["STACK"],
                                     resources["SHARED"], _matrix_instruction(ptx)))
        return launch

    # Device helpers ask for the current device even when they are compiled for another.
    dispatcher.get_current_device = Device
    dispatcher.CUDADispatcher.__getitem__ = compile_only
    try:
        yield
    finally:
        dispatcher.get_current_device = get_current_device
        dispatcher.CUDADispatcher.__getitem__ = getitem


def _assemble(ptx: str, architecture: int) -> bytes:
    """PTX → cubin through nvJitLink, whose version goes with the NVVM that wrote the PTX."""
    from cuda.bindings import nvjitlink

    handle = nvjitlink.create(1, [f"-arch=sm_{architecture}"])
    try:
        source = ptx.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, source, len(source), "kernel")
        nvjitlink.complete(handle)
        cubin = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, cubin)
    finally:
        nvjitlink.destroy(handle)
    return bytes(cubin)


def _resources(cubin: bytes) -> dict[str, int]:
    """REG, STACK, SHARED, LOCAL… of a cubin's one kernel, from the cuobjdump that Triton bundles."""
    cuobjdump = Path(importlib.util.find_spec("triton").origin).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run([cuobjdump, "--dump-resource-usage", file.name],
                               check=True, capture_output=True, text=True)
    numbers = dict(re.findall(r"\b([A-Z]+):(\d+)", usage.stdout.partition("Function")[2]))
    return {name: int(number) for name, number in numbers.items()}


def _matrix_instruction(ptx: str) -> str | None:
    found = _MATRIX_INSTRUCTIONS.search(ptx)
    return found.group(1) if found else None


def why_cannot_compile(backend: str) -> str | None:
    """Why `backend`'s kernels can't be compiled here, or None."""
    if backend not in backends.INTERPRETED_BACKENDS:
        return f"{backend} is not a GPU compiler"
    return backends.why_absent(backend) or backends.why_absent("triton")


def compile_in_own_process(variant_ids: Sequence[str], dtypes: Sequence[str]) -> tuple[list[dict], str | None]:
    """`facts_of` the GPU variants among those named, in a process where replacing the driver harms nothing else.

    Returns the rows, and a line that says why they are not complete, or None.
    """
    command = [sys.executable, "-m", "bench.measure.codegen", ",".join(dtypes), *variant_ids]
    with tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, cwd=_REPOSITORY,
                                  timeout=_LONGEST_S)
            last_words = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
            incomplete = f"the compiling process failed: {last_words[0]}" if done.returncode else None
        except subprocess.TimeoutExpired:
            incomplete = f"the compiling process was stopped after {_LONGEST_S} s"
        output.seek(0)
        return [json.loads(line) for line in output if line.startswith("{")], incomplete


def facts_of(variant: Variant, dtypes: Sequence[str]) -> Iterator[dict]:
    """A variant's kernels on its op's example, for those of `dtypes` that it takes and each architecture.

    A kernel that does not compile is a row with its "error".
    """
    for dtype in dtypes:
        if variant.dtypes is not None and dtype not in variant.dtypes:
            continue
        inputs = variant.op.make_inputs(*variant.op.example, dtype, "cpu")
        for architecture in ARCHITECTURES:
            row = {"variant": variant.id, "dtype": dtype, "architecture": architecture}
            try:
                yield from (row | asdict(kernel) for kernel in compile_variant(variant, inputs, architecture))
            except Exception as error:  # whatever the compiler raised
                yield row | {"error": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}


def _main(dtypes: str, *variant_ids: str) -> None:
    for variant_id in variant_ids:
        op_name, _, name = variant_id.partition("/")
        variant = kernels.ops[op_name].variants[name]
        if why_cannot_compile(variant.backend) is None:
            for row in facts_of(variant, dtypes.split(",")):
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
