"""What a file changes in its process when it is imported, and should not: whoever is measured after it would pay."""
from __future__ import annotations

import builtins
import gc
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import torch

_TIMERS = ("time", "time_ns", "perf_counter", "perf_counter_ns", "monotonic", "monotonic_ns", "process_time",
           "process_time_ns", "thread_time", "sleep")
_LIMITS = ("RLIMIT_AS", "RLIMIT_CORE", "RLIMIT_CPU", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_MEMLOCK", "RLIMIT_NOFILE",
           "RLIMIT_NPROC", "RLIMIT_STACK")
_ITIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_SHOWN = 100  # characters of the names that have changed


def snapshot() -> dict[str, object]:
    """The state of this process, by what it is called."""
    return _state_of_torch() | _state_of_python() | _state_of_system()


def differences(before: dict[str, object], after: dict[str, object]) -> list[str]:
    """A line for each thing that is not as it was: "the default device (cpu, then cuda)"."""
    return [f"{name}{_change(value, after[name])}" for name, value in before.items() if after[name] != value]


def _state_of_torch() -> dict[str, object]:
    return {
        "the default device": str(torch.get_default_device()),
        "the default dtype": str(torch.get_default_dtype()),
        "torch's threads": torch.get_num_threads(),
        "torch's grad mode": torch.is_grad_enabled(),
        "torch's inference mode": torch.is_inference_mode_enabled(),
        "torch's autocast": tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
        "torch's deterministic mode": torch.are_deterministic_algorithms_enabled(),
        "torch's precision of float32 products": torch.get_float32_matmul_precision(),
        "torch's function modes": torch._C._len_torch_function_stack(),
        "torch's dispatch modes": torch._C._len_torch_dispatch_stack(),
        "torch.bmm and its like": tuple(map(id, (torch.bmm, torch.matmul, torch.empty, torch.equal, torch.Tensor.sum))),
    }


def _state_of_python() -> dict[str, object]:
    return {
        "the garbage collector": (gc.isenabled(), gc.get_threshold()),
        "the recursion limit": sys.getrecursionlimit(),
        "the switch interval": sys.getswitchinterval(),
        "sys.path": tuple(sys.path),
        "a tracer or profiler": (id(sys.gettrace()), id(sys.getprofile())),
        "a clock of Python": tuple(id(getattr(time, name)) for name in _TIMERS),
        "a built-in function": tuple(id(value) for name, value in sorted(vars(builtins).items()) if callable(value)),
        "the threads of Python": threading.active_count(),
    }


def _state_of_system() -> dict[str, object]:
    return {
        "the environment": dict(os.environ),
        "the working directory": _working_directory(),
        "the handlers of signals": tuple(str(signal.getsignal(number)) for number in signal.valid_signals()),
        "the blocked signals": tuple(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
        "a timer of the system": any(signal.getitimer(which)[0] for which in _ITIMERS),
        "its priority": os.getpriority(os.PRIO_PROCESS, 0),
        "its cores": tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else None,
        "its limits": tuple(resource.getrlimit(getattr(resource, name)) for name in _LIMITS),
        "its child processes": _children(),
    }


def _working_directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _children() -> int:
    try:
        return len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    except OSError:
        return 0


def _change(before: object, after: object) -> str:
    """" (cpu, then cuda)" where that can be shown; of an environment the names alone, for its values may be secrets."""
    if isinstance(before, dict):
        changed = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
        return f" ({', '.join(changed)[:_SHOWN]})"
    return f" ({before}, then {after})" if isinstance(before, (str, int, float)) else ""
