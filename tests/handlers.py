"""The emulator's compiled code, made before the tests begin: several processes need it
soon after, and each would compile it anew.

`python -m tests.handlers 0 2` compiles the first of two shares.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SHARES = 2  # the tests' processes (gpu_sessions.processes)


def compile_first() -> None:
    """Compile what is not on disk yet; a second where all is."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.handlers", str(number), str(SHARES)], cwd=ROOT
        )
        for number in range(SHARES)
    ]
    for process in running:
        process.wait()  # what fails here fails in the tests, too, and is shown there


def _compile(number: int, shares: int) -> None:
    """The kinds take turns, but for those that share most of their code."""
    from batchline.bench.measure.emulator import asynchronous, machine, tensor_copies

    handlers = [
        machine.run_warp,
        *machine.HANDLERS.values(),
        asynchronous.require_not_in_flight,
        asynchronous.mark_dirty,
        tensor_copies.land_one,
    ]
    groups: dict[str, list] = {}
    for handler in handlers:
        groups.setdefault(handler.function.__module__, []).append(handler)
    by_size = sorted(groups.values(), key=len, reverse=True)
    for group in by_size[number::shares]:
        for handler in group:
            handler.address


if __name__ == "__main__":
    _compile(int(sys.argv[1]), int(sys.argv[2]))
