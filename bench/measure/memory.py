"""Peak memory of a call above what was there before it, so without its inputs: its outputs and its workspace.

On CUDA torch's allocator counts, to the byte (every variant allocates through torch). On Linux the resident set's
high-water mark counts, to a page of 4 KiB: it sees every allocator, Numba's and the vendor libraries' too. Before it
is read the heap's free pages go back to the system, or a reused page would hide an allocation.
"""
from __future__ import annotations

import ctypes
import functools
import gc
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size ("high water mark")


@dataclass(frozen=True)
class Peak:
    """bytes above the start of the call, or None with the reason in `method`."""

    bytes: int | None
    method: str


def peak_of(call: Callable, device: str) -> Peak:
    """Run `call`, which must be warm, and say what it took at its peak."""
    return _device_peak(call) if device == "cuda" else _resident_peak(call)


def _device_peak(call: Callable) -> Peak:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del kept
    return Peak(peak - before, "torch.cuda.max_memory_allocated")


def _resident_peak(call: Callable) -> Peak:
    try:
        _lower_the_mark()
    except (OSError, AttributeError) as error:
        return Peak(None, f"not measured: needs glibc and a writable {_CLEAR_REFS} ({error})")
    # Of two calls the lower: what other threads of the process touch meanwhile can only add.
    return Peak(min(_resident_growth(call), _resident_growth(call)), "resident set")


def _resident_growth(call: Callable) -> int:
    _set_libraries_aside()
    gc.collect()  # what is garbage now must not be freed, and its pages reused, inside the call
    _lower_the_mark()
    before = _status_bytes("VmRSS")
    kept = call()
    peak = _status_bytes("VmHWM")
    del kept
    return max(0, peak - before)


def _lower_the_mark() -> None:
    """Give free heap pages back, and let the high-water mark start from what is resident now."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    _CLEAR_REFS.write_text(_RESET_PEAK)


@functools.cache
def _set_libraries_aside() -> None:
    """Once everything is imported: their objects live to the end, and each collection would walk them (0.17 s)."""
    gc.freeze()


def limit_to_available() -> None:
    """Make an allocation beyond the machine's free memory fail in this process, instead of the kernel killing it.

    Linux only (RLIMIT_DATA counts private writable mappings since 4.7); elsewhere it does nothing.
    """
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return
    available = _kibibytes(meminfo, "MemAvailable")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_status_bytes("VmData") + available * 9 // 10, hard))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is some library's way to say that memory ran out."""
    words = ("can't allocate memory", "out of memory", "out_of_memory")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(word in str(error).lower() for word in words)


def _status_bytes(name: str) -> int:
    return _kibibytes(Path("/proc/self/status").read_text(), name)


def _kibibytes(text: str, name: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
