"""Gradient noise: its estimates from {ḡ, n, d}, the workloads it is measured on, and
the meter for a loop of your own.

`from batchline import NoiseMeter` is all that a training loop needs; nothing is
imported before it is asked for.
"""


def __getattr__(name: str):
    if name == "NoiseMeter":  # lazy: the estimators beside it need no torch
        from batchline.bench.noise.meter import NoiseMeter

        return NoiseMeter
    if name == "GradientNorms":
        from batchline.bench.noise.meter.gradient_norms import GradientNorms

        return GradientNorms
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
