"""Compiled functions run over ranges of tasks by Numba's threads.

The loop over threads is compiled once, whatever runs in it, and calls through an address: a function compiled
`parallel` itself would be compiled three times over, with all that it holds.
"""
from __future__ import annotations

from kernels.backends import numba
from kernels.cpu_lanes import intrinsic, ir, types
from kernels.numba_cpu import njit, threads


@intrinsic
def _call(typing, address, first, last, arguments):
    def generate(context, builder, signature, args):
        words = [args[1], args[2], *(builder.extract_value(args[3], index) for index in range(len(arguments)))]
        function = ir.FunctionType(ir.VoidType(), [word.type for word in words])
        builder.call(builder.inttoptr(args[0], function.as_pointer()), words)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, arguments), generate


@njit(parallel=True)
def run(address, tasks, shares, arguments):
    """Call the C function at `address` with (first, last, *arguments), all int64, for equal shares of the tasks."""
    if shares == 1:
        _call(address, 0, tasks, arguments)
    else:
        for share in numba.prange(shares):
            _call(address, tasks * share // shares, tasks * (share + 1) // shares, arguments)


def shares(tasks: int, alone: bool) -> int:
    """A share of the tasks for every thread, or one for all where `alone`: not worth the start of the others."""
    return 1 if alone else min(tasks, threads())


def compiled(function, count: int):
    """`function` of (first, last) and `count` more int64 for C. Keep it: its .address is good for as long."""
    return numba.cfunc(numba.void(*[numba.int64] * (2 + count)))(function)
