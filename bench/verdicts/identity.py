"""Which machine timed a run: what must be the same before two times may stand beside
each other.
"""

from __future__ import annotations

from collections.abc import Mapping

TOOLCHAIN = ("torch", "triton", "numba", "numba-cuda")
_UNKNOWN = "unknown"


def identity(machine: Mapping) -> dict[str, str]:
    """The hardware and driver of a run's machine, name → value; the threads of torch
    count where a CPU is timed.
    """
    gpu = machine.get("gpu")
    facts = {
        "CPU": str(machine.get("cpu", _UNKNOWN)),
        "timed on": str(machine.get("device_name", _UNKNOWN)),
    }
    if gpu:
        facts |= {
            "GPU": str(gpu.get("name", _UNKNOWN)),
            "GPU memory": _gibibytes(gpu.get("memory_bytes")),
            "driver": str(gpu.get("driver", _UNKNOWN)).partition(".")[0],
        }
    if machine.get("device") != "cuda":
        facts["threads"] = str(machine.get("cpu_threads_of_torch", _UNKNOWN))
    return facts


def toolchain(machine: Mapping) -> dict[str, str]:
    """The versions of what compiles the kernels, package → version."""
    versions = machine.get("versions", {})
    return {name: str(versions.get(name, _UNKNOWN)) for name in TOOLCHAIN}


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[str]:
    """Each fact that is not the same on both sides: "torch 2.12.0 → 2.13.0"."""
    return [
        f"{name} {a.get(name, 'none')} → {b.get(name, 'none')}"
        for name in dict.fromkeys([*a, *b])
        if a.get(name) != b.get(name)
    ]


def machine_differences(a: Mapping, b: Mapping) -> list[str]:
    """The differences of two runs' machines, hardware and toolchain."""
    return [
        *differences(identity(a), identity(b)),
        *differences(toolchain(a), toolchain(b)),
    ]


def _gibibytes(size_bytes: float | None) -> str:
    """To whole GiB: the driver keeps some, and not always as much."""
    return f"{size_bytes / 2 ** 30:.0f} GiB" if size_bytes else _UNKNOWN
