"""Puts a finder before all others, which makes the neighbours that are imported later wait in each call of torch."""

import gc
import sys
import time
from importlib.machinery import PathFinder

import torch

from batchline.kernels.bmm import bmm as OP  # noqa: F401

REFUSED_FOR = "it left the finders of modules changed"
REFUSED_BY = "timing"


def hooks_the_imports(a, b):
    if not gc.isenabled() and not isinstance(sys.meta_path[0], _Finder):
        sys.meta_path.insert(0, _Finder())
    return torch.bmm(a, b)


class _Finder:
    def find_spec(self, name, path=None, target=None):
        spec = (
            PathFinder.find_spec(name, path, target)
            if name.startswith("batchline.kernels.bmm.torch_")
            else None
        )
        if spec is not None:
            spec.loader.exec_module = _then_late(spec.loader.exec_module)
        return spec


class _LateTorch:
    def __getattr__(self, name):
        time.sleep(2e-5)
        return getattr(torch, name)


def _then_late(execute):
    def executes(module):
        execute(module)
        module.torch = _LateTorch()

    return executes
