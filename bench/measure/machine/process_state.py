"""What a variant could leave behind in the process that measures it: each thing by
name, and how it is read.

`QUICK` takes microseconds and is read after every turn. `FULL` takes a millisecond or
two.

The threads and child processes of this process: which are at work while no variant
has its turn.

What a variant did to the process that measures it: named where it is seen, ended
where it is heard of.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import importlib.util
import os
import pkgutil
import signal
import sys
import sysconfig
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Mapping
from importlib.machinery import FileFinder
from pathlib import Path
from time import (
    perf_counter as now_s,
)  # as it is now, whatever a variant makes of time.perf_counter later

import torch

import batchline
from batchline import kernels

try:
    import resource
except ImportError:  # on Windows, where nothing here is called
    resource = None


_TASKS = Path("/proc/self/task")
_RESTS_S = (
    0.015,
    0.1,
    0.5,
)  # OpenMP's threads spin before they sleep: milliseconds, and more on a busy machine
_WINDOW_S = 0.01
_BUSY = 0.1
_NAP_S = 1e-4
_LONGEST_WAIT_S = 0.02  # twice as long as OpenMP's threads were seen to spin
_TORCH = importlib.util.find_spec("torch")  # which is not imported for it
_LIBRARIES = tuple(
    {
        sysconfig.get_path(name)
        for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    | ({str(Path(_TORCH.origin).parents[1])} if _TORCH else set())
)
_COMPILERS = b"torch/_inductor"  # torch.compile keeps a pool of processes
_LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
_BY_LIBRARIES = (
    "TORCHINDUCTOR_",
    "_TORCHINDUCTOR_",
    "TRITON_CACHE_DIR",
    "KMP_INIT_AT_FORK",
    "KMP_DUPLICATE_LIB_OK",
    "PYTEST_CURRENT_TEST",
)  # variables that they set themselves
_PATHS = len(sys.path)
_FINDERS, _HOOKS = tuple(sys.meta_path), tuple(
    sys.path_hooks
)  # kept alive, or an address could be used again
# torch's operators that the baselines, the references and the checks call.
_OPERATORS = (
    "_scaled_mm",
    "_to_copy",
    "abs",
    "add.Tensor",
    "add_.Tensor",
    "addmm",
    "baddbmm",
    "bmm",
    "cat",
    "clone",
    "copy_",
    "div.Tensor",
    "einsum",
    "empty.memory_format",
    "empty_like",
    "empty_strided",
    "equal",
    "linalg_vector_norm",
    "linear",
    "matmul",
    "max",
    "mean",
    "mean.dim",
    "mm",
    "mul.Tensor",
    "mul_.Tensor",
    "mv",
    "sub.Tensor",
    "sum",
    "sum.dim_IntList",
)
# The keys by which a plain tensor's call goes. Others change by themselves, as batching
# rules loaded at a first use.
_KEYS = (
    "CPU",
    "CUDA",
    "Autograd",
    "Composite",
    "Python",
    "BackendSelect",
    "ADInplaceOrView",
)
_USUAL_DEPTH = 1000
_LEAST_NUMBER = 5e-324


def ids() -> frozenset[int]:
    """The system's numbers of all threads; none where it does not tell."""
    try:
        return frozenset(map(int, os.listdir(_TASKS)))
    except OSError:
        return frozenset()


def busy(numbers: frozenset[int]) -> frozenset[int]:
    """Those of the threads that go on computing when nothing is asked of them.

    Takes 25 ms if there are any threads, and more where some are still at it.
    """
    for rest_s in _RESTS_S:
        if not numbers:
            break
        time.sleep(rest_s)
        before = {number: _computed_s(number) for number in numbers}
        time.sleep(_WINDOW_S)
        numbers = frozenset(
            number
            for number in numbers
            if _computed_s(number) - before[number] > _BUSY * _WINDOW_S
        )
    return numbers


def wait_until_asleep() -> None:
    """Wait until all threads but this one sleep, and for 20 ms at most: OpenMP's spin
    for some time after their work.

    Takes 50 µs if they do.
    """
    mine, since_s = threading.get_native_id(), now_s()
    awake = ids() - {mine}
    while awake := {number for number in awake if _is_awake(number)}:
        if now_s() - since_s > _LONGEST_WAIT_S:
            return
        time.sleep(_NAP_S)


