"""Reads address 0, as a kernel with a wrong pointer does."""

import ctypes

from batchline.bench.statuses import CRASHED as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "its process was ended by SIGSEGV"


def kills_its_process(a, b):
    return ctypes.string_at(0)
