"""What takes long to make is made once for all processes that share the tests
(pytest-xdist), and kept in a folder that ends with the session.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

Made = TypeVar("Made")
VARIABLE = "BATCHLINE_TESTS_SHARED"  # names the folder, also for processes of xdist


def open_folder() -> tempfile.TemporaryDirectory:
    """Make the folder of this session, and tell its processes."""
    folder = tempfile.TemporaryDirectory(
        prefix="batchline-tests-", ignore_cleanup_errors=True
    )
    os.environ[VARIABLE] = folder.name
    return folder


def make_once(name: str, make: Callable[[Path], Made]) -> Made:
    """What `make(folder)` returned in the first process that asked for `name`.

    Args:
        make: gets an empty folder of its own, whose files stay until the session ends.
        What it returns can be pickled. If it raises, the next one tries again.
    """
    root = Path(os.environ[VARIABLE])
    key = hashlib.sha256(name.encode()).hexdigest()[:16]
    file = root / f"{key}.pickle"
    with FileLock(root / f"{key}.lock"):
        if file.exists():
            return pickle.loads(file.read_bytes())
        made = make(Path(tempfile.mkdtemp(prefix=f"{key}-", dir=root)))
        file.write_bytes(pickle.dumps(made))
        return made
