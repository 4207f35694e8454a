"""The commands of `batchline`, one file each, found by themselves; and what runs one: its
words parsed, its errors as one line, its closing line.

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

import argparse
import ast
import contextlib
import importlib
import os
import pkgutil
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from batchline import __version__
from batchline.bench import console, own_repository, stopping, texts, units
from batchline.bench.console import complain
from batchline.bench.errors import ExitCode
from batchline.bench.measure import stand_in
from batchline.bench.reader import started_ahead
from batchline.bench.texts import did_you_mean

_FOLDER = Path(__file__).resolve().parent
PROGRAM = "batchline"


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


def execute(words: Sequence[str]) -> int:
    """Run the command that the words name; what ends it early is a line on stderr."""
    name, module, options = parse(words)
    device = getattr(options, "device", None)
    if stand_in.is_on() and device in (None, "cpu"):
        complain(
            f"{stand_in.VARIABLE} is set, and under it nothing but the stand-in for a "
            "GPU can be measured or compiled: unset it, or use "
            f"--device {stand_in.NAME}"
        )
        return ExitCode.USAGE
    if (device == stand_in.NAME or stand_in.is_on()) and not stand_in.is_whole():
        _restart_on_stand_in(words)
    if stand_in.is_on() and not getattr(options, "json", False):
        _announce_stand_in()
    began_s = time.monotonic()
    with stopping.as_interrupts():
        code = _run(module, options)
    meaning = module.EXITS.get(code) or ExitCode(code).meaning
    if why := console.why_not_printed():
        complain(f"can't print to stdout ({why})")
        code = code or ExitCode.FAULT
        meaning = "not all that it says was printed"
    if code != ExitCode.USAGE:
        _close(name, meaning, time.monotonic() - began_s)
    return code


def parse(words: Sequence[str]) -> tuple[str, ModuleType, argparse.Namespace]:
    """The command's name, its module, and its options.

    Raises:
        SystemExit: where there is no such command or option, and for --help and
        --version.
    """
    name = words[0] if words else ""
    if name in names():
        module = load(name)
        return name, module, command_parser(name, module).parse_args(words[1:])
    parser = top_parser()
    if name and not name.startswith("-"):
        near = did_you_mean(name, names())
        parser.error(f"there is no command {name!r}{near}")
    parser.parse_args(words)
    parser.error("say which command")


def top_parser() -> argparse.ArgumentParser:
    """The parser of `batchline` itself: it lists the commands."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="What does the batch size do? Measured, on this machine.",
        epilog=f"`{PROGRAM} <command> --help` has a command's options, a sample of what "
        f"it prints, and its exit codes. In a checkout: `python -m {PROGRAM} <command>`.",
    )
    parser.add_argument(
        "--version", action="version", version=f"{PROGRAM} {__version__}"
    )
    listed = parser.add_subparsers(metavar="command", title="commands")
    for name in names():
        listed.add_parser(name, help=help_line(name))
    return parser


def command_parser(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """The parser of one command."""
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} {name}",
        description=textwrap.fill(module.HELP, _width()),
        epilog=f"{_sample(module.SAMPLE)}\n\n{_exits(module.EXITS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser


def _sample(sample: str) -> str:
    lines = textwrap.dedent(sample).strip("\n")
    return f"it prints, for instance:\n{textwrap.indent(lines, '  ')}"


def _exits(exits) -> str:
    lines = [
        textwrap.fill(f"{int(code):>5}  {meaning}", _width(), subsequent_indent=" " * 7)
        for code, meaning in exits.items()
    ]
    return "\n".join(["exit codes:", *lines])


def _width() -> int:
    """As argparse has it: the terminal's, but for two."""
    return max(40, console.columns() - 2)


def _restart_on_stand_in(words: Sequence[str]) -> None:
    """Run the command in a process whose GPU is the stand-in, in place of this one; it
    does not return.
    """
    os.execve(
        sys.executable,
        [sys.executable, "-m", PROGRAM, *words],
        {**os.environ, **stand_in.environment()},
    )


def _announce_stand_in() -> None:
    """Say it first on stdout and on stderr, and mark every line that follows."""
    for stream in (sys.stdout, sys.stderr):
        print(stand_in.WORDS, file=stream, flush=True)
    console.mark_lines(stand_in.MARK)


def _run(module: ModuleType, options: argparse.Namespace) -> int:
    """The command's exit code."""
    reads_ops = getattr(module, "READS_OPS", False)
    try:
        _use_ops(options)
        with started_ahead() if reads_ops else contextlib.nullcontext():
            return module.run(options)
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == PROGRAM:
            raise
        complain(
            f"{error.name} is not installed: install what requirements.txt lists "
            "(`make install`)"
        )
        return ExitCode.USAGE
    except ValueError as error:
        complain(texts.clean_line(error, texts.MOST))
        return ExitCode.USAGE
    except KeyboardInterrupt:
        complain("stopped")
        return ExitCode.STOPPED


def _use_ops(options: argparse.Namespace) -> None:
    """Measure what the options or the repository say, and keep it where that says."""
    if hasattr(options, "ops"):
        own_repository.use(options.ops)
    else:
        own_repository.keep(own_repository.read_settings(Path.cwd()))


def _close(name: str, meaning: str, seconds: float) -> None:
    """The last line of every command, on stderr: how it ended, and after how long.

    Of the meaning of its exit code that is what comes before a semicolon.
    """
    sys.stdout.flush()
    ended = meaning.partition(";")[0]
    print(f"{PROGRAM} {name}: {ended} ({units.clock(seconds)})", file=sys.stderr)
