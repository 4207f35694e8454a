"""Puts a wait into the launches of the others' clocks."""

import gc
import time

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it changed the clock of"
REFUSED_BY = "timing"
_done = []


def slows_the_others_launches(a, b):
    if not gc.isenabled() and not _done:
        _done.append(True)
        for clock in gc.get_objects():
            function = (
                getattr(getattr(clock, "launch", None), "func", None)
                if type(clock).__name__ == "Host"
                else None
            )
            if function not in (None, slows_the_others_launches):
                clock.launch = _late(clock.launch)
                clock.use([clock.launch] * clock.iterations)
    return torch.bmm(a, b)


def _late(launch):
    def waits():
        time.sleep(2e-5)
        return launch()

    return waits
