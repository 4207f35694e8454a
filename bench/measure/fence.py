"""A fence around each variant's turn: the process must be after it as it was before.

What differs is Tampered, with the name of whoever had the turn, or of nobody where
several had one. What a compiler or a library does at a first call is no tampering:
modules that it loads, threads that sleep, its own variables.
"""

from __future__ import annotations

import gc
import pkgutil
import sys

from batchline import kernels
from batchline.bench.measure import placing, process_state, threads
from batchline.bench.measure.originals import Originals
from batchline.bench.measure.tampering import Tampered
from batchline.kernels.op import Variant

_LOADING = (
    "_registered",
    "_function",
)  # of an op, that change as its variants are loaded


class Fence:
    """Knows the process as it was when this was made: at a worker's start, before any
    variant is loaded.

    `collects`: whether garbage collection should be on; whoever switches it says so.
    """

    def __init__(self):
        self._own_files = {
            f"batchline.kernels.{op}.{module.name}"
            for op, folder in process_state.op_folders().items()
            for module in pkgutil.iter_modules([folder])
            if not module.name.startswith("_")
        }
        self._originals = Originals(self._own_files)
        self._ops: set[str] = set()
        self._variants: dict[tuple[str, str], Variant] = {}
        self.collects = gc.isenabled()
        self.keep_ops()
        self.accept()

    def accept(self) -> None:
        """Take the state as it is: after a change of our own, and a look before it."""
        self.accept_cores()
        self._quick = process_state.read(process_state.QUICK)
        self._full = process_state.read(process_state.FULL)
        self._threads, self._children = threads.ids(), threads.children()
        self._at_exit = process_state.exit_callbacks()
        self._numba_threads = process_state.numba_threads()

    def accept_cores(self) -> None:
        """Take the cores that threads may use as they are: after they were placed."""
        self._own_cores, self._cores = placing.cores(), placing.cores_by_thread()

    def keep_ops(self) -> None:
        """Take the ops that have just been imported as they are; an op is imported when
        it is first asked for.
        """
        for name in process_state.op_folders():
            op = getattr(sys.modules.get(f"batchline.kernels.{name}"), name, None)
            if op is not None and name not in self._ops:
                self._ops.add(name)
                self._originals.keep_object(name, op, except_for=_LOADING)

    def keep(self, variant: Variant) -> None:
        """Take a variant that has just been loaded as it is."""
        key = variant.op.name, variant.name
        if key not in self._variants:
            self._variants[key] = variant
            self._originals.keep_object(variant.id, variant)
            self._originals.keep_functions(variant.function.__module__)

    def loaded_files(self) -> frozenset[str]:
        """The variants' files that have been imported."""
        return frozenset(self._own_files & sys.modules.keys())

    def glance(self, whose: str | None) -> None:
        """Raise Tampered if what can be read in microseconds has changed."""
        if gc.isenabled() is not self.collects:
            raise Tampered(
                whose, f"it left garbage collection {'off' if self.collects else 'on'}"
            )
        if placing.cores() != self._own_cores:
            raise Tampered(whose, "it left the cores that it may use changed")
        self._require_same(whose, process_state.QUICK, self._quick)

    def look(self, whose: str | None) -> None:
        """Raise Tampered if anything has changed that must not. Takes a millisecond or
        two.
        """
        self.glance(whose)
        cores = placing.cores_by_thread()
        if any(
            cores.get(thread, allowed) != allowed
            for thread, allowed in self._cores.items()
        ):
            raise Tampered(whose, "it left a thread's cores changed")
        self._require_same(whose, process_state.FULL, self._full)
        if name := self._originals.changed():
            raise Tampered(whose, f"it replaced {name}")
        for (op, name), variant in self._variants.items():
            if kernels.ops[op].variants[name] is not variant:
                raise Tampered(whose, f"it replaced the variant {variant.id}")
        self._require_no_company(whose)
        self._require_same_exit(whose)
        self._originals.see_new()

    def _require_same(self, whose: str | None, readers, before: list) -> None:
        now = process_state.read(readers)
        if now != before:
            what, one, other = next(
                row for row in zip(readers, before, now) if row[1] != row[2]
            )
            raise Tampered(whose, f"it left {what} changed{_which(one, other)}")

    def _require_no_company(self, whose: str | None) -> None:
        """No thread at work and no child process that was not there before; Numba's
        pool as large as it was.
        """
        if names := threads.foreign():
            raise Tampered(
                whose, f"it left a thread of its own running ({', '.join(names)})"
            )
        now = threads.ids()
        if threads.busy(now - self._threads):
            raise Tampered(whose, "it left a thread that goes on computing")
        if threads.children() - self._children:
            raise Tampered(whose, "it left a child process")
        count = process_state.numba_threads()
        if self._numba_threads not in (None, count):
            raise Tampered(whose, "it left the number of Numba's threads changed")
        self._threads, self._numba_threads = now, count

    def _require_same_exit(self, whose: str | None) -> None:
        (count, modules), (before, modules_before) = (
            process_state.exit_callbacks(),
            self._at_exit,
        )
        if (
            count != before and modules == modules_before
        ):  # a library that was just loaded may have something to close
            raise Tampered(whose, "it left something to be called at exit")
        self._at_exit = count, modules


def _which(one: object, other: object) -> str:
    """Of what has names the first that differs, in brackets."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return ""
    return f" ({next(name for name in {**one, **other} if one.get(name) != other.get(name))})"
