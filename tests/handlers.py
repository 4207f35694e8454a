"""The emulator's compiled code, made before the tests begin: several processes need it
soon after, and each would compile it anew.

`python -m tests.handlers` compiles what no other such process of the session has begun.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

from tests import shared

ROOT = Path(__file__).resolve().parents[1]
PROCESSES = 2  # as many as the tests have without a GPU (gpu_sessions.processes)


def compile_first() -> None:
    """Compile what is not on disk yet; a second where all is."""
    running = [
        subprocess.Popen([sys.executable, "-m", "tests.handlers"], cwd=ROOT)
        for _ in range(PROCESSES)
    ]
    for process in running:
        process.wait()  # what fails here fails in the tests, too, and is shown there


def _compile() -> None:
    """Kind after kind, but those at once that share most of their code."""
    gc.disable()  # what Numba makes lives on until the process ends
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
    for name, group in sorted(groups.items(), key=lambda item: -len(item[1])):
        if _claim(name):
            for handler in group:
                handler.address


def _claim(name: str) -> bool:
    """Whether no other process of the session has claimed it."""
    try:
        (Path(os.environ[shared.VARIABLE]) / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


if __name__ == "__main__":
    _compile()
