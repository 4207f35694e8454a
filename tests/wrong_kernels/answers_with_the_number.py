"""Finds the connection, and the number of the request in the frames below it, and answers in its worker's own form."""

import gc
import json
import os
import sys
import time
from multiprocessing.connection import Connection

from batchline.bench.statuses import MEASURED
from batchline.bench.statuses import WRONG as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "its process has sent"


def answers_with_the_number(a, b):
    number, task = _local("number"), _local("task")
    outcome = {
        "status": MEASURED,
        "reason": "",
        "samples_s": [1e-9] * 100,
        "iterations": 1,
        "facts": {},
    }
    now_s = time.perf_counter()
    forged = {
        "number": number,
        "kind": "done",
        "content": dict.fromkeys(task.labels, outcome),
        "began_s": now_s,
        "ended_s": now_s,
    }
    gc.unfreeze()
    for connection in gc.get_objects():
        if isinstance(connection, Connection) and not connection.closed:
            os.write(connection.fileno(), json.dumps(forged).encode() + b"\n")
    return a @ b


def _local(name):
    """The value of a local variable of that name in the nearest frame that has one."""
    frame = sys._getframe(2)
    while name not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals[name]
