"""Numba's compiled CUDA kernels on disk, by content: what one process compiles, another
one loads.

Numba's own cache can't do this. Its key holds a pickle of what the kernel closes over,
and in that a random number for each device function and intrinsic, so no other process
finds it; and it lacks the launch bounds, the constants and what the kernel calls by a
global name. Here a key covers the code of the kernel and of all that it calls, and a
kernel whose code can't be told so is not kept. A fault of the disk costs a compilation
and no launch.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from numba.cuda import dispatcher, serialize

from batchline.bench.measure.ahead.code import Untold, code_of
from batchline.bench.measure.ahead.folder import numba_folder
from batchline.bench.measure.machine import environment

_TOOLS = (
    "numba",
    "numba-cuda",
    "llvmlite",
    "nvidia-nvvm",
    "nvidia-nvjitlink",
    "cuda-bindings",
    "cuda-core",
)
_DIGEST = 64  # hexadecimal digits before the pickle


def key_of(
    kernel: dispatcher.CUDADispatcher, signature: tuple, capability: tuple[int, int]
) -> str:
    """What the compiled kernel depends on, as a hash: its code, its arguments' types,
    the GPU, and the compilers.

    Raises:
        Untold: where not all of its code can be told, or it is linked with files.
    """
    if kernel.targetoptions.get("link"):
        raise Untold("it is linked with files")
    settings = sorted(
        (name, value)
        for name, value in os.environ.items()
        if name.startswith("NUMBA_") and name != "NUMBA_CACHE_DIR"
    )
    parts = [
        code_of(kernel),
        [str(one) for one in signature],
        capability,
        settings,
        _versions(),
    ]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


@functools.cache
def _versions() -> tuple:
    return platform.python_version(), *environment.versions(_TOOLS).items()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """In the block, a CUDA kernel that is compiled is kept, and one that was kept is
    not compiled.
    """
    before = dispatcher.CUDADispatcher.compile
    keep_from_now_on()
    try:
        yield
    finally:
        dispatcher.CUDADispatcher.compile = before


def keep_from_now_on() -> None:
    """As `kept`, until the process ends; where no folder is named
    (bench.measure.ahead.folder) nothing is kept.
    """
    compile_one = dispatcher.CUDADispatcher.compile

    def compile_or_load(self, signature):
        if isinstance(self._cache, dispatcher.NullCache) and numba_folder() is not None:
            self._cache = _Kept(self)
        return compile_one(self, signature)

    dispatcher.CUDADispatcher.compile = compile_or_load


class _Kept(dispatcher.NullCache):
    """What a CUDADispatcher asks of a cache."""

    def __init__(self, kernel: dispatcher.CUDADispatcher):
        self._kernel = kernel

    def load_overload(self, signature, target_context):
        """The kernel as it was kept, or None."""
        try:
            digest, pickled = _divided(self._path(signature).read_bytes())
            if hashlib.sha256(pickled).hexdigest().encode() != digest:
                return None
            target_context.refresh()
            return dispatcher._Kernel._rebuild(**pickle.loads(pickled))
        except (
            Exception
        ):  # Untold, or whatever pickle and the disk raise: it is compiled instead
            return None

    def save_overload(self, signature, compiled) -> None:
        """Keep a kernel; not one whose code depends on how it is launched, for the key
        does not hold that.
        """
        if getattr(compiled, "launch_config_sensitive", False):
            return
        with contextlib.suppress(Exception):  # likewise
            path = self._path(signature)
            pickled = serialize.dumps(compiled._reduce_states())
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(hashlib.sha256(pickled).hexdigest().encode() + pickled)
            Path(file.name).replace(path)

    def _path(self, signature) -> Path:
        capability = tuple(dispatcher.get_current_device().compute_capability)
        return numba_folder() / f"{key_of(self._kernel, signature, capability)}.kernel"


def _divided(content: bytes) -> tuple[bytes, bytes]:
    return content[:_DIGEST], content[_DIGEST:]
