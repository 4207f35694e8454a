"""How the ops' files are imported where they may be hostile: from their sources, with
nothing that watches.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader


class _SourceLoader(SourceFileLoader):
    """Compiles the source each time: what a variant writes into __pycache__ would be
    run in its place, today and later.
    """

    def get_code(self, fullname: str):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def from_sources_only(folders: Iterable[str]) -> None:
    """From now on import what lies in these folders from its sources."""
    for folder in folders:
        sys.path_importer_cache[folder] = FileFinder(
            folder, (_SourceLoader, SOURCE_SUFFIXES)
        )


def states(folders: Iterable[str]) -> dict[str, tuple[int, int]]:
    """When each Python file in these folders was last changed (which no program can set
    back), and its size.
    """
    found = {}
    for entry in (entry for folder in folders for entry in os.scandir(folder)):
        if entry.name.endswith(".py") and not entry.name.startswith(
            "."
        ):  # an editor's own
            with contextlib.suppress(FileNotFoundError):
                found[entry.path] = entry.stat().st_ctime_ns, entry.stat().st_size
    return found


def changed(
    before: Mapping[str, tuple[int, int]], now: Mapping[str, tuple[int, int]]
) -> list[str]:
    """The files that are not as they were, or are no more; a new one is nobody's that
    is measured.
    """
    return sorted(path for path, state in before.items() if now.get(path) != state)


def refuse_audit_hooks() -> None:
    """From now on no audit hook is added: one could not be removed again, and is told
    of every look of the fence.
    """
    sys.addaudithook(_refuse)


def _refuse(event: str, arguments: tuple) -> None:
    if event == "sys.addaudithook":
        raise RuntimeError(
            "no audit hook is added here"
        )  # which whoever adds one does not see
