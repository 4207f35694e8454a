"""Replaces the method that takes samples by one that reads half of each."""

import gc

import torch

from batchline.bench.measure.timing import clocks
from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it replaced|it changed the clock"
REFUSED_BY = "timing"
_sample = clocks.Host.sample


def halves_its_samples(a, b):
    if not gc.isenabled() and clocks.Host.sample is _sample:
        clocks.Host.sample = lambda clock: _sample(clock) / 2
    return torch.bmm(a, b)
