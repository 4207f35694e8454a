"""Batchline: what does the batch size do to kernels and to training? Measured, on this
machine.

`from batchline import NoiseMeter` meters the gradient noise of a training loop, and
`batchline.advise(times, readings)` gives the batch size that follows;
`batchline.load(folder)` reads a stored run; `batchline.kernels` has the ops,
`batchline.bench` what measures them. Each is imported when it is asked for.
"""

from __future__ import annotations

import importlib
import os

from batchline import own_ops, places

__version__ = "0.1.0"

_WHERE = {
    "GradientNorms": "batchline.bench.noise",
    "NoiseMeter": "batchline.bench.noise",
    "advise": "batchline.bench.noise.own_loop",
    "Op": "batchline.kernels.op",
    "load": "batchline.bench.store",
}

if places.IS_CHECKOUT:  # where kernels/ and bench/ lie beside this folder, not below
    __path__.append(str(places.CODE))
if os.environ.get(own_ops.VARIABLE):
    own_ops.take_in()

__all__ = ["GradientNorms", "NoiseMeter", "Op", "advise", "load"]


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
