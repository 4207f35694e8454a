"""Raises an error with a text that would fill reports and logs, and that speaks to a CI."""

from batchline.bench.statuses import FAILED as STATUS  # noqa: F401
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "RuntimeError: "


def raises_60_mb(a, b):
    raise RuntimeError("::error::" + "x" * 60_000_000)
