"""What must work where Unix's modules, signals and processes are not: on Windows, as far
as it can be acted out here.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from batchline.bench.measure.machine import environment

pytestmark = pytest.mark.commands

REPOSITORY = Path(__file__).resolve().parents[1]
WITHOUT_UNIX = """
import os, signal, sys
import torch  # this one is of Linux
for name in ("fcntl", "resource", "termios", "pwd", "grp", "pty", "tty"):
    sys.modules[name] = None
for name in ("SIGHUP", "SIGQUIT", "SIGKILL", "SIGCHLD", "SIGSTOP", "SIGCONT"):
    delattr(signal, name)
for name in ("register_at_fork", "sched_getaffinity", "sched_setaffinity", "getuid"):
    delattr(os, name)
"""


def run(program):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_UNIX + program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_meter_and_whatever_reads_stored_runs_are_imported():
    run("""
from batchline import NoiseMeter, Op, load
from batchline.bench import publishing, report, stopping
from batchline.bench.commands import compare, explain, history
from batchline.bench.noise import advice, advisor
from batchline.bench.store import history as stored_history
import batchline.__main__
""")


def test_a_step_is_metered():
    out = run("""
from batchline import NoiseMeter
model = torch.nn.Linear(5, 3)
meter = NoiseMeter(model, reduction="mean")
with meter:
    model(torch.randn(8, 5)).square().sum(1).mean().backward()
print(meter.reading.batch)
""")
    assert out.split() == ["8"]


def test_measuring_says_that_it_needs_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="this needs Linux"):
        environment.resolve_device("auto")
