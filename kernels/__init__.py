"""What Batchline measures: ops, each with its fp64 reference and one file for each
variant.

`kernels.ops` maps every op's name to its `Op`. A folder here with an `__init__.py` is
an op; a file in that folder is a variant. Nothing is listed anywhere else, so a new
file is all it takes. A name that begins with _ is neither: `_cpu`, `_cuda`, `_triton`
and `_torch` have what variants share.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from batchline.kernels.discovery import LoadedWhenAsked, op_packages

if TYPE_CHECKING:
    from batchline.kernels.op import Op

if __name__ == "kernels":  # a checkout is on sys.path, and another package is meant
    from batchline import namesakes

    namesakes.import_namesake(__name__)


def _load(name: str) -> Op:
    # It imports torch, which a reader of kernels.architectures does without.
    from batchline.kernels.op import Op

    op = getattr(importlib.import_module(f"{__name__}.{name}"), name, None)
    if not isinstance(op, Op):
        raise ImportError(f"kernels/{name}/__init__.py makes no Op called {name}")
    return op


# Each is imported when it is first asked for: one that is broken harms no other.
ops: Mapping[str, Op] = LoadedWhenAsked(lambda: op_packages(__path__), _load)
