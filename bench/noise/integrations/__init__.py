"""NoiseMeter in the training loops of other libraries, each imported by whoever asks
for its callback.
"""

from __future__ import annotations

import importlib

_WHERE = {"TrainerNoise": "trainer", "LightningNoise": "lightning"}

__all__ = list(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
