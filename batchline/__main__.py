"""The command `batchline`, and `python -m batchline`. Its commands are the files of
bench/commands.
"""

from __future__ import annotations

import sys

from batchline.bench import commands, console, stopping
from batchline.bench.errors import ExitCode


def main(words: list[str] | None = None) -> int:
    """Run one command, by default that of this process; returns its exit code
    (bench.errors).

    What is printed and can't be written is 1 too, unless its reader has just seen
    enough.
    """
    console.prepare()
    return commands.execute(sys.argv[1:] if words is None else words)


def command() -> None:
    """What the console script `batchline` runs: a command, and its exit code."""
    try:
        exit_code = main()
    except KeyboardInterrupt:  # the command had ended
        exit_code = ExitCode.STOPPED
    stopping.end_at_once()
    sys.exit(exit_code)


if __name__ == "__main__":
    command()