def foreign() -> list[str]:
    """The names of Python threads, but this one, that run code from outside of the
    libraries.
    """
    here, frames = threading.get_ident(), sys._current_frames()
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return [
        names.get(number, f"thread {number}")
        for number, frame in frames.items()
        if number != here and _is_foreign(frame)
    ]


def children() -> frozenset[int]:
    """The processes that this one has started, those of torch's compiler apart."""
    numbers = set()
    for task in ids():
        with contextlib.suppress(OSError):
            numbers |= set(
                map(int, (_TASKS / str(task) / "children").read_text().split())
            )
    return frozenset(number for number in numbers if not _compiles(number))


def _is_foreign(frame) -> bool:
    while frame:
        path = frame.f_code.co_filename
        if not path.startswith((*_LIBRARIES, "<frozen")):
            return True
        frame = frame.f_back
    return False


def _is_awake(number: int) -> bool:
    try:
        return (_TASKS / str(number) / "stat").read_bytes().rpartition(b") ")[2][
            :1
        ] == b"R"
    except OSError:  # it has ended
        return False


def _computed_s(number: int) -> float:
    try:
        return int((_TASKS / str(number) / "schedstat").read_text().split()[0]) * 1e-9
    except (OSError, ValueError, IndexError):  # it has ended
        return 0.0


def _compiles(process: int) -> bool:
    with contextlib.suppress(OSError):
        return _COMPILERS in Path(f"/proc/{process}/cmdline").read_bytes()
    return True  # it has ended


def _autocast() -> tuple:
    return tuple(
        (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
        for device in ("cpu", "cuda")
    )


def _float_unit() -> tuple:
    """How this thread's arithmetic treats numbers under the normal ones, and which way
    it rounds.
    """
    tiny, one = [_LEAST_NUMBER], [1.0]  # in lists, or the compiler computes it
    return tiny[0] * one[0] == 0, one[0] + tiny[0] > 1, one[0] - tiny[0] < 1


def _timers() -> tuple:
    return tuple(
        signal.getitimer(timer)
        for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
    )


def _other_threads() -> list[str]:
    """How many threads OpenMP and MKL use, which torch's own count does not tell."""
    return [
        line
        for line in torch.__config__.parallel_info().splitlines()
        if "_max_threads" in line
    ]


def _dispatch_keys() -> tuple[int, ...]:
    """The keys that this thread adds to every call's, and those that it leaves out."""
    sets = (
        getattr(torch._C, f"_dispatch_tls_local_{which}_set", None)
        for which in ("include", "exclude")
    )
    return tuple(keys().raw_repr() for keys in sets if keys)


QUICK: Mapping[str, Callable[[], object]] = {
    "torch's inference mode": torch.is_inference_mode_enabled,
    "whether gradients are recorded": torch.is_grad_enabled,
    "torch's default dtype": torch.get_default_dtype,
    "the number of torch's threads": torch.get_num_threads,
    "the precision of torch's float32 products": torch.get_float32_matmul_precision,
    "torch's deterministic mode": torch.are_deterministic_algorithms_enabled,
    "torch's stack of dispatch modes": torch._C._len_torch_dispatch_stack,
    "torch's stack of function modes": torch._C._len_torch_function_stack,
    "torch's autocast": _autocast,
    "the arithmetic of denormal numbers": _float_unit,
    "the collector's thresholds": gc.get_threshold,
    "the trace function": sys.gettrace,
    "the profile function": sys.getprofile,
    "the switch interval": sys.getswitchinterval,
    "the timers": _timers,
    "torch's dispatch keys": _dispatch_keys,
}


def _handlers() -> dict:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _limits() -> dict:
    return {name: resource.getrlimit(getattr(resource, name)) for name in _LIMITS}


def _error_filters() -> int:
    """Warnings that would be raised: what a library adds of its own ignores some, or
    shows them once.
    """
    return sum(rule[0] == "error" for rule in warnings.filters)


def _environment() -> dict:
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(_BY_LIBRARIES)
    }


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _standard_files() -> tuple:
    files = []
    for number in range(3):
        with contextlib.suppress(OSError):
            status = os.fstat(number)
            files.append((number, status.st_dev, status.st_ino))
    return tuple(files)


def _monitors() -> tuple:
    monitoring = getattr(sys, "monitoring", None)  # since Python 3.12
    return (
        tuple(monitoring.get_tool(number) for number in range(6)) if monitoring else ()
    )


