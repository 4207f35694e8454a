"""The ops of other repositories: folders that `batchline.kernels` takes in beside its own.

BATCHLINE_OPS has the folders whose ops are measured. It is in the environment, so that
every process that is started from here reads the same ones, whatever starts it. Their
modules are `batchline.kernels.<op>`, as those of Batchline's own ops are.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

VARIABLE = "BATCHLINE_OPS"
SUITE = "batchline"  # in it: Batchline's own ops
_KERNELS = "batchline.kernels"
_MARKS = ((".git",), ("pyproject.toml", "setup.cfg", "setup.py"))


def named() -> list[str]:
    """The absolute folders whose ops are measured, and SUITE among them where
    Batchline's own are, too; [] where nothing but those are.
    """
    return [word for word in os.environ.get(VARIABLE, "").split(os.pathsep) if word]


def folders() -> list[Path]:
    """The folders of other repositories."""
    return [Path(word) for word in named() if word != SUITE]


def options() -> str:
    """What names those folders again, in a command that is advised: " --ops my_ops";
    "" where there are none.
    """
    return "".join(
        f" --ops {shlex.quote(os.path.relpath(folder))}" for folder in folders()
    )


def has(op_folder: Path) -> bool:
    """Whether an op's folder is in one of another repository."""
    return op_folder.parent in folders()


def read_folders(suite: Path) -> list[Path]:
    """All folders whose ops are measured; `suite` is that of Batchline's own."""
    words = named() or [SUITE]
    return [suite if word == SUITE else Path(word) for word in words]


def folder_of(op_name: str, suite: Path) -> Path:
    """The folder of an op of those that are measured; `suite` is that of Batchline's
    own.
    """
    named_so = [folder / op_name for folder in read_folders(suite)]
    return next((one for one in named_so if one.is_dir()), suite / op_name)


def use(words: Sequence[str]) -> None:
    """Measure the ops of these folders (SUITE is Batchline's own), in this process and
    in those that it starts.
    """
    os.environ[VARIABLE] = os.pathsep.join(words)
    take_in()


def take_in() -> None:
    """Let `batchline.kernels` have the folders' ops, and their files import what lies
    beside them in their repository.

    Of two revisions of it that the path of imports has, the one that is measured comes
    first.
    """
    if _Finder not in sys.meta_path:
        sys.meta_path.insert(0, _Finder)
    kernels = sys.modules.get(_KERNELS)
    if kernels is not None:
        kernels.__path__ += _missing_in(kernels.__path__)
    for root in dict.fromkeys(str(import_root(folder)) for folder in folders()):
        if root in sys.path:
            sys.path.remove(root)
        sys.path.insert(0, root)


class _Finder:
    """Finds `batchline.kernels`, with other repositories' folders on its path."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        if name != _KERNELS:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            places = spec.submodule_search_locations
            places += _missing_in(places)
        return spec


def _missing_in(path: Iterable[str]) -> list[str]:
    there = set(path)
    return [str(folder) for folder in folders() if str(folder) not in there]


def import_root(folder: Path) -> Path:
    """The folder from which what lies beside an ops' folder is imported: the first one
    above it that is no package.
    """
    root = folder.parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root


def repository() -> Path | None:
    """The root of the repository whose ops are measured; None where Batchline's own are
    among them.
    """
    words = named()
    return repository_of(Path(words[0])) if words and SUITE not in words else None


def repository_of(folder: Path) -> Path:
    """The root of a folder's repository: the nearest folder that git or a project has
    its files in, else the one above it.
    """
    for marks in _MARKS:
        for place in (folder, *folder.parents):
            if any((place / mark).exists() for mark in marks):
                return place
    return folder.parent


def folders_in(tree: Path) -> list[Path]:
    """The folders as they lie in another tree of their repository."""
    return [_moved(folder, tree) for folder in folders()]


def environment_in(tree: Path | str) -> dict[str, str]:
    """The variables of a process that measures the ops of another tree of their
    repository; {} where that is Batchline's.
    """
    if repository() is None:
        return {}
    return {VARIABLE: os.pathsep.join(map(str, folders_in(Path(tree))))}


def _moved(folder: Path, tree: Path) -> Path:
    root = repository()
    return tree / folder.relative_to(root) if folder.is_relative_to(root) else folder
