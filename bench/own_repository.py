"""Ops that lie in another repository: which folders have them, and where what is measured
of them is kept.

They are named by `--ops`, by BATCHLINE_OPS, or once for all in the repository itself:
`[tool.batchline]` in pyproject.toml, `[tool:batchline]` in setup.cfg. The ops of
installed packages (the entry points `batchline.ops`) are measured beside Batchline's own.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import importlib.util
import os
import pkgutil
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from batchline import own_ops, places
from batchline.bench import folders
from batchline.bench.errors import UsageError

GROUP = "batchline.ops"
KEPT = ".batchline"
_OPS, _REPORTS = "ops", "reports"


@dataclass(frozen=True)
class Settings:
    """What a repository says of its ops: in which file, the words of --ops (absolute
    folders, and own_ops.SUITE), and where what is measured of them is kept.
    """

    file: Path
    ops: tuple[str, ...]
    reports: Path


def use(words: Sequence[str] | None) -> None:
    """Measure the ops that these words of `--ops` name, in this process and in those
    that it starts; None where the command was not asked: what is said elsewhere holds.

    Raises:
        UsageError: for a folder that has no ops, or one that clashes with another.
    """
    settings = read_settings(Path.cwd())
    said = settings.ops if settings else ()
    named = words or own_ops.named() or said or _with_installed()
    if named:
        absolute = [_absolute(word) for word in named]
        _require_no_clash([Path(word) for word in absolute if word != own_ops.SUITE])
        own_ops.use(absolute)
    keep(settings)


def keep(settings: Settings | None) -> None:
    """Keep what is measured where the settings say; without them in the repository of
    the ops that are measured, if that is another.
    """
    root = own_ops.repository()
    if settings:
        os.environ[folders.VARIABLE] = str(settings.reports)
    elif root and not os.environ.get(folders.VARIABLE):
        os.environ[folders.VARIABLE] = str(root / KEPT)


def read_settings(start: Path) -> Settings | None:
    """What the repository that `start` lies in says; None where it says nothing.

    Raises:
        UsageError: if it can't be read, or says what there is not.
    """
    for place in (start, *start.parents):
        for file, read in _FILES:
            path = place / file
            said = read(path) if path.is_file() else None
            if said is not None:
                return _settings(path, said)
        if (place / ".git").exists():
            return None
    return None


def _text(path: Path) -> str:
    try:
        # a file in another encoding may say nothing to batchline
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from error


def _from_toml(path: Path) -> Mapping | None:
    text = _text(path)
    if "batchline" not in text:
        return None
    try:
        tool = tomllib.loads(text).get("tool", {})
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    return tool.get("batchline") if isinstance(tool, Mapping) else None


def _from_cfg(path: Path) -> Mapping | None:
    text = _text(path)
    if "batchline" not in text:
        return None
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise UsageError(f"{path} can't be read: {error}") from error
    if "tool:batchline" not in parser:
        return None
    said = dict(parser["tool:batchline"])
    return {**said, _OPS: said[_OPS].split()} if _OPS in said else said


_FILES = (("pyproject.toml", _from_toml), ("setup.cfg", _from_cfg))


def _settings(path: Path, said: object) -> Settings:
    if not isinstance(said, Mapping):
        raise UsageError(f'{path}: write [tool.batchline], and below it ops = "my_ops"')
    if unknown := [name for name in said if name not in (_OPS, _REPORTS)]:
        raise UsageError(
            f"{path} says {unknown[0]!r} to batchline, which knows {_OPS} and {_REPORTS}"
        )
    ops, reports = said.get(_OPS, []), said.get(_REPORTS, KEPT)
    ops = [ops] if isinstance(ops, str) else ops
    if not isinstance(ops, list) or not all(
        one and isinstance(one, str) for one in ops
    ):
        raise UsageError(f"{path}: {_OPS} is no folder, and no list of folders")
    if not isinstance(reports, str):
        raise UsageError(f"{path}: {_REPORTS} is no folder")
    words = (one if one == own_ops.SUITE else str(path.parent / one) for one in ops)
    return Settings(path, tuple(words), path.parent / reports)


def _with_installed() -> list[str]:
    """Batchline's own ops and those of installed packages; [] where there are none of
    these.
    """
    installed = [str(_folder_of(one)) for one in _entry_points()]
    return [own_ops.SUITE, *installed] if installed else []


def _entry_points() -> Sequence[importlib.metadata.EntryPoint]:
    return sorted(importlib.metadata.entry_points(group=GROUP))


def _folder_of(entry_point: importlib.metadata.EntryPoint) -> Path:
    """The folder of the package that an entry point names, without importing it."""
    top, *below = entry_point.value.split(".")
    spec = importlib.util.find_spec(top)
    places_of_it = spec.submodule_search_locations if spec else None
    for place in places_of_it or ():
        if Path(place, *below).is_dir():
            return Path(place, *below)
    raise UsageError(
        f"the installed package {entry_point.dist.name} says that its ops are in "
        f"{entry_point.value}, and there is no such package: install it again, or "
        "uninstall it"
    )


def _absolute(word: str) -> str:
    """The absolute folder that a word names; SUITE is itself.

    Raises:
        UsageError: if no op is there.
    """
    if word == own_ops.SUITE:
        return word
    if not word:
        raise UsageError('--ops "" names no folder')
    folder = Path(word).resolve()
    if os.pathsep in str(folder):
        raise UsageError(f"{folder} has {os.pathsep!r} in its name: rename it")
    if not folder.is_dir():
        raise UsageError(f"there is no folder {word} with ops in it")
    if not any(_is_op(name, ispkg) for name, ispkg in _modules(folder)):
        above = (
            f": {word} may be one itself, then name the folder above it"
            if (folder / "__init__.py").is_file()
            else ": `batchline new op NAME` writes one"
        )
        raise UsageError(
            f"{word} has no op, which is a folder with an __init__.py{above}"
        )
    return str(folder)


def _is_op(name: str, is_package: bool) -> bool:
    return is_package and not name.startswith("_")


def _modules(folder: Path) -> Iterator[tuple[str, bool]]:
    """The names of the modules in a folder, and whether each is a package."""
    for module in pkgutil.iter_modules([str(folder)]):
        yield module.name, module.ispkg


def _require_no_clash(own: Sequence[Path]) -> None:
    """Raise UsageError where two modules would have one name: they are all imported
    from `batchline.kernels`.
    """
    suite = places.CODE / "kernels"
    owners = {name: suite for name, _ in _modules(suite)}
    for folder in dict.fromkeys(own):
        for name, _ in _modules(folder):
            if name in owners:
                whose = "Batchline" if owners[name] == suite else str(owners[name])
                raise UsageError(
                    f"{folder / name} has the name of what {whose} has already: "
                    f"rename it, for both are batchline.kernels.{name}"
                )
            owners[name] = folder
