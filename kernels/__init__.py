"""What Batchline measures: ops, each with its fp64 reference and one file a variant.

`kernels.ops` maps every op's name to its `Op`. A folder here with an `__init__.py` is an op; a file in that
folder is a variant. Nothing is listed anywhere else, so a new file is all it takes.
"""
from __future__ import annotations

import functools
import importlib
import pkgutil

from kernels.op import Op


@functools.cache
def _find_ops() -> dict[str, Op]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {name: getattr(importlib.import_module(f"{__name__}.{name}"), name) for name in names}


def __getattr__(name: str):
    # Lazy, because a variant's module imports this package while the ops are being found.
    if name == "ops":
        return _find_ops()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
