"""What this machine has compiled before, by content: the key holds the sources and
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
from collections.abc import Sequence
from pathlib import Path

from batchline.bench.measure import environment, pins

_KEPT_S = 30 * 86400
# On which code may depend, beside the toolchain that names the pins: Numba links
# through the last two.
_OTHERS = ("torch", "llvmlite", "numpy", "cuda-core", "cuda-bindings")


def folder() -> Path:
    """In the user's cache: $XDG_CACHE_HOME, or ~/.cache (XDG Base Directory
    Specification).
    """
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        / "batchline"
        / "codegen"
    )


def key(job: pins.Job, sources: str) -> str:
    """What the compiled kernels of a job depend on, as a hash."""
    parts = [
        *job,
        sources,
        pins.toolchain(),
        environment.versions(_OTHERS),
        platform.python_version(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def load(name: str) -> list[dict] | None:
    """The rows kept under a key, or None."""
    path = folder() / f"{name}.json"
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
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=folder(), delete=False
        ) as file:
            file.write(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        Path(file.name).replace(folder() / f"{name}.json")
        for old in folder().iterdir():
            if old.stat().st_mtime < time.time() - _KEPT_S:
                old.unlink(missing_ok=True)
