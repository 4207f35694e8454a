"""The files a variant is made of: its own, and each of its tree's `kernels` that it imports, directly or not."""
from __future__ import annotations

import ast
import functools
import hashlib
import json
from pathlib import Path

from bench.declared import Declared
from kernels.backends import DISPATCH
from kernels.device_files import file_for, stored
from kernels.discovery import variant_files
from kernels.op import Variant

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def files_of(variant: Variant | Declared) -> tuple[Path, ...]:
    """The files in the order of their names; of the tree that the variant is in."""
    found: set[Path] = set()
    waiting = [variant.file]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting.extend(_imported(path, _root(path)))
    return tuple(sorted(found))


def launch_digest(variant: Variant | Declared, device: str) -> str:
    """A hash of all that decides what the variant launches on this machine's "cpu" or "cuda".

    That is its code, with what it imports of `kernels`, blind to comments and layout; where it has several
    configurations, what was tuned here for its op; and where it hands on to another variant, the table it does so by
    and the code of them all.
    """
    digest = hashlib.sha256()
    dispatches = variant.backend == DISPATCH
    for kind in (["dispatch", "tuning"] if dispatches else ["tuning"] if variant.tunable else []):
        winners = stored(file_for(variant.folder, kind, device)).get("winners")
        digest.update(json.dumps(winners, sort_keys=True).encode())
    others = variant_files([str(variant.folder)]) if dispatches else ()
    variants = [variant, *(Declared(variant.folder.name, name, variant.folder) for name in others)]
    for path in sorted({path for one in variants for path in files_of(one)}):
        name = path.relative_to(_root(path)).as_posix()
        digest.update(f"{name}\0{_code(path)}".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _code(path: Path) -> str:
    tree = _parsed(path)
    if tree is None:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def _root(path: Path) -> Path:
    """The folder that holds the `kernels` (or tests') package of a file."""
    while (path.parent / "__init__.py").exists():
        path = path.parent
    return path.parent


def _parsed(path: Path) -> ast.Module | None:
    """The file's syntax tree; None of what is no Python."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


@functools.cache
def _imported(path: Path, root: Path) -> list[Path]:
    names = set()
    for node in ast.walk(_parsed(path) or ast.Module([], [])):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update((node.module, *(f"{node.module}.{alias.name}" for alias in node.names)))
    bases = [root.joinpath(*name.split(".")) for name in names if name.partition(".")[0] == "kernels"]
    candidates = [file for base in bases for file in (base.with_suffix(".py"), base / "__init__.py")]
    return [file for file in candidates if file.is_file()]
