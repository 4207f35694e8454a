"""How this package's functions are compiled, and kept on disk."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numba
from numba import int64, uint32
from numba.core.ccallback import CFunc

from batchline.bench.measure.emulator.layout import MACHINE
from batchline.bench.measure.emulator.raw import record_reader

DONE, AGAIN = 0, 1  # what a handler returns: AGAIN, if its warp has to wait first
_HANDLER = int64(int64, int64, int64, int64, int64, uint32)
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


def _keep(function) -> None:
    """Keep what is compiled on disk, where a folder can be written."""
    try:
        function.enable_caching()
    except RuntimeError:  # Numba's: no folder; each process compiles it anew
        return
    function._cache._cache_file._source_stamp = _sources()


def compile_native(function: Callable) -> Callable:
    """As numba.njit, for what handlers and other such functions call."""
    compiled = numba.njit(error_model="numpy", nogil=True)(function)
    _keep(compiled)
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
        _keep(compiled)
        compiled.compile()
        return compiled
