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
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba.core import types as numba_types
from numba.cuda import dispatcher, serialize
from numba.cuda import types as cuda_types
from numba.cuda.dispatcher import CUDADispatcher
from numba.cuda.extending import _Intrinsic

from batchline.bench.measure.ahead.folder import numba_folder
from batchline.bench.measure.machine import environment

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
# Whose versions, or the machine's, name their code.
_LIBRARIES = {
    "numba",
    "numba_cuda",
    "llvmlite",
    "numpy",
    "torch",
    "cuda",
    *sys.stdlib_module_names,
}
_OF_LIBRARIES = (np.dtype, ir.Type, numba_types.Type, cuda_types.Type)
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


class Untold(Exception):
    """Something in a kernel that this module does not know how to tell from another."""


def code_of(kernel: CUDADispatcher) -> tuple:
    """The kernel's code, options, constants, and what its names stand for: the same for
    no kernel that differs.

    Raises:
        Untold: if something in it is of a kind that is not known here.
    """
    return _Reader().value(kernel)


class _Reader:
    """Reads values; a function that was read before is its number, so that one that
    calls itself comes to an end.
    """

    def __init__(self):
        self._numbers: dict[int, int] = {}

    def value(self, value) -> tuple:
        if isinstance(value, Enum):
            return type(value).__qualname__, value.name
        if type(value) in _PLAIN:
            return type(value).__name__, repr(value)
        if isinstance(value, (tuple, list)):
            return type(value).__name__, *map(self.value, value)
        if isinstance(value, (set, frozenset)):
            return type(value).__name__, *sorted(map(self.value, value))
        if isinstance(value, Mapping):
            return type(value).__name__, *(
                (self.value(key), self.value(one)) for key, one in value.items()
            )
        if isinstance(value, CUDADispatcher):
            options = sorted(value.targetoptions.items())
            return (
                "kernel",
                self.value(value.py_func),
                *((name, self.value(one)) for name, one in options),
            )
        if isinstance(value, _Intrinsic):
            return "intrinsic", self.value(value._defn)
        if isinstance(value, functools._lru_cache_wrapper):
            return "cached", self.value(value.__wrapped__)
        if isinstance(value, types.CodeType):
            return self._code(value)
        return self._named(value)

    def _named(self, value) -> tuple:
        """What a library names, or a function of Python's."""
        if isinstance(value, _OF_LIBRARIES) or isinstance(value, np.generic):
            return type(value).__qualname__, str(value)
        if isinstance(value, np.ndarray):
            return "array", str(value.dtype), value.shape, value.tobytes()
        if isinstance(value, types.ModuleType):
            return "module", value.__name__
        name, module = getattr(value, "__qualname__", None), getattr(
            value, "__module__", None
        )
        if (
            name
            and module
            and (module.partition(".")[0] in _LIBRARIES or isinstance(value, type))
        ):
            return "library", module, name
        if isinstance(value, types.FunctionType):
            return self._function(value)
        raise Untold(f"a {type(value).__qualname__}")

    def _function(self, function: types.FunctionType) -> tuple:
        if id(function) in self._numbers:
            return "again", self._numbers[id(function)]
        self._numbers[id(function)] = len(self._numbers)
        cells = zip(function.__code__.co_freevars, function.__closure__ or ())
        closed_over = tuple(
            (name, self.value(cell.cell_contents)) for name, cell in cells
        )
        named = tuple(
            (name, *self._name(function.__globals__[name], function.__code__))
            for name in sorted(_names(function.__code__))
            if name in function.__globals__
        )
        return (
            "function",
            self._code(function.__code__),
            self.value(function.__defaults__),
            closed_over,
            named,
        )

    def _name(self, value, code: types.CodeType) -> tuple:
        """What a global name stands for; of a module of ours what may be asked of it,
        too.
        """
        if (
            isinstance(value, types.ModuleType)
            and value.__name__.partition(".")[0] not in _LIBRARIES
        ):
            return value.__name__, *(
                (name, self.value(getattr(value, name)))
                for name in sorted(_names(code))
                if hasattr(value, name)
            )
        return (self.value(value),)

    def _code(self, code: types.CodeType) -> tuple:
        constants = tuple(self.value(constant) for constant in code.co_consts)
        return (
            "code",
            code.co_name,
            code.co_code,
            constants,
            code.co_names,
            code.co_varnames,
            code.co_freevars,
        )


def _names(code: types.CodeType) -> set[str]:
    """Every global name and attribute in the code and in the functions within it."""
    inner = [
        constant for constant in code.co_consts if isinstance(constant, types.CodeType)
    ]
    return set(code.co_names).union(*map(_names, inner))


class _ReaderOfPlaces(_Reader):
    """Reads beside the code where it stands, as what is compiled with line numbers
    says it.
    """

    def _code(self, code: types.CodeType) -> tuple:
        places = code.co_filename, code.co_firstlineno, code.co_linetable
        return *super()._code(code), *places


def key_of(
    kernel: dispatcher.CUDADispatcher,
    signature: tuple,
    capability: tuple[int, int],
    with_places: bool = False,
) -> str:
    """What the compiled kernel depends on, as a hash: its code, its arguments' types,
    the GPU, and the compilers; `with_places` the files and lines of the code, too.

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
        (_ReaderOfPlaces() if with_places else _Reader()).value(kernel),
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
