"""How large the house is: files, code lines and tokens for each code line of every
folder, and the files of bench/ that a single other file imports.

`python -m tests.house` prints it. A token is one of Python's module tokenize, without
comments, line ends, indents and docstrings; a code line is a line that holds a token.
"""

from __future__ import annotations

import ast
import io
import tokenize
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("batchline", "bench", "kernels", "tests")
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Size:
    """Of a folder's Python files: how many, their tokens and their code lines."""

    files: int
    tokens: int
    lines: int

    @property
    def density(self) -> float:
        """Tokens for each code line."""
        return self.tokens / self.lines if self.lines else 0.0


def measure_size(files: Iterable[Path]) -> Size:
    """The size of these files together."""
    file_count = token_count = line_count = 0
    for path in files:
        tokens, lines = count_tokens(path.read_text(encoding="utf-8"))
        file_count += 1
        token_count += tokens
        line_count += lines
    return Size(file_count, token_count, line_count)


def count_tokens(source: str) -> tuple[int, int]:
    """How many tokens a source has, and how many lines with at least one."""
    docstrings = _docstring_places(source)
    count, lines = 0, set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        is_docstring = token.type == tokenize.STRING and token.start in docstrings
        if token.type in _LAYOUT or is_docstring:
            continue
        count += 1
        lines.update(range(token.start[0], token.end[0] + 1))
    return count, len(lines)


def _docstring_places(source: str) -> set[tuple[int, int]]:
    """(line, column) of where each docstring begins."""
    places = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, _DOCUMENTED) and ast.get_docstring(node) is not None:
            places.add((node.body[0].lineno, node.body[0].col_offset))
    return places


def folder_size(name: str, root: Path = ROOT) -> Size:
    """The size of a folder of the repository, with what lies below it."""
    return measure_size(sorted((root / name).rglob("*.py")))


def single_importers(root: Path = ROOT) -> dict[str, str]:
    """Each module of bench/ that exactly one other module imports, and that one.

    The modules looked at are those of bench/, kernels/ and batchline/. A package's
    `__init__` is left out: who imports a module imports its packages.
    """
    modules = _modules(root)
    importers = defaultdict(set)
    for name, path in modules.items():
        for imported in _imported_names(path):
            if imported in modules and imported != name:
                importers[imported].add(name)
    return {
        name: next(iter(importers[name]))
        for name in sorted(modules)
        if name.startswith("bench")
        and modules[name].name != "__init__.py"
        and len(importers[name]) == 1
    }


def _modules(root: Path) -> dict[str, Path]:
    """The files of the product by their names below `batchline`."""
    files = [
        *root.glob("bench/**/*.py"),
        *root.glob("kernels/**/*.py"),
        *root.glob("batchline/*.py"),
    ]
    names = (".".join(path.relative_to(root).with_suffix("").parts) for path in files)
    return {
        name.removesuffix(".__init__"): path
        for name, path in zip(names, files, strict=True)
    }


def _imported_names(path: Path) -> set[str]:
    """What a file imports, without the leading `batchline`: modules, and names of
    modules that may be modules themselves.
    """
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name.removeprefix("batchline.") for name in names}


def main() -> None:
    """Print the table of the folders, then the single importers of bench/."""
    print(f"{'folder':10} {'files':>6} {'code lines':>11} {'tokens per line':>16}")
    for name in FOLDERS:
        size = folder_size(name)
        print(f"{name:10} {size.files:6} {size.lines:11} {size.density:16.2f}")
    importers = single_importers()
    print(f"\n{len(importers)} files of bench/ with a single importer:")
    for name, importer in importers.items():
        print(f"  {name} <- {importer}")


if __name__ == "__main__":
    main()
