"""Where a run's compiled kernels are: a folder of its own, that only it fills, from
sources, and that ends with it.

A kernel on disk is run in place of its source, so one that a wrong program has put
there would be believed by every later run. Whoever wants to reuse what was compiled
names a folder of theirs by BATCHLINE_KERNELS.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from batchline.kernels import backends

VARIABLE = "BATCHLINE_KERNELS"
_TRITON = "TRITON_CACHE_DIR"
VARIABLES = VARIABLE, _TRITON
"""What tells a process where they are."""


def numba_folder() -> Path | None:
    """Where Numba's CUDA kernels are kept by this process, or None for nowhere."""
    named = os.environ.get(VARIABLE)
    return Path(named) / "numba" if named else None


def load_what_was_compiled() -> None:
    """From now on this process takes Numba's CUDA kernels from there; Triton does it by
    itself.
    """
    if keeper := numba_keeper():
        keeper.keep_from_now_on()


def numba_keeper() -> ModuleType | None:
    """bench.measure.ahead.stored_kernels; None where Numba interprets, or is one that lacks what
    it is made of: it then compiles at each launch.
    """
    if backends.why_absent("numba_cuda") or backends.interpreted("numba_cuda"):
        return None
    with contextlib.suppress(ImportError):
        return importlib.import_module("batchline.bench.measure.ahead.stored_kernels")
    return None


@contextlib.contextmanager
def kernels_folder() -> Iterator[Path]:
    """In the block, this process and those that it starts keep compiled kernels in one
    folder, and nowhere else.

    It is the one that BATCHLINE_KERNELS names, or else a new one, which is removed
    afterwards.
    """
    with contextlib.ExitStack() as stack:
        named = os.environ.get(VARIABLE)
        folder = Path(
            named
            or stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix="batchline-kernels-", ignore_cleanup_errors=True
                )
            )
        ).absolute()
        variables = {VARIABLE: str(folder), _TRITON: str(folder / "triton")}
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield folder
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
