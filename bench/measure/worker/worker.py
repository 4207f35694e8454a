"""A worker process: does what it is asked on its device, one thing after another, until
its parent goes away.

Everything that runs a variant's code runs here, so that a crash, a hang or a killed
process costs the parent nothing but a new worker. Before each step it writes down whose
step it is, in memory that the parent can read afterwards.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
import traceback

from batchline.bench import texts
from batchline.bench.measure.doing import Doing
from batchline.bench.measure.machine.process_state import Tampered
from batchline.bench.measure.worker import task
from batchline.bench.measure.worker.task import DeviceLost

STARTING = "starting"  # the step of a worker that has not been asked anything yet
IDLE = "idle"


def serve(connection, doing: Doing, device: str, tree: str | None = None) -> None:
    """Answer requests (number, method, arguments) of the parent
    (bench.measure.worker.task), until it ends.

    A lost device and a process that a variant has changed are answered, too, and end
    this process. "idle" is asked to hear whether it is there and at nothing else.
    `tree`: the folder whose `kernels` must be those that it measures.
    """
    be_a_good_child()
    doing.begin("", STARTING)
    runner, refusal = _runner(device, doing, tree)
    while True:
        try:
            number, method, arguments = connection.recv()
        except EOFError:
            return
        began_s = time.perf_counter()
        if method != IDLE:
            doing.begin("", method)
        kind, content = (
            (task.RAISED, refusal) if refusal else _answer(runner, method, arguments)
        )
        answer = task.Answer(kind, content, began_s, time.perf_counter())
        try:
            line = task.encoded(number, answer)
        except (
            TypeError,
            ValueError,
            RecursionError,
        ) as error:  # ours: it answers with what can't be sent
            kind, content = task.RAISED, texts.error_line(error)
            line = task.encoded(
                number, dataclasses.replace(answer, kind=kind, content=content)
            )
        _send(connection.fileno(), line)
        if kind in (task.LOST, task.TAMPERED):
            return


def _runner(device: str, doing: Doing, tree: str | None) -> tuple[object, str | None]:
    """The Runner that does what is asked, or why there is none."""
    try:
        from batchline.bench.measure.worker.runner import Runner

        _require_kernels_of(tree)
        return Runner(device, doing.begin), None
    except Exception as error:  # the answer to whatever is asked
        return None, texts.error_line(error)


def _require_kernels_of(tree: str | None) -> None:
    """Raise ImportError if the kernels are not the tree's: another revision must not be
    compared with itself.
    """
    if not tree:
        return
    from batchline import kernels

    folder = os.path.realpath(os.path.dirname(kernels.__file__))
    if folder != os.path.realpath(os.path.join(tree, "kernels")):
        raise ImportError(
            f"the kernels of {tree} were asked for, and those of {folder} were imported"
        )


def _answer(runner, method: str, arguments: tuple) -> tuple[str, object]:
    """What becomes of one request: the kind of the answer, and its content."""
    if method == IDLE:
        return task.DONE, None
    try:
        return task.DONE, getattr(runner, method)(*arguments)
    except Tampered as tampered:
        return task.TAMPERED, (tampered.whose, tampered.reason)
    except DeviceLost as error:
        return task.LOST, str(error)
    except Exception as error:  # ours, not a variant's: the parent must hear of it
        print(texts.clean(traceback.format_exc()), file=sys.stderr)
        return task.RAISED, texts.error_line(error)


def _send(descriptor: int, line: bytes) -> None:
    while line:
        line = line[os.write(descriptor, line) :]


def be_a_good_child() -> None:
    """Leave Ctrl-C to the parent; if memory runs out for all, let the kernel take this
    process and not the parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")
