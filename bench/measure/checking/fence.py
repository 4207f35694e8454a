"""A fence around each variant's turn: the process must be after it as it was before.

What differs is Tampered, with the name of whoever had the turn, or of nobody where
several had one. What a compiler or a library does at a first call is no tampering:
modules that it loads, threads that sleep, its own variables.

The functions that a measurement rests on, as they were when the worker started:
ours, torch's, the clock's.
"""

from __future__ import annotations

import builtins
import functools
import gc
import itertools
import math
import operator
import os
import pkgutil
import random
import signal
import statistics
import sys
import threading
import time
import types
from collections.abc import Iterable, Iterator, Mapping

import torch
import torch.utils._python_dispatch

from batchline import kernels
from batchline.bench.measure.machine import process_state
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.machine.state import cores, cores_by_thread
from batchline.kernels.op import Variant

_LIBRARIES = (
    builtins,
    functools,
    gc,
    itertools,
    math,
    operator,
    os,
    random,
    signal,
    statistics,
    threading,
    time,
    torch,
    torch.linalg,
    torch.utils._python_dispatch,
    torch.cuda,
    torch._C,
)
_TORCH_CLASSES = (
    torch.Tensor,
    torch._C._VariableFunctionsClass,
    torch.Generator,
    torch.UntypedStorage,
    torch.cuda.Event,
    torch.cuda.Stream,
    torch.cuda.CUDAGraph,
)
_WRAPPED_LATER = ("manual_seed",)  # by torch itself, when its compiler is first loaded
_are_all = all  # whatever a variant makes of builtins.all
_PARTS = tuple(map(operator.attrgetter, ("__code__", "__defaults__", "__kwdefaults__")))
_Functions = (types.FunctionType, types.BuiltinFunctionType, type)


class _Names:
    """What some names of one namespace stood for."""

    def __init__(
        self, where: str, namespace: Mapping, names: tuple[str, ...], values: tuple
    ):
        self._where, self._namespace, self._names, self._values = (
            where,
            namespace,
            names,
            values,
        )
        self._read = operator.itemgetter(*names, names[0])  # a tuple, of one name too

    def are_same(self) -> bool:
        try:
            return _are_all(
                map(operator.is_, self._read(self._namespace), self._values)
            )
        except KeyError:
            return False

    def first_changed(self) -> str:
        return next(
            f"{self._where}.{name}"
            for name, value in zip(self._names, self._values)
            if self._namespace.get(name) is not value
        )


