"""Files that appear whole or not at all, and that may be stored compressed.

What is committed of a run is run.json.gz: `gunzip -k run.json.gz` makes of it what
`pytest-benchmark compare` reads.
"""

from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path

COMPRESSED = ".gz"


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


def stored_path(path: Path) -> Path:
    """`path`, or the compressed file beside it where only that is there."""
    compressed = path.with_name(path.name + COMPRESSED)
    return compressed if compressed.exists() and not path.exists() else path


def stored_below(parent: Path, name: str) -> list[Path]:
    """The file of that name, compressed or not, of each folder below `parent` that has
    it; in the order of the folders' names.
    """
    folders = {path.parent for path in parent.glob(f"*/{name}")}
    folders |= {path.parent for path in parent.glob(f"*/{name}{COMPRESSED}")}
    return [stored_path(folder / name) for folder in sorted(folders)]


def read_text(path: Path) -> str:
    """The text of a file, which may be compressed.

    Raises:
        OSError: if there is no such file, or it can't be read.
        ValueError: if it is damaged.
    """
    if path.suffix != COMPRESSED:
        return path.read_text(encoding="utf-8")
    content = path.read_bytes()
    try:
        return gzip.decompress(content).decode("utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(str(error)) from error


def compress(path: Path) -> Path:
    """Put the compressed file in the place of a file; the same content gives the same
    bytes.
    """
    compressed = path.with_name(path.name + COMPRESSED)
    compressed.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    path.unlink()
    return compressed
