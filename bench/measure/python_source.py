"""What a Python file says without being run: its code, what it may import, and which
strings may be paths.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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
