"""The optional compilers, imported in one place and not before a file asks for one: the
module, or a stand-in that lets a kernel's file still import.

A variant's file writes `from batchline.kernels.backends import tl, triton` and
decorates its kernels as usual. Where the compiler is not installed, the stand-in
swallows the decorators and the variant says so through `why_absent`. The libraries of
PEERS, which decorate nothing, a variant imports where it calls them.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys


class Absent:
    """Stands in for a module that is not installed: any attribute, call or index of it
    is the stand-in again.
    """

    def __init__(self, why: str):
        self._why = why

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *args, **kwargs):
        return self

    def __getitem__(self, key):
        return self


def _import_or_absent(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        return Absent(f"{module} can't be imported ({error})")


_MODULES = {
    "triton": "triton",
    "tl": "triton.language",
    "gluon": "triton.experimental.gluon",
    "gl": "triton.experimental.gluon.language",
    "hopper": "triton.experimental.gluon.language.nvidia.hopper",
    "mbarrier": "triton.experimental.gluon.language.nvidia.hopper.mbarrier",
    "tma": "triton.experimental.gluon.language.nvidia.hopper.tma",
    "numba": "numba",
    "cuda": "numba.cuda",
}
_DESCRIPTORS = {
    "TensorDescriptor": "triton.tools.tensor_descriptor",
    "GluonDescriptor": "triton.experimental.gluon.nvidia.hopper",
}  # each a TensorDescriptor of its module
_COMPILERS = {"triton": "triton", "numba_cuda": "cuda", "numba_cpu": "numba"}
_INTERPRETERS = {"triton": "TRITON_INTERPRET", "numba_cuda": "NUMBA_ENABLE_CUDASIM"}
PEERS = {
    "opacus": "opacus",
    "backpack": "backpack-for-pytorch",
    "helion": "helion",
    "tilelang": "tilelang",
}  # module: the name that it is installed by
DISPATCH = "dispatch"  # of a variant that calls another one, whatever backend that has
NAMES = ("torch", *_COMPILERS, *PEERS, DISPATCH)


def __getattr__(name: str):
    """A name of _MODULES or _DESCRIPTORS: imported when it is first asked for, for both
    compilers together take a second.
    """
    if name in _DESCRIPTORS:
        value = _import_or_absent(_DESCRIPTORS[name]).TensorDescriptor
    elif name in _MODULES:
        value = _import_or_absent(_MODULES[name])
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def why_absent(backend: str) -> str | None:
    """Why `backend` can't be used in this environment, or None."""
    if backend in PEERS:  # looked for and not imported, for Opacus takes a second
        if importlib.util.find_spec(backend):
            return None
        return (
            f"{backend} can't be imported (not installed: `make bench-peers` makes an "
            "environment that has it)"
        )
    if backend not in _COMPILERS:
        return None
    compiler = getattr(sys.modules[__name__], _COMPILERS[backend])
    return compiler._why if isinstance(compiler, Absent) else None


def interpreted(backend: str) -> bool:
    """Whether `backend`'s kernels run on the CPU here, through Triton's interpreter or
    Numba's CUDA simulator.

    Both are chosen by an environment variable that must be set before the process
    starts.
    """
    return os.environ.get(_INTERPRETERS.get(backend, ""), "0") not in ("", "0")


def interpreter_environment(backend: str) -> dict[str, str]:
    """The variables under which a new process interprets `backend`'s kernels on the
    CPU.
    """
    return {_INTERPRETERS[backend]: "1"}


INTERPRETED_BACKENDS = tuple(_INTERPRETERS)
