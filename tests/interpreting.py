"""`python -m tests.interpreting <folder> (<backend> <file> <marks>)...` runs files that interpret GPU kernels in turn.

A process of its own for it leaves the session that waits without a thread and without a child that comes or goes, of
which the fence around a variant's turn could take one for the variant's.
"""
from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kernels.backends import interpreter_environment

_LOOK_S = 0.2


@dataclass(frozen=True)
class Child:
    """The run of one file, by its number, below a process that runs them in turn."""

    runner: subprocess.Popen
    folder: Path
    number: int

    def result(self) -> tuple[int | None, str]:
        """(its exit code, what it printed), once it has ended; the code is None where it was never run to its end."""
        code = self.folder / f"{self.number}.code"
        while not code.exists() and self.runner.poll() is None:
            time.sleep(_LOOK_S)
        output = self.folder / f"{self.number}.output"
        return (int(code.read_text()) if code.exists() else None, output.read_text() if output.exists() else "")


def main(folder: Path, children: list[tuple[str, str, str]]) -> None:
    """Run each; its output and then its exit code are files in the folder, by its number."""
    for number, (backend, file, marks) in enumerate(children):
        with (folder / f"{number}.output").open("w") as output:
            code = subprocess.call(
                [sys.executable, "-m", "pytest", file, "-m", marks, "-p", "no:cacheprovider", "--no-header", "-rN"],
                env=os.environ | interpreter_environment(backend), stdout=output, stderr=output)
        whole = folder / f"{number}.code.part"
        whole.write_text(str(code))
        whole.rename(folder / f"{number}.code")


if __name__ == "__main__":
    main(Path(sys.argv[1]), list(zip(sys.argv[2::3], sys.argv[3::3], sys.argv[4::3])))
