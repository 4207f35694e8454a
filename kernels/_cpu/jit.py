"""Numba's functions on a CPU: cached on disk where possible, and run on as many threads
as torch has.
"""

from __future__ import annotations

import contextlib
import functools
import os
import warnings
from collections.abc import Callable

import torch

from batchline.kernels import cgroups
from batchline.kernels.backends import numba, why_absent

_SAID = "BATCHLINE_SAID_NO_KERNEL_CACHE"  # in the environment, so that a worker does not say it again
_NUM_THREADS = "NUMBA_NUM_THREADS"


def njit(
    signature=None, *, parallel: bool = False, **options
) -> Callable[[Callable], Callable]:
    """As numba.njit, for a function that Python calls: of what it compiles for,
    `signature` alone if there is one.

    What is compiled is cached on disk, beside the source or in the user's cache; where
    neither can be written, each process compiles it anew. A call of a `parallel` one
    runs on `threads()` threads, and leaves Numba's own setting as it was.
    """

    def decorate(function: Callable) -> Callable:
        if why_absent("numba_cpu"):
            return function
        kernel = numba.njit(parallel=parallel, **options)(function)
        _keep_on_disk(kernel)
        if signature is not None:
            _start_threads()
            kernel.compile(signature)
            kernel.disable_compile()
        return _on_our_threads(kernel) if parallel else kernel

    return decorate


def threads() -> int:
    """How many threads a parallel function called now by this thread runs on.

    torch's count, within the CPU quota and what Numba has started: a program that was
    told to use one thread (OMP_NUM_THREADS, torch.set_num_threads) gets no second one.
    Where Numba itself was told, by NUMBA_NUM_THREADS or numba.set_num_threads, it is as
    Numba was told.
    """
    _start_threads()
    set_to, most = numba.get_num_threads(), numba.config.NUMBA_NUM_THREADS
    if set_to != most or _was_told():
        return set_to
    return max(1, min(torch.get_num_threads(), most, _cores_of_quota() or most))


def why_not_kept() -> str | None:
    """Why Numba keeps no compiled kernel on disk here, or None. The first process that
    asks is told of it, too.
    """
    if why_absent("numba_cpu"):
        return None
    with contextlib.suppress(RuntimeError):
        numba.njit(cache=True)(_nothing)
        return None
    _say_once()
    return "no folder for its cache can be written"


def _nothing() -> None:
    pass


def _on_our_threads(kernel: Callable) -> Callable:
    @functools.wraps(kernel)
    def launch(*arguments):
        wanted, before = threads(), numba.get_num_threads()
        if wanted == before:
            return kernel(*arguments)
        numba.set_num_threads(wanted)
        try:
            return kernel(*arguments)
        finally:
            numba.set_num_threads(before)

    return launch


@functools.cache
def _start_threads() -> None:
    """Start Numba's threads, which under OpenMP sets torch's count to Numba's; put that
    back.
    """
    before = torch.get_num_threads()
    numba.get_num_threads()
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


def _keep_on_disk(kernel) -> None:
    try:
        kernel.enable_caching()
    except RuntimeError:  # Numba's: it has tried each place that it knows
        _say_once()
    else:
        kernel._cache = _SpareCache(kernel._cache)


class _SpareCache:
    """A cache whose faults (a full disk, a damaged file, a folder that was removed)
    cost a compilation, and no call.
    """

    def __init__(self, cache):
        self._cache = cache

    def load_overload(self, *key):
        """What was cached, or None."""
        try:
            return self._cache.load_overload(*key)
        except Exception:  # whatever pickle and the disk raise: it is compiled instead
            return None

    def save_overload(self, *entry) -> None:
        try:
            self._cache.save_overload(*entry)
        except Exception:  # likewise
            _say_once()

    def __getattr__(self, name: str):
        return getattr(self._cache, name)


def _say_once() -> None:
    if _SAID not in os.environ:
        os.environ[_SAID] = "1"
        warnings.warn(
            "Numba's compiled kernels can't be kept on disk, so each process compiles them anew: make a "
            "folder that can be written and name it in NUMBA_CACHE_DIR",
            RuntimeWarning,
            stacklevel=2,
        )


@functools.cache
def _was_told() -> bool:
    return (
        _NUM_THREADS in os.environ
        or numba.config.NUMBA_NUM_THREADS != numba.config.NUMBA_DEFAULT_NUM_THREADS
    )


@functools.cache
def _cores_of_quota() -> int | None:
    return cgroups.whole_cores()
