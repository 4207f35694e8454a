"""An evidence's files are small enough to be committed, and to come back from a machine
that is lent: what was measured is compressed, and so is what is larger, or cut.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path

from batchline.bench import units

MOST_BYTES = 16 * 2**20 - 1
_MEASURED = ("run.json", "study.json")  # which are read compressed too


def shrink(folder: Path) -> Iterator[str]:
    """Compress what was measured, and each file of the folder that is too large; a line
    of each, for the README.
    """
    for path in sorted(
        path
        for path in folder.iterdir()
        if path.is_file()
        and (path.name in _MEASURED or path.stat().st_size > MOST_BYTES)
    ):
        content, smaller = path.read_bytes(), path.with_name(f"{path.name}.gz")
        compressed, kept = gzip.compress(content, mtime=0), len(content)
        while len(compressed) > MOST_BYTES:
            kept //= 2
            compressed = gzip.compress(content[:kept])
        smaller.write_bytes(compressed)
        path.unlink()
        cut = (
            ""
            if kept == len(content)
            else f", and cut after its first {units.size(kept)}"
        )
        yield f"{path.name} had {units.size(len(content))}: it is compressed{cut} (`gunzip {smaller.name}`)."
