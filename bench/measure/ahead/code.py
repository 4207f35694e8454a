"""The code of a Numba CUDA kernel and of all that it calls, as a value that is the same
in every process.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Mapping
from enum import Enum

import numpy as np
from llvmlite import ir
from numba.core import types as numba_types
from numba.cuda import types as cuda_types
from numba.cuda.dispatcher import CUDADispatcher
from numba.cuda.extending import _Intrinsic

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
