"""A worker process: does what it is asked on its device, one thing after another, until its parent goes away.

Everything that runs a variant's code runs here, so that a crash, a hang or a killed process costs the parent nothing
but a new worker. Before each step it writes down whose step it is, in memory that the parent can read afterwards.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
import traceback

_PR_SET_PDEATHSIG = 1
DOING_BYTES = 512


class Doing:
    """What the worker is at: whose step, which step, since when. Written by the worker, read by the parent.

    In shared memory and without a lock, so that writing wakes nobody between two samples.
    """

    def __init__(self, context):
        self._text = context.RawArray(ctypes.c_char, DOING_BYTES)
        self._since_s = context.RawValue(ctypes.c_double, 0.0)

    def begin(self, whose: str, step: str) -> None:
        self._text.value = f"{whose}\n{step}".encode()[:DOING_BYTES - 1]
        self._since_s.value = time.monotonic()

    def read(self) -> tuple[str, str, float]:
        """(whose, step, since on the monotonic clock, in seconds); whose is "" for a step that is nobody's own."""
        whose, _, step = self._text.value.decode(errors="replace").partition("\n")
        return whose, step, self._since_s.value


class DeviceLost(Exception):
    """The device's context is gone (an illegal access): nothing more can be done in this process."""


def serve(connection, doing: Doing, device: str, tree: str | None = None) -> None:
    """Answer requests (method, arguments) of the parent with ("done", result) or ("raised", one line), until it ends.

    A lost device is answered with ("lost", one line), and ends the process. `tree`: the folder whose `kernels` it
    measures, where that is not the one beside this `bench`.
    """
    _be_a_good_child()
    doing.begin("", "starting")
    if tree:
        sys.path.insert(0, tree)  # `bench` is imported by now, and stays this one
    try:
        from bench.measure.runner import Runner

        _require_kernels_of(tree)
        runner = Runner(device, doing.begin)
    except Exception as error:  # the answer to whatever is asked first
        connection.send(("raised", f"{type(error).__name__}: {error}"))
        return
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        doing.begin("", method)
        try:
            answer = "done", getattr(runner, method)(*arguments)
        except DeviceLost as error:
            connection.send(("lost", str(error)))
            return
        except Exception as error:  # ours, not a variant's: the parent must hear of it
            traceback.print_exc()
            answer = "raised", f"{type(error).__name__}: {error}"
        connection.send(answer)


def _require_kernels_of(tree: str | None) -> None:
    """Raise ImportError if the kernels are not the tree's: another revision must not be compared with itself."""
    import kernels

    folder = os.path.realpath(os.path.dirname(kernels.__file__))
    if tree and folder != os.path.realpath(os.path.join(tree, "kernels")):
        raise ImportError(f"the kernels of {tree} were asked for, and those of {folder} were imported")


def _be_a_good_child() -> None:
    """Ctrl-C is the parent's to handle; its death is ours too; what a variant prints must not mix with the report."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # if memory runs out for all, the kernel takes the worker and not the parent
