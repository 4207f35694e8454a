"""The commands of `batchline`, one file each, found by themselves.

A file here is a command if its name does not begin with _; the command's name is the
file's, with - for _. It defines:

    HELP                    one line
    SAMPLE                  a short sample of what it prints, shown in its --help
    EXITS                   {exit code: what it means}, by bench.errors
    add_arguments(parser)   its options
    run(options)            does it, and returns the exit code

and READS_OPS = True if it reads the ops whatever it is asked for: a process that reads
them is then started while this one still imports.

A command's file is imported to show its --help. It imports torch, and what imports
torch, inside its functions: that takes seconds.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

_FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """Every command, in alphabetical order."""
    files = (module.name for module in pkgutil.iter_modules([str(_FOLDER)]))
    return sorted(name.replace("_", "-") for name in files if not name.startswith("_"))


def load(name: str) -> ModuleType:
    """A command's module."""
    return importlib.import_module(f"{__name__}.{_file_name(name)}")


def help_line(name: str) -> str:
    """A command's HELP, read from its file without importing it."""
    text = (_FOLDER / f"{_file_name(name)}.py").read_text(encoding="utf-8")
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "HELP":
            return ast.literal_eval(node.value)
    raise AttributeError(f"the command {name} has no HELP")


def _file_name(name: str) -> str:
    return name.replace("-", "_")
