"""A launcher's launches, each known by what its compiler compiles for: noted, or one of
them compiled and kept.

Triton and Numba are asked in their own way, so a kernel's key and its compiled code are
those of a launch on the GPU. No launch reaches a GPU.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
import torch

from batchline.bench.measure.ahead.folder import numba_keeper
from batchline.bench.measure.ahead.gpu import Gpu, pretended
from batchline.bench.measure.compiled.compiler import NoGpu
from batchline.kernels import backends
from batchline.kernels._cuda import launch
from batchline.kernels.op import Tensors, Variant


class Compiled(BaseException):
    """The kernel that was wanted is compiled, or was on disk, and its launcher need not
    go on. No launcher catches it.
    """

    def __init__(self, is_new: bool):
        super().__init__(is_new)
        self.is_new = is_new


Wants = Callable[
    [str, str], bool
]  # (compiler, key) of a launch → whether to compile it, and end there


def keys_of(variant: Variant, inputs: Tensors, gpu: Gpu) -> dict[str, str]:
    """{key: compiler} of the kernels that the variant launches on these inputs (on
    "meta"); none is compiled.

    The compiler is "triton" or "numba_cuda".
    """
    noted: dict[str, str] = {}

    def note(compiler: str, key: str) -> bool:
        noted[key] = compiler
        return False

    with pretended(gpu), _caught(gpu, note):
        variant(*inputs)
    return noted


def compile_one(variant: Variant, inputs: Tensors, gpu: Gpu, key: str) -> bool:
    """Compile the kernel of this key, which the variant launches on these inputs, into
    its compiler's cache.

    Returns whether it was not there.

    Raises:
        RuntimeError: if it launches no such kernel. What the compiler raises passes
        through.
    """
    with pretended(gpu), _caught(gpu, lambda compiler, launched: launched == key):
        try:
            variant(*inputs)
        except Compiled as compiled:
            return compiled.is_new
    raise RuntimeError(f"{variant.id} launches another kernel than before")


@contextlib.contextmanager
def _caught(gpu: Gpu, wants: Wants) -> Iterator[None]:
    """In the block, launches of Triton's and Numba's kernels are asked for, and
    compiled if they are wanted.
    """
    with contextlib.ExitStack() as stack:
        if backends.why_absent("triton") is None and not backends.interpreted("triton"):
            stack.enter_context(_triton(gpu, wants))
        if numba_keeper():
            stack.enter_context(_numba(gpu, wants))
        yield


@contextlib.contextmanager
def _triton(gpu: Gpu, wants: Wants) -> Iterator[None]:
    from triton import knobs
    from triton.runtime import driver

    def is_not_wanted(*, key, fn, compile, **_):
        source = fn.jit_function.cache_key
        return not wants(
            "triton",
            hashlib.sha256(f"{source} {key} {gpu.architecture}".encode()).hexdigest(),
        )

    def end(*, cache_hit, **_):
        raise Compiled(is_new=not cache_hit)

    active = (
        driver._active
    )  # the public `active` looks for a GPU when there is none yet
    with knobs.runtime.scope(), knobs.compilation.scope(), _autotuners_try_all():
        knobs.runtime.jit_cache_hook, knobs.compilation.listener = is_not_wanted, end
        driver.set_active(NoGpu(gpu.architecture))
        try:
            yield
        finally:
            driver._active = active


@contextlib.contextmanager
def _autotuners_try_all() -> Iterator[None]:
    """In the block, a kernel with triton.autotune is launched in each of its
    configurations, and none is timed.
    """
    from triton.runtime.autotuner import Autotuner

    def run(self, *args, **kwargs):
        self.nargs = dict(zip(self.arg_names, args))
        for config in self.prune_configs(kwargs):
            if config.pre_hook:
                config.pre_hook(self.nargs | kwargs | config.all_kwargs())
            self.fn.run(*args, **kwargs, **config.all_kwargs())
        self.nargs = None

    before, Autotuner.run = Autotuner.run, run
    try:
        yield
    finally:
        Autotuner.run = before


@contextlib.contextmanager
def _numba(gpu: Gpu, wants: Wants) -> Iterator[None]:
    from numba import cuda
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import devices

    from batchline.bench.measure.ahead import kept
    from batchline.bench.measure.ahead.code import Untold

    device = SimpleNamespace(id=0, compute_capability=gpu.capability)

    def configured(self, configuration):
        def launched(*args):
            signature = tuple(map(self.typeof_pyval, args))
            try:
                key = kept.key_of(self, signature, gpu.capability)
            except Untold:  # the worker compiles it
                return
            if wants("numba_cuda", key):
                before = self._cache_misses[signature]
                self.compile(signature)
                raise Compiled(is_new=self._cache_misses[signature] != before)

        return launched

    replaced = {
        (dispatcher, "get_current_device"): lambda: device,
        (devices, "get_context"): lambda *number: _Context(device),
        (dispatcher.CUDADispatcher, "__getitem__"): configured,
        (cuda, "external_stream"): int,
        (cuda, "as_cuda_array"): _array,
        (launch, "_on_stream"): launch._on_stream.__wrapped__,
    }  # which remembers kernels as they are configured
    before = {place: getattr(*place) for place in replaced}
    for (where, name), value in replaced.items():
        setattr(where, name, value)
    try:
        with kept.kept():
            yield
    finally:
        for (where, name), value in before.items():
            setattr(where, name, value)


class _Context:
    """What Numba asks of a context in order to compile: it loads nothing."""

    def __init__(self, device):
        self.device = device

    def create_module_image(self, cubin, setup, teardown):
        module = SimpleNamespace(initialized=True)
        module.get_function = lambda name: SimpleNamespace(name=name, module=module)
        return module


def _array(tensor: torch.Tensor, sync: bool = True):
    """numba.cuda.as_cuda_array of a tensor without memory."""
    from numba.cuda.cudadrv.devicearray import DeviceNDArray

    dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
    strides = tuple(stride * dtype.itemsize for stride in tensor.stride())
    if tensor.is_contiguous():  # then the interface between torch and Numba names none
        strides = _c_strides(tensor.shape, dtype.itemsize)
    return DeviceNDArray(
        tuple(tensor.shape), strides, dtype, gpu_data=SimpleNamespace()
    )


def _c_strides(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    strides = [itemsize]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * size)
    return tuple(reversed(strides))
