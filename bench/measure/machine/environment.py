"""The machine, as a reader of the figures must know it: processor, GPU, driver,
versions, git revision.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

import torch

from batchline import own_ops, places
from batchline.bench import folders
from batchline.bench.git import git
from batchline.bench.measure import stand_in
from batchline.bench.measure.machine.state import most_share
from batchline.kernels import backends, cgroups
from batchline.kernels._cpu import jit
from batchline.kernels.device import cpu_name, device_name

_NEEDED = ("pytest", "pytest_benchmark", "tabulate", "sklearn", "scipy", "numpy")
_VERSIONS = (
    "torch",
    "triton",
    "numba",
    "numba-cuda",
    "llvmlite",
    "numpy",
    "scikit-learn",
    "pytest-benchmark",
    *backends.PEERS.values(),
)
# Words of a licence's own text, where a package does not name it otherwise.
_LICENCES = (
    ("Neither the name", "BSD-3-Clause"),
    ("Permission is hereby granted, free of charge", "MIT"),
    ("Apache License", "Apache-2.0"),
)
_GIT_S = 20  # the longest that a run waits for its revision
_REPOSITORY = places.CODE


def missing_packages() -> list[str]:
    """The packages without which nothing can be measured and that are not installed."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def resolve_device(asked: str) -> str:
    """ "cpu" or "cuda" for "auto", "cpu", "cuda" or "stand-in".

    Raises:
        ValueError: for another word, for "cuda" where torch sees no GPU, for the
            stand-in where it is not in its place, or on a system that is not Linux.
    """
    if sys.platform != "linux":
        raise ValueError(
            f"this needs Linux, and this is {platform.system()}: ops are read and measured in processes "
            "that are forked, and watched through /proc (NoiseMeter and the commands that read what is "
            "stored work here: report, compare, explain, history, advise --run)"
        )
    if asked == stand_in.NAME and stand_in.is_on():
        return "cuda"
    if asked not in ("auto", "cpu", "cuda"):
        raise ValueError(
            f"unknown device {asked!r}: use auto, cpu, cuda or {stand_in.NAME}"
        )
    usable = torch.cuda.is_available()
    if asked == "cuda" and not usable:
        why = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "torch sees no GPU"
        )
        raise ValueError(
            f"DEVICE=cuda, but {why} ({torch.__version__}): use DEVICE=cpu, or a machine with CUDA"
        )
    return ("cuda" if usable else "cpu") if asked == "auto" else asked


def machine(device: str) -> dict:
    """What the figures depend on, by name. Sizes in bytes.

    `cpu_quota` (in cores) and `memory_limit_bytes` are a container's, None without one;
    the threads are a worker's; `most_busy_share` is the share of the cores that others
    may take while something is measured; `peers` are the version and the licence of each
    library that is measured beside ours, by backend.

    Raises:
        ValueError: if that share was set to what is none.
    """
    facts = {
        "device": device,
        "device_name": device_name(device),
        "cpu": cpu_name(),
        "cpu_cores": (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count()
        ),
        "cpu_quota": cgroups.cpu_quota(),
        "cpu_threads_of_torch": threads_of_torch(),
        "cpu_threads_of_numba": _threads_of_numba(),
        "why_no_kernel_cache": jit.why_not_kept(),
        "most_busy_share": most_share(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "memory_limit_bytes": cgroups.memory_limit(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(_VERSIONS),
        "peers": {backend: _named(name) for backend, name in backends.PEERS.items()},
        "revision": revision(),
    }
    if stand_in.is_on():
        facts["stand_in"] = stand_in.WORDS
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = {
            "name": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "cuda_of_torch": torch.version.cuda,
            "driver": _driver_version(),
        }
    return facts


def threads_of_torch() -> int:
    """torch's threads where it measures: its own count, within a container's CPU quota."""
    return min(
        torch.get_num_threads(), cgroups.whole_cores() or torch.get_num_threads()
    )


def _threads_of_numba() -> int | None:
    return None if backends.why_absent("numba_cpu") else jit.threads()


def revision() -> dict:
    """The commit of the repository whose ops are measured, and whether the sources
    differ from it (reports don't).

    The commit is "unknown" where git does not say it, and whether they differ None.
    """
    commit = _ask_git("rev-parse", "HEAD")
    changed = (
        _ask_git(
            "status",
            "--porcelain",
            "--untracked-files=normal",
            "--",
            ".",
            *(f":!{folder}" for folder in _measured_into()),
        )
        if commit
        else None
    )
    return {
        "commit": commit or "unknown",
        "dirty": None if changed is None else bool(changed),
    }


def _measured_into() -> list[str]:
    """What is measured, and no source: below the repository whose ops are measured."""
    root, kept = own_ops.repository(), folders.runs().parent.resolve()
    if root is None or not kept.is_relative_to(root):
        return ["reports"]
    return [kept.relative_to(root).as_posix()]


def _ask_git(*arguments: str) -> str | None:
    """What git prints; None where it fails, is not there, or is not done in time, or
    Batchline is no checkout: a wheel may lie in somebody's repository.
    """
    repository = own_ops.repository() or (_REPOSITORY if places.IS_CHECKOUT else None)
    if repository is None:
        return None
    try:
        done = git(repository, *arguments, timeout_s=_GIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions(packages: Sequence[str]) -> dict[str, str]:
    """The version of each package, or "not installed"."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _named(package: str) -> str:
    """ "helion 1.5.1, BSD-3-Clause": a package, its version and its licence, as it says
    them; "helion, not installed".
    """
    try:
        metadata = importlib.metadata.metadata(package)
    except importlib.metadata.PackageNotFoundError:
        return f"{package}, not installed"
    return f"{package} {metadata['Version']}, {_licence(metadata)}"


def _licence(metadata: importlib.metadata.PackageMetadata) -> str:
    if expression := metadata.get("License-Expression"):
        return expression
    said = metadata.get("License") or ""
    for words, licence in _LICENCES:
        if words in said:
            return licence
    classifiers = metadata.get_all("Classifier") or []
    named = [one for one in classifiers if one.startswith("License ::")]
    if named:
        return named[0].rpartition(" :: ")[2]
    return said if 0 < len(said.split()) <= 4 else "licence not named"


def _driver_version() -> str:
    try:
        import pynvml

        pynvml.nvmlInit()
        return pynvml.nvmlSystemGetDriverVersion()
    except (
        Exception
    ) as error:  # whatever NVML's binding raises, a run without the driver's number is still a run
        return f"unknown ({type(error).__name__}: {error})"
