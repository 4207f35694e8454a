"""Writes what kernels.device_files reads: what was measured on a device, an entry a line, beside the kernels."""
from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bench.errors import UsageError
from kernels.device_files import stored


def write(path: Path, header: Mapping, winners: str) -> None:
    """Write a table: `header` a line each in its order, then the winners as JSON that is already laid out.

    The file appears whole or not at all.

    Raises:
        UsageError: if it can't be written.
    """
    lines = [f" {json.dumps(name)}: {json.dumps(value)}," for name, value in header.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".partial")
        unfinished.write_text("\n".join(["{", *lines, f' "winners": {winners}', "}"]) + "\n", encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror})") from error
    stored.cache_clear()
