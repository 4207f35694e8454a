"""NoiseMeter in the loops of other libraries: `TrainerNoise` for transformers' Trainer,
`LightningNoise` for Lightning's. Each library is imported when its callback is asked
for.
"""

import importlib


def __getattr__(name: str):
    module = importlib.import_module("batchline.bench.noise.integrations")
    try:
        return getattr(module, name)
    except AttributeError:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message) from None
