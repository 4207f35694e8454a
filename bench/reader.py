"""The process that reads the ops (bench.measure.reading.reading_process): started when it is
needed, or ahead of that.

It imports torch for seconds before it is asked anything, and so may whoever starts it,
at the same time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from batchline import own_ops, places

_REPOSITORY = places.CODE
_PROGRAM = "from batchline.bench.measure.reading import reading_process as p; p.main()"
_ahead: list[subprocess.Popen] = []  # started, and not asked yet


@contextlib.contextmanager
def started_ahead() -> Iterator[None]:
    """Start the process now; who in the block needs the first one takes it. What was
    not taken ends with the block.
    """
    _ahead.append(_start(_REPOSITORY))
    try:
        yield
    finally:
        while _ahead:
            _end(_ahead.pop())


@contextlib.contextmanager
def process(tree: Path | None = None) -> Iterator[subprocess.Popen]:
    """One that reads the `kernels` of a tree, by default of the one beside this
    `bench`, or the ops of a tree of another repository; it ends with the block.
    """
    one = (
        _ahead.pop()
        if _ahead and tree in (None, _REPOSITORY)
        else _start(tree or _REPOSITORY)
    )
    try:
        yield one
    finally:
        _end(one)


def _start(tree: Path) -> subprocess.Popen:
    """In a group of its own: a Ctrl-C is the parent's. It answers on a socket: a pipe
    can be opened through /proc.
    """
    environment = dict(os.environ)
    if places.IS_CHECKOUT:
        paths = str(_REPOSITORY), os.environ.get("PYTHONPATH")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    if tree != _REPOSITORY and own_ops.repository():
        environment |= own_ops.environment_in(tree)
        tree = _REPOSITORY
    ours, theirs = socket.socketpair()
    with theirs:
        one = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(tree)],
            stdin=subprocess.PIPE,
            stdout=theirs.fileno(),
            env=environment,
            process_group=0,
        )
    one.stdout = os.fdopen(ours.detach(), "rb")
    return one


def _end(one: subprocess.Popen) -> None:
    """End it, and all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(one.pid, signal.SIGKILL)
    for pipe in (one.stdin, one.stdout):
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
    one.wait()