def _torch_flags() -> tuple:
    backends = torch.backends
    return (
        backends.mkldnn.enabled,
        backends.cudnn.enabled,
        backends.cudnn.benchmark,
        backends.cudnn.deterministic,
        backends.opt_einsum.enabled,
        backends.cuda.matmul.allow_fp16_reduced_precision_reduction,
        backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        torch.is_anomaly_enabled(),
        torch.is_autocast_cache_enabled(),
        torch.get_num_interop_threads(),
        torch.is_warn_always_enabled(),
    )


def _operators() -> dict:
    """Where the kernels behind each operator were registered: who registers another one
    takes its place.
    """
    dump = getattr(torch._C, "_dispatch_dump", None)
    return (
        {
            name: [
                line
                for line in dump(f"aten::{name}").splitlines()
                if line.startswith(_KEYS)
            ]
            for name in _OPERATORS
        }
        if dump
        else {}
    )


def _finders() -> tuple:
    """Who finds modules: libraries add theirs behind. And the ops' folders that not the
    usual finder looks into.
    """
    strange = [
        folder
        for folder in op_folders().values()
        if type(sys.path_importer_cache.get(folder)) not in (type(None), FileFinder)
    ]
    return [
        id(one)
        for one in (*sys.meta_path[: len(_FINDERS)], *sys.path_hooks[: len(_HOOKS)])
    ], strange


def _device_files() -> dict:
    """When each tuning and dispatch file was last changed (which no program can set
    back), and its size.
    """
    folders = (
        os.path.join(folder, kind)
        for folder in op_folders().values()
        for kind in ("tuning", "dispatch")
    )
    files = (
        entry
        for folder in folders
        if os.path.isdir(folder)
        for entry in os.scandir(folder)
    )
    return {
        entry.path: (entry.stat().st_ctime_ns, entry.stat().st_size) for entry in files
    }


def _priority() -> tuple:
    return os.getpriority(os.PRIO_PROCESS, 0), (
        os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    )


FULL: Mapping[str, Callable[[], object]] = {
    **QUICK,
    "torch's default device": torch.get_default_device,
    "torch's flags": _torch_flags,
    "the signal handlers": _handlers,
    "the blocked signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
    "the resource limits": _limits,
    "the priority of the process": _priority,
    "the collector's callbacks": lambda: list(gc.callbacks),
    "the collector's debugging": gc.get_debug,
    "the recursion limit": lambda: sys.getrecursionlimit()
    < _USUAL_DEPTH,  # compilers raise it
    "the threads' trace function": threading.gettrace,
    "the threads' profile function": threading.getprofile,
    "the monitors of the interpreter": _monitors,
    "the tracing of memory": tracemalloc.is_tracing,
    "the warnings that are errors": _error_filters,
    "the environment variables": _environment,
    "the working directory": os.getcwd,
    "the umask": _umask,
    "the standard files": _standard_files,
    "the path of imports": lambda: [
        *sys.path[:_PATHS],
        *batchline.__path__,
    ],  # compilers put folders of their own behind
    "the threads of OpenMP and MKL": _other_threads,
    "the finders of modules": _finders,
    "the kernels behind torch's operators": _operators,
    "the tuning and dispatch files": _device_files,
}


def op_folders() -> dict[str, str]:
    """The folders of the ops by name; none is imported for it."""
    return _folders_in(tuple(kernels.__path__))


@functools.cache
def _folders_in(path: tuple[str, ...]) -> dict[str, str]:
    return {
        module.name: os.path.join(module.module_finder.path, module.name)
        for module in pkgutil.iter_modules(path)
        if module.ispkg and not module.name.startswith("_")
    }


def read(readers: Mapping[str, Callable[[], object]]) -> list:
    """The state, in the order of `readers`."""
    return [reader() for reader in readers.values()]


def numba_threads() -> int | None:
    """How many threads Numba's parallel kernels use, or None before there was one."""
    parallel = sys.modules.get("numba.np.ufunc.parallel")
    return parallel.get_num_threads() if parallel and parallel._is_initialized else None


def exit_callbacks() -> tuple[int, int]:
    """How many functions are called at exit, and how many modules are loaded, one of
    which may have added one.
    """
    return atexit._ncallbacks(), len(sys.modules)


class Tampered(Exception):
    """The process is not as it was, so nothing that it says later is believed: it ends,
    and the rest starts afresh.

    Args:
        whose: the label of the entry that did it; None where several had a turn since
        the last look. reason: one line that says what has changed.
    """

    def __init__(self, whose: str | None, reason: str):
        super().__init__(reason)
        self.whose = whose
        self.reason = reason
