"""Waits for a flag that nobody sets."""

from batchline.bench.statuses import HUNG as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "not done after"


def hangs(a, b):
    done = False
    while not done:
        pass
