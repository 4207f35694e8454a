"""Stops its process, as a debugger does: it is neither done nor gone."""

import os
import signal

from batchline.bench.statuses import HUNG as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "not done after"


def stops_its_process(a, b):
    os.kill(os.getpid(), signal.SIGSTOP)
    return a @ b
