"""Closes whatever its process has open, the way to its parent too."""

import os

from batchline.bench.statuses import CRASHED as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "its process "  # has closed its connection, or has ended over it


def closes_every_descriptor(a, b):
    os.closerange(0, 1000)
    return a @ b
