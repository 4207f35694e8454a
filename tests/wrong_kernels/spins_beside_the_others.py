"""Starts a thread that spins, so that the others are slow."""

import gc
import threading

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "a thread"
REFUSED_BY = "timing"
_started = []


def spins_beside_the_others(a, b):
    if not gc.isenabled() and not _started:
        _started.append(threading.Thread(target=_spin, daemon=True))
        _started[0].start()
    return torch.bmm(a, b)


def _spin():
    while True:
        pass