class Originals:
    """What each name stands for, and what code each of our functions has. `changed`
    says what is another one now.

    `variants` are the names of modules that are variants' own: each may change itself.
    """

    def __init__(self, variants: Iterable[str] = ()):
        self._variants = set(variants)
        self._names: list[_Names] = []
        self._contents: list[tuple[str, object, object]] = []
        self._codes: dict[types.FunctionType, tuple] = {}
        self._seen: set[str] = set()
        self._loaded = 0  # modules, when new ones were last looked for
        for library in _LIBRARIES:
            self._keep_names(
                library.__name__, vars(library), _Functions, _WRAPPED_LATER
            )
        for kind in _TORCH_CLASSES:
            self._keep_names(f"torch.{kind.__name__}", vars(kind), object)
        self.see_new()

    def see_new(self) -> None:
        """Take our own modules that were loaded since then as they are."""
        if len(sys.modules) == self._loaded:
            return
        self._loaded = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if (
                name.partition(".")[0] == "batchline"
                and name not in self._seen
                and isinstance(module, types.ModuleType)
            ):
                self._seen.add(name)
                if name not in self._variants:
                    self._keep_module(name, module)

    def keep_object(
        self, name: str, value: object, except_for: Iterable[str] = ()
    ) -> None:
        """Take the attributes of an object as they are, and what they hold; but for
        some.
        """
        self._keep_names(name, vars(value), object, except_for)
        for attribute, held in vars(value).items():
            if attribute not in except_for:
                self._keep_contents(f"{name}.{attribute}", held)

    def keep_functions(self, module: str) -> None:
        """Take the functions of a variant's own module as they are: what else it has
        there is its own.
        """
        if module in sys.modules:
            self._keep_names(module, vars(sys.modules[module]), _Functions)

    def changed(self) -> str | None:
        """The first name that stands for something else now, or None."""
        for names in self._names:
            if not names.are_same():
                return names.first_changed()
        for part, read in enumerate(_PARTS):
            kept = map(operator.itemgetter(part), self._codes.values())
            if not _are_all(map(operator.is_, map(read, self._codes), kept)):
                return next(
                    f"the code of {function.__module__}.{function.__qualname__}"
                    for function, parts in self._codes.items()
                    if read(function) is not parts[part]
                )
        for where, held, content in self._contents:
            if not _same_content(held, content):
                return f"the content of {where}"
        return None

    def _keep_module(self, name: str, module: types.ModuleType) -> None:
        self._keep_names(name, vars(module), object)
        for attribute, value in list(vars(module).items()):
            if isinstance(value, type) and value.__module__ == name:
                self._keep_names(f"{name}.{attribute}", vars(value), object)
            elif not attribute.startswith("__"):
                self._keep_contents(f"{name}.{attribute}", value)

    def _keep_names(
        self, where: str, namespace: Mapping, kinds, except_for: Iterable[str] = ()
    ) -> None:
        kept = {
            name: value
            for name, value in list(namespace.items())
            if isinstance(value, kinds) and name not in except_for
        }
        if kept:
            self._names.append(
                _Names(where, namespace, tuple(kept), tuple(kept.values()))
            )
        for value in kept.values():
            for function in _functions_of(value):
                self._codes.setdefault(function, _parts(function))

    def _keep_contents(self, where: str, held: object) -> None:
        if isinstance(held, (dict, list, set)):
            self._contents.append((where, held, held.copy()))


def _functions_of(value: object) -> Iterator[types.FunctionType]:
    if isinstance(value, property):
        yield from (
            part
            for part in (value.fget, value.fset)
            if isinstance(part, types.FunctionType)
        )
    value = getattr(value, "__func__", value)
    if isinstance(value, types.FunctionType):
        yield value


def _parts(function: types.FunctionType) -> tuple:
    return tuple(read(function) for read in _PARTS)


def _same_content(held: object, content: object) -> bool:
    """Whether a container holds what it held; a dict may have grown, for many are
    caches.
    """
    if len(held) < len(content) or (
        len(held) > len(content) and not isinstance(held, dict)
    ):
        return False
    if isinstance(held, dict):
        return _are_all(map(operator.is_, map(held.get, content), content.values()))
    if isinstance(held, list):
        return _are_all(map(operator.is_, held, content))
    return held == content


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
        self._threads, self._children = process_state.ids(), process_state.children()
        self._at_exit = process_state.exit_callbacks()
        self._numba_threads = process_state.numba_threads()

    def accept_cores(self) -> None:
        """Take the cores that threads may use as they are: after they were placed."""
        self._own_cores, self._cores = cores(), cores_by_thread()

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
        if cores() != self._own_cores:
            raise Tampered(whose, "it left the cores that it may use changed")
        self._require_same(whose, process_state.QUICK, self._quick)

    def look(self, whose: str | None) -> None:
        """Raise Tampered if anything has changed that must not. Takes a millisecond or
        two.
        """
        self.glance(whose)
        cores = cores_by_thread()
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
        if names := process_state.foreign():
            raise Tampered(
                whose, f"it left a thread of its own running ({', '.join(names)})"
            )
        now = process_state.ids()
        if process_state.busy(now - self._threads):
            raise Tampered(whose, "it left a thread that goes on computing")
        if process_state.children() - self._children:
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
