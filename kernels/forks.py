"""Whether this process was forked from one that may have started threads.

It has no thread of its parent's. Apart from the kernels that start threads, so that a
call can ask without importing Numba.
"""

from __future__ import annotations

import multiprocessing
import os
from types import SimpleNamespace


def _is_forked_worker() -> bool:
    """Whether multiprocessing forked this process, perhaps before this module was
    imported.
    """
    if multiprocessing.parent_process() is None:
        return False
    own_method = getattr(
        multiprocessing.current_process(), "_start_method", None
    )  # None: the default
    return (own_method or multiprocessing.get_start_method()) == "fork"


_this_process = SimpleNamespace(is_forked=_is_forked_worker())


def is_forked() -> bool:
    """Whether this process was forked from one that may have started threads; a
    forkserver, which works for nobody, has not.
    """
    if not _this_process.is_forked:
        return False
    return (
        getattr(multiprocessing.current_process(), "_start_method", None)
        != "forkserver"
    )


def why_no_threads() -> str | None:
    """Why this process can't start parallel kernels, or None."""
    return (
        "this process was forked, and its parent's threads did not come along"
        if is_forked()
        else None
    )


def start_threads_here() -> None:
    """Let a forked process start parallel kernels after all, where its parent is known
    never to have started any.
    """
    _this_process.is_forked = False


def _after_fork() -> None:
    _this_process.is_forked = True


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
