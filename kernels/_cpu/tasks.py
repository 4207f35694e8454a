"""Compiled functions run over ranges of tasks by Numba's threads, and the rules for
every start of those threads.

The loop over threads is compiled once, whatever runs in it, and calls through an
address: a function compiled `parallel` itself would be compiled three times over, with
all that it holds.

One parallel region runs at a time in a process, whichever of its Python threads starts
it: Numba's workqueue layer aborts the process on a second one. No region is started in
a forked child: its parent's threads did not come along. With GNU OpenMP Numba kills a
child whose parent ran its kernels, and waits for ever in one whose parent ran
PyTorch's.
"""

from __future__ import annotations

import os
import threading

from batchline.kernels._cpu.jit import njit, threads
from batchline.kernels._cpu.lanes import intrinsic, ir, types
from batchline.kernels.backends import numba
from batchline.kernels.forks import is_forked, why_no_threads

_region = (
    threading.RLock()
)  # re-entrant, for a signal handler may run between the kernel's end and the release


@intrinsic
def _call(typing, address, first, last, arguments):
    def generate(context, builder, signature, args):
        operands = [
            args[1],
            args[2],
            *(builder.extract_value(args[3], index) for index in range(len(arguments))),
        ]
        function = ir.FunctionType(
            ir.VoidType(), [operand.type for operand in operands]
        )
        builder.call(builder.inttoptr(args[0], function.as_pointer()), operands)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, arguments), generate


@njit()
def _run_alone(address, tasks, arguments):
    _call(address, 0, tasks, arguments)


@njit(parallel=True)
def _run_shared(address, tasks, shares, arguments):
    for share in numba.prange(shares):
        _call(
            address, tasks * share // shares, tasks * (share + 1) // shares, arguments
        )


def run(function, tasks: int, shares: int, arguments: tuple[int, ...]) -> None:
    """Call a `compile_tasks` function with (first, last, *arguments) for equal shares of the
    tasks, a thread for each.

    In a forked child the calling thread does all of them.
    """
    if shares == 1 or is_forked():
        _run_alone(function.address, tasks, arguments)
    else:
        with _region:
            _run_shared(function.address, tasks, shares, arguments)


def run_parallel(kernel, *arguments) -> None:
    """Call a kernel that Numba compiled `parallel`, which starts the threads itself.

    Raises:
        RuntimeError: in a forked child.
    """
    if is_forked():
        raise RuntimeError(
            f"{why_no_threads()}: call the op itself, which takes its baseline here, or start the child "
            'by multiprocessing\'s "spawn" or "forkserver"'
        )
    with _region:
        kernel(*arguments)


def shares(tasks: int, alone: bool) -> int:
    """A share of the tasks for every thread, or one for all where `alone`: not worth
    the start of the others.
    """
    return 1 if alone else min(tasks, threads())


def compile_tasks(function, count: int):
    """`function` of (first, last) and `count` more int64 for C, to be handed to `run`."""
    return numba.cfunc(numba.void(*[numba.int64] * (2 + count)))(function)


def _after_fork() -> None:
    _region._at_fork_reinit()  # it may be held by a thread that did not come along; the standard library does so, too


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
