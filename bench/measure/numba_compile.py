"""Numba CUDA kernels compiled for a GPU that is not there, by all that their dispatcher
does before a launch.

The dispatcher asks the driver for the device's compute capability, compiles and links,
and loads the cubin on the device. Here it is told a capability, and nothing is loaded.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace


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
