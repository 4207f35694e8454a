"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> Path:
    """Write `text` to `path`, in UTF-8: a reader sees what was there before, or all of
    it, also after a power cut.

    Raises:
        OSError: if it can't be written; what was there before is still there.
    """
    unfinished = path.with_suffix(".partial")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    return path
