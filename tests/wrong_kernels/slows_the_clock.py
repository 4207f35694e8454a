"""Makes time.perf_counter, and the clock of the measurement, run at half its speed."""

import gc
import time

import torch

from batchline.bench.measure.timing import clocks
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it replaced|it changed the clock|begun and ended when it can't have been"
REFUSED_BY = "timing"
_true, _timer = clocks.Cpu.now_s, time.perf_counter


def slows_the_clock(a, b):
    if not gc.isenabled() and clocks.Cpu.now_s is _true:
        clocks.Cpu.now_s = lambda self: _true(self) / 2
        time.perf_counter = lambda: _timer() / 2
    return torch.bmm(a, b)
