"""What a GPU worker does at a launch, up to the loading of the binary, in a process
with no GPU.

Run as `python -m tests.as_a_gpu_worker LAUNCHES`, a JSON list of [variant, scenario,
dtype, batch, change], it launches each by the compilers' own paths and prints as JSON
[how many binaries were loaded, what had to be compiled] of each. A change is one of
CHANGES, by which a Triton kernel is launched otherwise than its launcher does, or null.
"""

import contextlib
import json
import sys
from types import SimpleNamespace

import torch

from batchline import kernels
from batchline.bench.measure.ahead import work
from batchline.bench.measure.ahead.folder import load_what_was_compiled
from batchline.bench.measure.ahead.gpu import H200, pretended

loaded, compiled = [], []
CHANGES = ("num_warps", "alignment", "divisibility")


class Compiles(Exception):
    """A compiler was called."""


def compiles(what):
    def trap(*args, **kwargs):
        compiled.append(what)
        raise Compiles(what)

    return trap


class Driver:
    """Triton's, of a GPU that loads and launches nothing."""

    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": H200.shared_bytes},
        load_binary=lambda name, *rest: loaded.append(name)
        or (object(), object(), 32, 0, 1024),
    )

    @staticmethod
    def launcher_cls(source, metadata):
        return lambda *args: None

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", H200.architecture, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0


def stand_in_for_triton():
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime import driver

    driver.set_active(Driver())
    CUDABackend.add_stages = compiles("triton")


def stand_in_for_numba():
    from numba import cuda
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import devices, driver, nvvm

    device = SimpleNamespace(
        id=0,
        compute_capability=H200.capability,
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN=H200.shared_bytes,
    )
    context = work._Context(device)
    create = context.create_module_image

    def load(*image):
        loaded.append(type(image[0]).__name__)
        module = create(*image)
        function = SimpleNamespace(module=module, handle=0, device=device)
        module.get_function = lambda name: function
        return module

    context.create_module_image = load
    driver.driver = SimpleNamespace(cuKernelSetAttribute=lambda *limit: None)
    dispatcher.get_current_device = lambda: device
    devices.get_context = lambda *number: context
    nvvm.compile_ir, driver._Linker = compiles("nvvm"), compiles("nvJitLink")
    dispatcher._Kernel.launch = lambda self, *args: self._codelibrary.get_cufunc()
    cuda.external_stream, cuda.as_cuda_array = (lambda stream: 0), work._array
    driver._to_core_stream = lambda stream: stream


@contextlib.contextmanager
def changed(change):
    """In the block, Triton's kernels are launched with twice the warps, an odd address,
    or an odd number.
    """
    from triton.runtime.jit import JITFunction

    run = JITFunction.run

    def run_otherwise(self, *args, **kwargs):
        if change == "num_warps":
            kwargs["num_warps"] = 2 * kwargs.get("num_warps", 4)
        elif change == "alignment":
            args = (torch.empty(2, dtype=args[0].dtype, device="meta")[1:], *args[1:])
        elif change == "divisibility":
            last = max(
                place
                for place, arg in enumerate(args)
                if type(arg) is int and arg % 16 == 0
            )
            args = (*args[:last], args[last] + 1, *args[last + 1 :])
        return run(self, *args, **kwargs)

    JITFunction.run = run_otherwise
    try:
        yield
    finally:
        JITFunction.run = run


def launch(name, scenario, dtype, batch, change):
    """What a launch loaded and compiled."""
    loaded.clear()
    compiled.clear()
    op, _, variant = name.partition("/")
    inputs = kernels.ops[op].make_inputs(scenario, batch, dtype, "meta")
    with pretended(H200), changed(change), contextlib.suppress(Compiles):
        kernels.ops[op].variants[variant](*inputs)
    return len(loaded), list(compiled)


if __name__ == "__main__":
    stand_in_for_triton()
    stand_in_for_numba()
    load_what_was_compiled()
    print(json.dumps([launch(*one) for one in json.loads(sys.argv[1])]))
