"""How this package's functions are compiled, and kept on disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from numba import int64, types, uint32
from numba.core.caching import CompileResultCacheImpl, FunctionCache
from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.compiler import Compiler
from numba.core.registry import CPUDispatcher

from batchline.bench.measure.emulator.layout import MACHINE
from batchline.bench.measure.emulator.raw import record_reader

DONE, AGAIN = 0, 1  # what a handler returns: AGAIN, if its warp has to wait first
_HANDLER = int64(int64, int64, int64, int64, int64, uint32)
_OPTIONS = MappingProxyType({"nopython": True, "error_model": "numpy", "nogil": True})
machine_at = record_reader(MACHINE)


@functools.cache
def _sources() -> str:
    """A digest of the files of this package that are compiled, or laid out for what is.

    Numba looks only at a function's own file, and what it calls is compiled into it.
    """
    files = sorted(Path(__file__).parent.glob("*.py"))
    texts = [file.read_bytes() for file in files]
    compiled = (
        text for file, text in zip(files, texts) if _is_compiled(file.name, text)
    )
    return hashlib.blake2b(b"".join(compiled), digest_size=12).hexdigest()


def _is_compiled(name: str, text: bytes) -> bool:
    marks = (b"import numba", b"from numba", b"@compile_native")
    return name == "layout.py" or any(mark in text for mark in marks)


class _Entry(CompileResultCacheImpl):
    """What is kept of a function: all but the listing of its types, which nobody reads."""

    def reduce(self, compiled):
        """Numba's, without the listing."""
        return super().reduce(compiled._replace(type_annotation=None))


class _Cache(FunctionCache):
    _impl_class = _Entry


class _InlinedLibrary(JITCodeLibrary):
    """LLVM IR. Machine code is made of what calls it, and contains it: its own would take
    a quarter of the time to compile, and never run. It is optimised there, too: by
    itself it would be optimised once for each level of calls above it.
    """

    def _optimize_final_module(self):
        pass

    def _finalize_specific(self):
        pass

    def serialize_using_object_code(self):
        """The IR alone."""
        return self.serialize_using_bitcode()


class _InlinedCodegen(JITCPUCodegen):
    _library_class = _InlinedLibrary

    def _add_module(self, module):
        pass

    def set_env(self, env_name, env):
        """Nothing: no machine code here has a place for it."""


@functools.cache
def _inlining(context):
    """The context of a target, for functions without machine code of their own."""
    return context.subtarget(_internal_codegen=_InlinedCodegen("batchline.inlined"))


class _InlinedCompiler(Compiler):
    def __init__(self, typing_context, target_context, *rest):
        super().__init__(typing_context, _inlining(target_context), *rest)


class _InlinedEntry(_Entry):
    def rebuild(self, target_context, payload):
        """Numba's, without machine code."""
        return super().rebuild(_inlining(target_context), payload)


class _InlinedCache(FunctionCache):
    _impl_class = _InlinedEntry


def _keep(compiled, function: Callable, cache: type[FunctionCache] = _Cache) -> None:
    """Keep what is compiled on disk, where a folder can be written."""
    try:
        compiled._cache = cache(function)
    except RuntimeError:  # Numba's: no folder; each process compiles it anew
        return
    compiled._cache._cache_file._source_stamp = _sources()


class _Native(CPUDispatcher):
    """A function that is compiled for the types of its arguments, whatever they are
    worth.

    Numba would compile it anew for each constant in a call: the optimiser, which sees
    the functions that call it, does that where it is worth while.
    """

    def get_call_template(self, args, kws):
        """Numba's, for the arguments' types."""
        return super().get_call_template(
            tuple(map(types.unliteral, args)),
            {name: types.unliteral(kind) for name, kind in kws.items()},
        )


class _Inner(_Native):
    """One that Python can't call: what Numba adds for that takes a third of the time to
    compile.
    """

    def __call__(self, *arguments):
        raise TypeError(
            f"{self.py_func.__name__} is for compiled code alone: Python calls what compile_for_python compiles"
        )


def compile_native(function: Callable) -> Callable:
    """As numba.njit, for what handlers and other such functions call."""
    compiled = _Inner(
        function,
        targetoptions={
            **_OPTIONS,
            "no_cpython_wrapper": True,
            "no_cfunc_wrapper": True,
        },
        pipeline_class=_InlinedCompiler,
    )
    _keep(compiled, function, _InlinedCache)
    return compiled


def compile_for_python(function: Callable) -> Callable:
    """As compile_native, for what Python calls, too."""
    compiled = _Native(function, targetoptions=_OPTIONS)
    _keep(compiled, function)
    return compiled


class Handler:
    """What the machine does for a kind of instructions, as a C function

        int64 f(machine, pc, warp, registers, row, mask)

    of the machine's address, the number of the row, that of the warp, the addresses of
    the warp's registers and of the row, and the lanes, at least one of them.
    It is compiled when its address is first asked for.
    """

    def __init__(self, function: Callable):
        self.function = function
        functools.update_wrapper(self, function)

    @functools.cached_property
    def address(self) -> int:
        return self._compiled.address

    @functools.cached_property
    def _compiled(self) -> CFunc:
        compiled = CFunc(
            self.function,
            (_HANDLER.args, _HANDLER.return_type),
            locals={},
            options={"nopython": True, "error_model": "numpy"},
        )
        _keep(compiled, self.function)
        compiled.compile()
        return compiled
