"""What each process does that compiles ahead: one variant's launches noted, or one kernel
compiled.

Triton and Numba are asked in their own way, so a kernel's key and its compiled code are
those of a launch on the GPU. No launch reaches a GPU.

A variant is launched on shapes alone, those on which a worker launches it: the problem,
and before that its op's probes, sizes near the scenario's, and the conditions of the
numerics audit.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import torch

from batchline import kernels
from batchline.bench import texts
from batchline.bench.measure.ahead.folder import numba_keeper
from batchline.bench.measure.ahead.gpu import Gpu, pretended
from batchline.bench.measure.checking import steadiness
from batchline.bench.measure.compiled.compiler import NoGpu
from batchline.bench.measure.machine import process_state
from batchline.bench.measure.reading import reading_process
from batchline.kernels import backends
from batchline.kernels._cuda import launch
from batchline.kernels.op import Tensors, Variant

PROBLEM, PROBE, NEARBY, CONDITION = "problem", "probe", "near", "condition"
Wants = Callable[
    [str, str], bool
]  # (compiler, key) of a launch → whether to compile it, and end there


@dataclass(frozen=True)
class Place:
    """Inputs by name: of a scenario at a batch, near a scenario, or of a probe or a
    condition of the op.
    """

    kind: str
    name: str
    dtype: str
    batch: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.name} {self.dtype}{f' B={self.batch}' if self.batch else ''}"


def places(
    variant: Variant, problems: Iterable[tuple[str, str, int]], nearby_seed: int | None
) -> list[Place]:
    """Where the variant is launched when it is measured on these (scenario, dtype,
    batch), what comes first first.

    `nearby_seed` is the task's (bench.measure.worker.task); without one the sizes near a
    scenario are not known beforehand.
    """
    problems = list(problems)
    dtypes = dict.fromkeys(dtype for _, dtype, _ in problems)
    groups = dict.fromkeys((scenario, dtype) for scenario, dtype, _ in problems)
    found = [
        Place(PROBE, name, dtype) for dtype in dtypes for name in variant.op.probes
    ]
    if nearby_seed is not None:
        found += [Place(NEARBY, scenario, dtype) for scenario, dtype in groups]
    found += [Place(PROBLEM, *problem) for problem in problems]
    return found + [
        Place(CONDITION, name, dtype)
        for dtype in dtypes
        for name in variant.op.conditions
    ]


def inputs_at(
    variant: Variant, place: Place, nearby_seed: int | None
) -> Tensors | None:
    """The inputs on device "meta"; None where the variant declines them."""
    tried = _made(variant, place, nearby_seed)
    return next(
        (inputs for inputs in tried if variant.why_unsupported(*inputs) is None), None
    )


def _made(variant: Variant, place: Place, nearby_seed: int | None) -> Iterator[Tensors]:
    op, dtype = variant.op, getattr(torch, place.dtype)
    if place.kind == PROBLEM:
        yield op.make_inputs(place.name, place.batch, place.dtype, "meta")
    elif place.kind == NEARBY:
        for near, batch in steadiness.sizes_near(
            variant, place.name, place.dtype, nearby_seed
        ):
            yield op.inputs(near, batch, dtype, "meta", 0)
    else:
        make = {PROBE: op.probes, CONDITION: op.conditions}[place.kind][place.name]
        yield make(dtype, "meta", 0)


class Compiled(BaseException):
    """The kernel that was wanted is compiled, or was on disk, and its launcher need not
    go on. No launcher catches it.
    """

    def __init__(self, is_new: bool):
        super().__init__(is_new)
        self.is_new = is_new


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


def compile_kernel(variant: Variant, inputs: Tensors, gpu: Gpu, key: str) -> bool:
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

    from batchline.bench.measure.ahead import stored_kernels
    from batchline.bench.measure.ahead.stored_kernels import Untold

    device = SimpleNamespace(id=0, compute_capability=gpu.capability)

    def configured(self, configuration):
        def launched(*args):
            signature = tuple(map(self.typeof_pyval, args))
            try:
                key = stored_kernels.key_of(self, signature, gpu.capability)
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
        (launch, "_allow_shared_bytes"): lambda *kernel: None,
        (launch, "_on_stream"): launch._on_stream.__wrapped__,
    }  # which remembers kernels as they are configured
    before = {place: getattr(*place) for place in replaced}
    for (where, name), value in replaced.items():
        setattr(where, name, value)
    try:
        with stored_kernels.kept():
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


Launch = tuple[
    str, str, Place
]  # the compiler, its key of the kernel, and where it is launched first


class Noting(NamedTuple):
    """The arguments of `note`."""

    variant: str
    problems: tuple[tuple[str, str, int], ...]
    gpu: Gpu
    nearby_seed: int | None

    def __str__(self) -> str:
        return f"{self.variant}: what it launches"


class Compiling(NamedTuple):
    """The arguments of `compile_one`."""

    variant: str
    place: Place
    key: str
    gpu: Gpu
    nearby_seed: int | None

    def __str__(self) -> str:
        return f"{self.variant} on {self.place}"


class Made(NamedTuple):
    """Whether a kernel was compiled, or found on disk, and the seconds that it took."""

    is_new: bool
    seconds: float


def note(
    variant_id: str,
    problems: tuple[tuple[str, str, int], ...],
    gpu: Gpu,
    nearby_seed: int | None,
) -> tuple[list[Launch], list[str]]:
    """The distinct kernels that a variant launches when it is measured on these
    (scenario, dtype, batch).

    And a line for each place where its launcher raised: what it launches there is not
    known.
    """
    variant, found, problems_of_it = _variant(variant_id), {}, []
    for place in places(variant, problems, nearby_seed):
        try:
            with pretended(gpu):
                inputs = inputs_at(variant, place, nearby_seed)
            if inputs is not None:
                for key, compiler in keys_of(variant, inputs, gpu).items():
                    found.setdefault(key, (compiler, key, place))
        except (
            Exception
        ) as error:  # whatever a launcher raises that has no memory to look into
            problems_of_it.append(f"{variant_id} on {place}: {texts.error_line(error)}")
    return list(found.values()), problems_of_it


def compile_one(
    variant_id: str, place: Place, key: str, gpu: Gpu, nearby_seed: int | None
) -> Made:
    """Compile the kernel of this key, that the variant launches there, into its
    compiler's cache.
    """
    variant = _variant(variant_id)
    with pretended(gpu):
        inputs = inputs_at(variant, place, nearby_seed)
    began_s = time.perf_counter()
    is_new = compile_kernel(variant, inputs, gpu, key)
    return Made(is_new, time.perf_counter() - began_s)


def _variant(variant_id: str) -> Variant:
    _from_sources()
    op_name, _, name = variant_id.partition("/")
    return kernels.ops[op_name].variants[name]


@functools.cache
def _from_sources() -> None:
    """As in a worker: what lies in __pycache__ need not be what the source says."""
    reading_process.from_sources_only(process_state.op_folders().values())
