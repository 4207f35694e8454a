"""Files that were stored earlier: read in one place, and whatever their damage breaks
later is blamed on them.
"""

from __future__ import annotations

import contextlib
import json
import traceback
from collections.abc import Iterator
from pathlib import Path

from batchline.bench.errors import UsageError
from batchline.bench.files import read_text
from batchline.bench.texts import clean_line

_MOST_SIGNS = 200  # of an error's own message


class DamagedFile(UsageError):
    """A stored file that can't be used: which file, and what is wrong with it, in a
    line.
    """


def read_json(path: Path):
    """What the JSON file holds; one whose name ends in .gz is compressed.

    Raises:
        OSError: if there is no such file, or it can't be read.
        DamagedFile: if it is not an ordinary file (reading a pipe would wait for ever),
        or not JSON.
    """
    if path.exists() and not path.is_file():
        raise DamagedFile(f"{path} is not an ordinary file")
    try:
        return json.loads(read_text(path))
    except (
        ValueError,
        RecursionError,
    ) as error:  # of JSON, of UTF-8, of too long a number, of too deep a nesting
        raise DamagedFile(f"{path} is damaged: {_described(error)}") from error


@contextlib.contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Turn what fails in the block into one line that names the stored file whose
    content it works on.

    A stored file can be wrong in more ways than a reader can ask for: a name that is a
    number, a time below zero. The line also names the place in Batchline, in case the
    fault is there.

    Raises:
        DamagedFile: for any error but those that name what to do (UsageError) and those
        of the system (OSError).
    """
    try:
        yield
    except (UsageError, OSError):
        raise
    except Exception as error:
        raise DamagedFile(
            f"{path} is damaged, or of another version of Batchline: {_described(error)} "
            f"({_place_of(error)})"
        ) from error


def _described(error: BaseException) -> str:
    return f"{type(error).__name__}: {clean_line(error, _MOST_SIGNS)}"


def _place_of(error: BaseException) -> str:
    """The innermost line of Batchline that the error passed through: "tables.py:33"."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "bench" in Path(frame.filename).parts] or list(
        frames
    )
    return f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
