"""Peak memory of a call above what was there before it, so without its inputs: its
outputs and its workspace.

On CUDA torch's allocator counts, to the byte, and what the device lost outside of it is
added (Numba's own allocations, a vendor library's). On Linux the resident set's
high-water mark counts, to a page of 4 KiB: it sees every allocator. Before it is read
the heap's free pages go back to the system, or a reused page would hide an allocation.

What calls leave behind when their outputs are gone (`measure_usage`, `kept_since`) is memory
that the variant keeps for good.

The largest batch that fits: what a memory law predicts, tried out on the machine
without ever running away.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

try:
    import resource
except ImportError:  # on Windows, where nothing here is called
    resource = None

import torch

from batchline.bench import texts
from batchline.bench.stats.fits import MemoryLaw
from batchline.kernels import cgroups
from batchline.kernels.op import Tensors, Variant

MARGIN = (
    0.05  # a prediction is confirmed when it fits 5% below and does not fit 5% above
)


def confirm(
    variant: Variant,
    scenario: str,
    dtype: str,
    law: MemoryLaw,
    device: str,
    room_bytes: int | None = None,
) -> dict:
    """Call `variant` at 95% and at 105% of the largest batch that the law (inputs and
    peak together) predicts.

    The room is what this process may still allocate: an allocation beyond it fails as
    an error (on a CPU through the limit of bench.measure.machine.memory), so nothing is swapped
    and nothing is killed. Inputs are allocated and never written: the system gives a
    page of them memory only when it is written to.

    Args:
        room_bytes: take so much as the room; by default all that there is.

    Returns:
        room_bytes, predicted (the batch) and fits: {"95%": True or False, "105%": ...};
        or why_not.
    """
    if variant.slow_start:
        return {"why_not": "what it compiles for each batch takes memory of its own"}
    return_freed_memory()
    _fits(
        variant, scenario, dtype, 1, device
    )  # what it imports and compiles is not to be taken out of the room
    if room_bytes is not None and device == "cpu":
        limit_to(room_bytes)
    room_there = room(device)
    if room_there is None:
        return {"why_not": "this process's memory is not limited here"}
    predicted = law.largest_batch(room_there)
    if not predicted:
        return {
            "why_not": (
                "it does not grow" if predicted is None else "not even one sample fits"
            )
        }
    below, above = int(predicted * (1 - MARGIN)), int(predicted * (1 + MARGIN)) + 1
    return {
        "room_bytes": room_there,
        "predicted": predicted,
        "fits": {
            "95%": _fits(variant, scenario, dtype, below, device),
            "105%": _fits(variant, scenario, dtype, above, device),
        },
    }


def _fits(variant: Variant, scenario: str, dtype: str, batch: int, device: str) -> bool:
    try:
        variant(
            *_unwritten(variant.op.make_inputs(scenario, batch, dtype, "meta"), device)
        )
        if device == "cuda":
            torch.cuda.synchronize()
        return True
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        room(device)


def _unwritten(shapes: Tensors, device: str) -> Tensors:
    """Tensors of these shapes and strides whose memory is allocated and not written."""
    storages: dict[int, torch.UntypedStorage] = {}
    tensors = []
    for meta in shapes:
        key = meta.untyped_storage()._cdata
        if key not in storages:
            storages[key] = torch.UntypedStorage(
                meta.untyped_storage().nbytes(), device=device
            )
        tensors.append(
            torch.empty(0, dtype=meta.dtype, device=device).set_(
                storages[key], meta.storage_offset(), meta.shape, meta.stride()
            )
        )
    return tuple(tensors)


def storage_bytes(tensors: Tensors) -> int:
    """Bytes of the distinct storages behind the tensors: what holding them takes."""
    return sum(
        {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes()
            for tensor in tensors
        }.values()
    )


_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): resets the peak resident set size ("high water mark")
# What honest calls leave behind: of 598 first calls on new shapes on a CPU the most was
# 3.7 MB (heap pages half in use, a library's packing buffers). A driver loads modules
# and sets stacks aside, of sizes that nobody states.
_KEPT_BY_HONEST_CALLS = 2**23
_TAKEN_BY_DRIVERS = 2**26
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # mallopt(3)


@dataclass(frozen=True)
class Peak:
    """bytes above the start of the call, or None with the reason in `method`."""

    bytes: int | None
    method: str


def peak_of(call: Callable, device: str) -> Peak:
    """Run `call`, which must be warm, and say what it took at its peak."""
    return _device_peak(call) if device == "cuda" else _resident_peak(call)


@dataclass(frozen=True)
class Usage:
    """Bytes in use on a device: by the process (a CPU) or by torch's allocator, and
    outside of it.
    """

    device: str
    bytes: int
    outside: int


def measure_usage(device: str) -> Usage | None:
    """What is in use now, garbage and free pages aside; None where the system does not
    say.
    """
    gc.collect()
    gc.freeze()  # as for a peak
    if device == "cuda":
        torch.cuda.synchronize()
        return Usage(device, torch.cuda.memory_allocated(), _outside_torch())
    _trim()
    try:
        return Usage(device, _status_bytes("VmRSS"), 0)
    except OSError:
        return None


def kept_since(before: Usage | None) -> int | None:
    """Bytes that what ran since has kept for good, its outputs gone; 0 where honest
    calls leave as much behind.

    None where it can't be known.
    """
    now = measure_usage(before.device) if before else None
    if now is None:
        return None
    grown, outside = now.bytes - before.bytes, now.outside - before.outside
    return (grown if grown > _KEPT_BY_HONEST_CALLS else 0) + (
        outside if outside > _TAKEN_BY_DRIVERS else 0
    )


def _device_peak(call: Callable) -> Peak:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, outside_before = torch.cuda.memory_allocated(), _outside_torch()
    with _numba_frees_later():
        kept = call()
        torch.cuda.synchronize()
        peak, outside = (
            torch.cuda.max_memory_allocated() - before,
            _outside_torch() - outside_before,
        )
    del kept
    return Peak(
        peak + max(0, outside),
        "torch's allocator and what the device lost outside of it",
    )


def _outside_torch() -> int:
    """Device bytes in use that torch's allocator does not hold. The driver hands memory
    out in steps of 2 MiB.
    """
    free, total = torch.cuda.mem_get_info()
    return total - free - torch.cuda.memory_reserved()


def _numba_frees_later():
    """Keeps what Numba allocates until the end, where it is counted: after the call
    some of it would be gone.
    """
    numba_cuda = sys.modules.get("numba.cuda")
    return numba_cuda.defer_cleanup() if numba_cuda else contextlib.nullcontext()


def _resident_peak(call: Callable) -> Peak:
    try:
        _lower_the_mark()
    except (OSError, AttributeError) as error:
        return Peak(
            None, f"not measured: needs glibc and a writable {_CLEAR_REFS} ({error})"
        )
    # Of two calls the lower: what other threads of the process touch meanwhile can only
    # add.
    return Peak(min(_resident_growth(call), _resident_growth(call)), "resident set")


def _resident_growth(call: Callable) -> int:
    gc.collect()  # what is garbage now must not be freed, and its pages reused, inside the call
    gc.freeze()  # what is left will stay: libraries, compiled kernels; each collection would walk them (0.06 s)
    _lower_the_mark()
    before = _status_bytes("VmRSS")
    kept = call()
    peak = _status_bytes("VmHWM")
    del kept
    return max(0, peak - before)


def _lower_the_mark() -> None:
    """Give free heap pages back, and let the high-water mark start from what is
    resident now.
    """
    _trim()
    _CLEAR_REFS.write_text(_RESET_PEAK)


def limit_to_available() -> None:
    """Make an allocation beyond the memory that is free fail in this process, instead
    of the kernel killing it.

    Free is what the machine has, or a container's limit leaves where that is less.
    Linux only (RLIMIT_DATA counts private writable mappings since 4.7); elsewhere it
    does nothing.
    """
    free = free_bytes()
    if free is not None:
        limit_to(free * 9 // 10)


def free_bytes() -> int | None:
    """What the machine has, or a container's limit leaves where that is less; None
    where neither is told.
    """
    try:
        meminfo = Path("/proc/meminfo").read_text()
    except OSError:
        return None
    available, allowed = _kibibytes(meminfo, "MemAvailable"), cgroups.memory_room()
    return available if allowed is None else min(available, allowed)


def limit_to(more_bytes: int) -> None:
    """Let this process allocate so many bytes more than it has, and no further."""
    _trim()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(
        resource.RLIMIT_DATA, (_status_bytes("VmData") + more_bytes, hard)
    )


def room(device: str) -> int | None:
    """Bytes that this process can still allocate on the device; None on a CPU where
    that is not limited.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    soft, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        return None
    _trim()
    return soft - _status_bytes("VmData")


def keep_freed_memory() -> None:
    """Make the C heap keep what is freed, as torch's allocator does on a GPU, so that
    calls reuse warm pages.

    By default glibc hands large blocks back to the system each time, and the next call
    takes a page fault for every 4 KiB of its output. glibc only; elsewhere it does
    nothing.
    """
    _set_heap({_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1})


def return_freed_memory() -> None:
    """Make the C heap hand large blocks back as they are freed: then only what is in
    use counts against a limit.
    """
    large = 2**24  # not the scratch of a task, of which a call may take millions
    _set_heap({_M_MMAP_MAX: 65536, _M_MMAP_THRESHOLD: large, _M_TRIM_THRESHOLD: large})
    _trim()


def _set_heap(options: Mapping[int, int]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        for option, value in options.items():
            libc.mallopt(option, value)


def _trim() -> None:
    """Give the heap's free pages back to the system (glibc)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is some library's way to say that memory ran out."""
    words = ("can't allocate memory", "out of memory", "out_of_memory")
    message = texts.message_of(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        word in message for word in words
    )


def _status_bytes(name: str) -> int:
    return _kibibytes(Path("/proc/self/status").read_text(), name)


def _kibibytes(text: str, name: str) -> int:
    line = next(line for line in text.splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
