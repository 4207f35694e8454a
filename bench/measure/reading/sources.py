"""The files that decide what a variant launches, and a digest of all that does; nothing
of them is run for it.

They are the Python files that it imports, directly or not, and the data beside each of
those and wherever one's strings point. What is in doubt is covered: a case too many is
measured, and none is called identical that is not.

What a Python file says without being run: its code, what it may import, and which
strings may be paths.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.machinery
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batchline import own_ops
from batchline.bench.declared import Declared
from batchline.bench.measure.machine import environment
from batchline.kernels.backends import DISPATCH
from batchline.kernels.device_files import file_for, stored
from batchline.kernels.op import Variant

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_IMPORTERS = {"import_module", "__import__"}
_RUNNERS = {
    "exec",
    "eval",
    "spec_from_file_location",
    "SourceFileLoader",
    "run_path",
    "run_module",
    *_IMPORTERS,
}
_READERS = {"__doc__", "__file__", "getsource", "getsourcelines", "getdoc"}


@dataclass(frozen=True)
class Source:
    """One file.

    `code` is its text, blind to comments, docstrings and layout. `imports` are (level,
    dotted name): level 0 is absolute, 1 the file's own package, 2 the one above.
    `strings` are its constants but for docstrings. `reads_itself`: its own text or
    docstrings may be data to it. `runs_by_name`: it imports or runs what a name says
    that is made when it runs.
    """

    code: str
    imports: frozenset[tuple[int, str]]
    strings: frozenset[str]
    reads_itself: bool
    runs_by_name: bool


@functools.cache
def read(path: Path) -> Source:
    """The file; one that is no Python is its bytes, as Latin-1, and says nothing else."""
    content = path.read_bytes()
    try:
        tree = ast.parse(content)
        return _source(tree)
    except (
        SyntaxError,
        ValueError,
        RecursionError,
        MemoryError,
    ):  # the last two: of absurd nesting
        return Source(content.decode("latin-1"), frozenset(), frozenset(), False, False)


def _source(tree: ast.Module) -> Source:
    for node in ast.walk(tree):
        if (
            isinstance(node, _DOCUMENTED)
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    nodes = list(ast.walk(tree))
    names = {
        name
        for node in nodes
        for name in (getattr(node, "id", None), getattr(node, "attr", None))
        if name
    }
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    strings = frozenset(
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return Source(
        ast.dump(tree),
        frozenset(_imports(nodes, calls)),
        strings,
        bool(names & _READERS),
        any(_called(call) in _RUNNERS and _literal(call) is None for call in calls),
    )


def _imports(nodes: list[ast.AST], calls: list[ast.Call]) -> Iterator[tuple[int, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield node.level, module
            yield from (
                (node.level, f"{module}.{alias.name}".lstrip("."))
                for alias in node.names
            )
    for call in calls:
        if _called(call) in _IMPORTERS and (name := _literal(call)):
            bare = name.lstrip(".")
            yield len(name) - len(bare), bare


def _called(call: ast.Call) -> str:
    """The name that is called, whatever it is looked up in: `import_module` of
    `importlib.import_module(...)`.
    """
    if isinstance(call.func, ast.Name):
        return call.func.id
    name = getattr(call.func, "attr", "")
    return "" if name in ("exec", "eval") else name  # a module's .eval() runs no text


def _literal(call: ast.Call) -> str | None:
    """The first argument where it is text, else None."""
    first = call.args[0] if call.args else None
    return (
        first.value
        if isinstance(first, ast.Constant) and isinstance(first.value, str)
        else None
    )


_SUFFIXES = tuple(importlib.machinery.all_suffixes())
_TABLES = (
    "tuning",
    "dispatch",
)  # of all devices; this device's are in the digest where a variant looks them up
_CACHES = (
    "__pycache__",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
    ".hypothesis",
    ".ipynb_checkpoints",
    ".git",
)
_NO_DATA = (".pyc", "~", ".swp", ".swo", ".DS_Store")
_LONGEST_PATH = 255
_VERSIONS = ("torch", "triton", "numba", "numba-cuda", "llvmlite", "numpy")
_VARIABLES = (
    "TRITON_",
    "NUMBA",
    "TORCH",
    "PYTORCH_",
    "CUDA_",
    "CUBLAS_",
    "NVIDIA_",
    "MKL_",
    "OMP_",
    "KMP_",
    "GOMP_",
    "OPENBLAS_",
    "DNNL_",
    "ONEDNN_",
    "ATEN_",
    "LLVM_",
    "LD_",
    "MALLOC_",
)


@dataclass(frozen=True)
class Tree:
    """The root of a revision's files, the folder in it that has the ops, and whether
    those are Batchline's own.
    """

    root: Path
    ops: Path
    is_the_suites: bool

    def import_folders(self, path: Path) -> list[Path]:
        """Where what a file imports by its whole name may lie: in another repository
        in any folder on the way to it.
        """
        if self.is_the_suites:  # beside it: sys.path may have been changed
            return [self.root, path.parent]
        return [place for place in path.parents if place.is_relative_to(self.root)]


def tree_of(variant: Variant | Declared, root: Path | None = None) -> Tree:
    """The tree that the variant was imported from. `root` is its root where that is
    known; by default that of its repository.
    """
    ops = variant.folder.parent
    if (ops / "op.py").is_file():  # the contract
        return Tree(ops.parent, ops, True)
    return Tree(root or own_ops.repository_of(ops), ops, False)


def files_of(variant: Variant | Declared, root: Path | None = None) -> tuple[Path, ...]:
    """The files in the order of their names, of the tree that the variant was imported
    from.

    Files of other variants are among them only where they are imported, are named by a
    string, or where a file beside them runs what a name says that is made at run time.
    """
    tree = tree_of(variant, root)
    found: set[Path] = set()
    waiting = [
        path for path in _own_files(variant) if path.is_relative_to(tree.root)
    ]  # the contract of another repository's op is Batchline's
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            if path.suffix == ".py":
                waiting += _decided_by(path, tree)
    return tuple(sorted(found))


def launch_digest(
    variant: Variant | Declared, device: str, root: Path | None = None
) -> str:
    """A hash of all that decides what the variant launches on this machine's "cpu" or
    "cuda"; `root` as `tree_of` takes it.

    That is its files (Python's blind to comments and layout); the versions of what
    compiles them, and the variables that it heeds; where it has several configurations,
    what was tuned here for its op; and where it calls another variant, the table
    it does so by and the files of them all.
    """
    tree = tree_of(variant, root)
    digest = hashlib.sha256()
    dispatches = variant.backend == DISPATCH
    for kind in (
        ["dispatch", "tuning"] if dispatches else ["tuning"] if variant.tunable else []
    ):
        winners = stored(file_for(variant.folder, kind, device)).get("winners")
        digest.update(json.dumps(winners, sort_keys=True).encode())
    for path in files_of(variant, root):
        name = os.path.relpath(path, tree.root)
        digest.update(
            f"{name}\0{_content(path, tree)}\0".encode("utf-8", "surrogatepass")
        )
    digest.update(json.dumps(_outside(str(tree.root))).encode())
    return digest.hexdigest()[:16]


def _own_files(variant: Variant | Declared) -> list[Path]:
    """Where its function is, and the file that is called after it, for which another
    function may stand in.

    What calls other variants has all the files of its op.
    """
    named = variant.folder / f"{variant.name}.py"
    others = variant.folder.glob("*.py") if variant.backend == DISPATCH else ()
    return [variant.file, *others, *([named] if named.is_file() else [])]


def _outside(root: str) -> list:
    """What the same files may compile to something else by; the tree's own place does
    not count.
    """
    variables = {
        name: value.replace(root, "")
        for name, value in os.environ.items()
        if name.startswith(_VARIABLES)
    }
    return [
        platform.python_version(),
        environment.versions(_VERSIONS),
        sorted(variables.items()),
    ]


@functools.cache
def _decided_by(path: Path, tree: Tree) -> tuple[Path, ...]:
    """The other files that a Python file brings in."""
    source = read(path)
    found = [
        file
        for level, name in source.imports
        for file in _module(path, tree, level, name)
    ]
    for text in source.strings:
        found += _pointed_at(path, tree, text)
    found += _files_in(path.parent, below=path.parent != tree.root, python=False)
    if source.runs_by_name and not _is_of_the_suite(path, tree):
        found += path.parent.glob("*.py")
    return tuple(found)


def _module(path: Path, tree: Tree, level: int, name: str) -> Iterator[Path]:
    """The files that an import may run: the packages on the way to the module, and the
    module.
    """
    parts = name.split(".") if name else []
    if level:
        starts = [path.parents[min(level, len(path.parents)) - 1]]
    elif not tree.is_the_suites and parts[:2] == ["batchline", "kernels"]:
        starts, parts = [tree.ops], parts[2:]  # where another repository's ops are
    else:
        starts = tree.import_folders(path)
    if parts[:1] == ["batchline"]:  # whose kernels lie in the tree itself
        parts = parts[1:]
    for start in dict.fromkeys(starts):
        bases = [
            start.joinpath(*parts[:count])
            for count in range(0 if level else 1, len(parts) + 1)
        ]
        files = [Path(f"{base}{suffix}") for base in bases for suffix in _SUFFIXES]
        files += [base / f"__init__{suffix}" for base in bases for suffix in _SUFFIXES]
        there = [file for file in files if file.is_file()]
        yield from there
        if there and tree.is_the_suites:
            return


def _pointed_at(path: Path, tree: Tree, text: str) -> Iterator[Path]:
    """The files that a string may name: a path from any folder on the way to the file,
    or a module.
    """
    if (
        not text.strip("./ ")
        or len(text) > _LONGEST_PATH
        or "\0" in text
        or "\n" in text
    ):
        return
    folders = [folder for folder in path.parents if folder.is_relative_to(tree.root)]
    for folder in folders:
        place = Path(os.path.normpath(folder / text))
        if tree.root not in place.parents or place in path.parents:
            continue
        if place.is_file():
            yield place
        elif place.is_dir():
            yield from _files_in(
                place, below=True, python=not (place / "__init__.py").exists()
            )
    bare = text.lstrip(".")
    if "." in text and all(part.isidentifier() for part in bare.split(".")):
        yield from _module(path, tree, len(text) - len(bare), bare)


def _files_in(folder: Path, below: bool, python: bool) -> Iterator[Path]:
    """What lies in a folder (Python's files where `python` says so) and, with `below`,
    in its folders: all of it.

    Packages below it are left out, for their files count where they are imported, and
    so are caches.
    """
    seen: set[Path] = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        if place.resolve() in seen:  # a link may lead back
            continue
        seen.add(place.resolve())
        with_python = python or place != folder
        for entry in place.iterdir() if os.access(place, os.R_OK | os.X_OK) else ():
            if entry.is_dir():
                if below and entry.name not in _CACHES and not _is_apart(entry):
                    waiting.append(entry)
            elif (
                entry.is_file()
                and not entry.name.endswith(_NO_DATA)
                and (with_python or entry.suffix != ".py")
            ):
                yield entry


def _is_apart(folder: Path) -> bool:
    """Another package, or an op's tables."""
    return (folder / "__init__.py").exists() or (
        folder.name in _TABLES and (folder.parent / "__init__.py").exists()
    )


def _content(path: Path, tree: Tree) -> str:
    """What counts of a file."""
    try:
        if path.suffix != ".py" or (
            read(path).reads_itself and not _is_of_the_suite(path, tree)
        ):
            return _hash(path)
        return read(path).code
    except OSError as error:
        return f"unreadable: {error.strerror}"


@functools.cache
def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_of_the_suite(path: Path, tree: Tree) -> bool:
    """Whether it is directly in `kernels` or in a folder there of what variants share:
    what those import by name are ops, variants and compilers.
    """
    is_shared = path.parent.parent == tree.ops and path.parent.name.startswith("_")
    return tree.is_the_suites and (path.parent == tree.ops or is_shared)
