"""The gradient noise of a training step, measured while the step is taken.

A layer's input and output gradient hold its samples' gradients, so one backward pass is
enough: Batchline's kernels make {ḡ, n, d} of them, and a linear layer takes its own
gradient from there too.
"""

from batchline.bench.noise.meter.meter import NoiseMeter, Reading

__all__ = ["NoiseMeter", "Reading"]
