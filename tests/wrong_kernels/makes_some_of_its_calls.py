"""Has its clock call it six times where it counts ten."""

import gc

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it changed the clock of .*makes_some_of_its_calls"
REFUSED_BY = "timing"


class _Fewer(tuple):
    def __iter__(self):
        return iter(self[: len(self) * 6 // 10])


def makes_some_of_its_calls(a, b):
    if not gc.isenabled():
        for clock in gc.get_objects():
            if (
                type(clock).__name__ == "Host"
                and getattr(clock.launch, "func", None) is makes_some_of_its_calls
            ):
                if type(clock._before_last) is tuple and len(clock._before_last) > 1:
                    clock._before_last = _Fewer(clock._before_last)
    return torch.bmm(a, b)
