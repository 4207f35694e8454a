"""`batchline new`: the files of an op or of a variant, which pass as they are."""

from __future__ import annotations

import argparse
import ast
import keyword
import os
import pkgutil
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from batchline import own_ops, places
from batchline.bench import own_repository
from batchline.bench.commands import _arguments, _new_files
from batchline.bench.errors import ExitCode, UsageError

HELP = "write the files of an op or of a variant of your own, which pass as they are"
SAMPLE = """
my_ops/my_op/__init__.py
my_ops/my_op/torch_broadcast.py
next: batchline check --ops my_ops -k my_op
"""
EXITS = {
    ExitCode.CLEAN: "the files are written",
    ExitCode.USAGE: "no such op, a name that can't be one, or a file that is there "
    "already: nothing was written",
}
_OP, _VARIANT = "op", "variant"
_DISPATCHED = "dispatched"  # of kernels.dispatch, which imports torch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=(_OP, _VARIANT), help="what to write")
    parser.add_argument(
        "name",
        help="the op's name, or op/variant; of a variant whose name begins with "
        "triton_ or numba_cpu_ it is such a kernel, if its op was written by this "
        "command",
    )
    _arguments.add_into(
        parser,
        "the folder that has the ops (default: what pyproject.toml or setup.cfg says)",
    )


def run(options: argparse.Namespace) -> int:
    settings = own_repository.read_settings(Path.cwd())
    said = [word for word in settings.ops if word != own_ops.SUITE] if settings else []
    folder = options.into or next(iter(said), None)
    if folder is None:
        raise UsageError(
            "say which folder has your ops: --into my_ops, or once for all in "
            'pyproject.toml: [tool.batchline] ops = "my_ops"'
        )
    folder = Path(os.path.relpath(folder))
    write = write_op if options.kind == _OP else write_variant
    for path in write(folder, options.name):
        print(path)
    is_said = folder.resolve() in [Path(word).resolve() for word in said]
    ops = "" if is_said else f" --ops {shlex.quote(str(folder))}"
    print(f"next: batchline check{ops} -k {options.name.rpartition('/')[2]}")
    return ExitCode.CLEAN


def write_op(folder: Path, name: str) -> list[Path]:
    """Write an op's folder; the files.

    Raises:
        UsageError: if it can't be called so, is there already, or can't be written.
    """
    _require_name(name, _OP)
    suite = [one.name for one in pkgutil.iter_modules([str(places.CODE / "kernels")])]
    if name in suite:
        raise UsageError(f"Batchline has a module {name!r} already: name it otherwise")
    if name in _new_files.names_in_use():
        raise UsageError(
            f"the files that are written use the name {name!r}: name it otherwise"
        )
    op = folder / name
    if op.exists():
        raise UsageError(f"{op} is there already: name it otherwise, or remove it")
    try:
        op.mkdir(parents=True)
        return [
            _written(op / file, text)
            for file, text in _new_files.op_files(name).items()
        ]
    except OSError as error:
        shutil.rmtree(op, ignore_errors=True)
        raise UsageError(f"can't write {op} ({error.strerror})") from error


def write_variant(folder: Path, name: str) -> list[Path]:
    """Write a variant's file; it, in a list.

    Raises:
        UsageError: if there is no such op, it can't be called so, is there already, or
        can't be written.
    """
    op_name, slash, variant = name.partition("/")
    if not slash:
        raise UsageError(f"say of which op: batchline new variant {name}/triton_fast")
    _require_name(op_name, _OP)
    _require_name(variant, _VARIANT)
    if variant in (op_name, _DISPATCHED):
        raise UsageError(f"{variant!r} is the op itself: name the variant otherwise")
    init = folder / op_name / "__init__.py"
    if not init.is_file():
        raise UsageError(
            f"there is no op {op_name!r} in {folder}: `batchline new op {op_name}` "
            "writes one"
        )
    path = init.with_name(f"{variant}.py")
    if path.exists() or init.with_name(variant).exists():
        raise UsageError(f"{path} is there already: name it otherwise, or remove it")
    baseline = _baseline(init)
    text = _new_files.variant_file(
        op_name,
        variant,
        _signature(init),
        baseline.name,
        baseline.parameters,
        baseline.declares,
    )
    try:
        return [_written(path, text)]
    except OSError as error:
        raise UsageError(f"can't write {path} ({error.strerror})") from error


def _written(path: Path, text: str) -> Path:
    with path.open("x", encoding="utf-8") as file:  # never over another one
        file.write(text)
    return path


def _require_name(name: str, kind: str) -> None:
    what = "an op" if kind == _OP else "a variant"
    if keyword.iskeyword(name):
        raise UsageError(f"{name!r} can't name {what}: it is a word of Python's own")
    if not (name.isascii() and name.isidentifier()) or name.startswith("_"):
        raise UsageError(
            f"{name!r} can't name {what}: use ASCII letters, digits and _, the first a "
            "letter"
        )


@dataclass(frozen=True)
class _Baseline:
    """An op's baseline: its name, its parameters ("x, s"), and what else a variant
    that calls it declares (', needs="cpu"').
    """

    name: str
    parameters: str
    declares: str


def _baseline(init: Path) -> _Baseline:
    """The baseline that an op's file declares. Nothing of it is run.

    Raises:
        UsageError: if none can be read.
    """
    calls = _call(init, "Calls")
    words = [
        *calls.args,
        *(one.value for one in calls.keywords if one.arg == "baseline"),
    ]
    name = words[0].value if words and isinstance(words[0], ast.Constant) else None
    file = init.with_name(f"{name}.py")
    if not isinstance(name, str) or not file.is_file():
        raise UsageError(f"{init}: its Calls(…) name no baseline whose file is there")
    for node in ast.walk(_tree(file)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            parameters = ", ".join(one.arg for one in node.args.args) or "*inputs"
            return _Baseline(name, parameters, _declares(node))
    raise UsageError(f"{file} has no function {name}")


def _declares(function: ast.FunctionDef) -> str:
    """The dtypes and needs of a variant, as its decorator has them."""
    return "".join(
        f", {one.arg}={ast.unparse(one.value)}"
        for decorator in function.decorator_list
        if isinstance(decorator, ast.Call)
        for one in decorator.keywords
        if one.arg in ("dtypes", "needs") and _is_literal(one.value)
    )


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _signature(init: Path) -> str:
    """The op's signature; "" where it is no plain text."""
    for one in _call(init, "Op").keywords:
        if one.arg == "signature" and isinstance(one.value, ast.Constant):
            return str(one.value.value)
    return ""


def _call(init: Path, name: str) -> ast.Call:
    for node in ast.walk(_tree(init)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == name:
            return node
    raise UsageError(f"{init} makes no {name}(…), as an op's file does")


def _tree(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {error}") from error
