"""Ends its process as if all were well."""

import os

from batchline.bench.statuses import CRASHED as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "its process ended with exit code 0"


def exits_in_a_call(a, b):
    os._exit(0)
