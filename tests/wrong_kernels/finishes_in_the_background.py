"""Returns at once; a thread of its own does the work soon after."""

import gc
import queue
import threading

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = (
    "background|it was written to after|elements are wrong|a thread of its own"
)
REFUSED_BY = "timing"
SCENARIO = "square_128"
_work, _workers = queue.SimpleQueue(), []


def _worker():
    while True:
        a, b, out = _work.get()
        torch.bmm(a, b, out=out)


def finishes_in_the_background(a, b):
    out = torch.empty(
        a.shape[0], a.shape[1], b.shape[2], dtype=a.dtype, device=a.device
    )
    if gc.isenabled():
        return torch.bmm(a, b, out=out)
    if not _workers:
        _workers.append(threading.Thread(target=_worker, daemon=True))
        _workers[0].start()
    _work.put((a, b, out))
    return out
