"""The pinned facts of the compiled kernels: one committed file a toolchain, with a
digest, so that no edit passes.

What this machine has compiled before, by content: the key holds the sources and
every version that matters.

Only a saving of time: a file that can't be read or written is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from batchline import own_ops, places
from batchline.bench import folders
from batchline.bench.measure.machine import environment
from batchline.bench.store import files
from batchline.bench.store.files import SealBroken

_KEPT_S = 30 * 86400
# On which code may depend, beside the toolchain that names the pins: Numba links
# through the last two.
_OTHERS = ("torch", "llvmlite", "numpy", "cuda-core", "cuda-bindings")


def cache_folder() -> Path:
    """In the user's cache: $XDG_CACHE_HOME, or ~/.cache (XDG Base Directory
    Specification).
    """
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "batchline"
        / "codegen"
    )


def key(job: Job, sources: str) -> str:
    """What the compiled kernels of a job depend on, as a hash."""
    parts = [
        *job,
        sources,
        toolchain(),
        environment.versions(_OTHERS),
        platform.python_version(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load_cached(name: str) -> list[dict] | None:
    """The rows kept under a key, or None."""
    path = cache_folder() / f"{name}.json"
    try:
        digest, _, rows = path.read_text(encoding="utf-8").partition("\n")
        if digest != hashlib.sha256(rows.encode()).hexdigest():
            return None
        os.utime(path)
        return json.loads(rows)
    except (OSError, ValueError):
        return None


def store(name: str, rows: Sequence[dict]) -> None:
    """Keep the rows under a key; what nobody has asked for in a month goes."""
    text = json.dumps(rows)
    with contextlib.suppress(OSError):
        cache_folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=cache_folder(), delete=False
        ) as file:
            file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        Path(file.name).replace(cache_folder() / f"{name}.json")
        for old in cache_folder().iterdir():
            if old.stat().st_mtime < time.time() - _KEPT_S:
                old.unlink(missing_ok=True)


Job = tuple[str, str]  # a variant's id, a dtype

FORMAT = 2
TOOLS = ("triton", "numba", "numba-cuda", "nvidia-nvvm", "nvidia-nvjitlink")
_PARTS = ("toolchain", "entries")


def toolchain() -> dict[str, str]:
    """The versions that compiled code depends on (Triton brings its own assembler)."""
    return environment.versions(TOOLS)


def folder() -> Path:
    """Where pins are kept: with Batchline's own ops, or in the repository of others."""
    return folders.baselines() if own_ops.repository() else places.BASELINES


def require_writable() -> None:
    """Make their folder, before the minutes that what is pinned takes.

    Raises:
        UsageError: if nothing can be written there.
    """
    setting = "`reports` in pyproject.toml" if own_ops.repository() else ""
    folders.require_writable(folder(), setting)


def command() -> str:
    """How everything that is measured here is pinned."""
    if own_ops.repository():
        return f"`batchline codegen{own_ops.options()} --pin`"
    return "`make codegen PIN=1`"


def path() -> Path:
    """Where this toolchain's facts are pinned."""
    versions = toolchain()
    return (
        folder()
        / f"codegen-triton-{versions['triton']}-numba-cuda-{versions['numba-cuda']}.json"
    )


def load() -> dict[Job, dict]:
    """What is pinned for this toolchain, by job: its "sources" and its "kernels"; {}
    where nothing is.

    Raises:
        SealBroken: if the file is damaged, was edited by hand, or is of another format
        or toolchain.
    """
    file = path()
    document = files.load_sealed(file, FORMAT, _again(), _PARTS)
    if document is None:
        return {}
    if document["toolchain"] != toolchain():
        differing = files.differing(document["toolchain"], toolchain())
        raise SealBroken(
            f"{file.name} is of another toolchain ({differing}): {_again()}"
        )
    return {
        tuple(name.rsplit("/", 1)): entry for name, entry in document["entries"].items()
    }


def save(entries: Mapping[Job, dict]) -> Path:
    """Write the toolchain's pin file: every job's "kernels", and the "sources" that
    they came from.
    """
    named = {"/".join(job): entry for job, entry in sorted(entries.items())}
    lines = ",\n".join(
        f" {json.dumps(name)}: {_entry(entry)}" for name, entry in named.items()
    )
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    return files.write_whole(
        file,
        f'{{"format": {FORMAT}, "digest": "{files.digest(toolchain(), named)}",\n'
        f'"toolchain": {json.dumps(toolchain())},\n"entries": {{\n{lines}\n}}}}\n',
    )


def why_none() -> str:
    """That nothing is pinned for this toolchain, and for which something is, in a line."""
    others = ", ".join(sorted(file.name for file in folder().glob("codegen-*.json")))
    return (
        f"nothing is pinned for {', '.join(f'{name} {version}' for name, version in toolchain().items())}"
        f"{f' (there is {others})' if others else ''}: {_again()}"
    )


def _again() -> str:
    return f"{command()} compiles and pins everything anew"


def _entry(entry: Mapping) -> str:
    """A kernel a line, so that a change of one is a line's change."""
    rows = ",\n  ".join(json.dumps(row) for row in entry["kernels"])
    return f'{{"sources": {json.dumps(entry["sources"])}, "kernels": [\n  {rows}]}}'
