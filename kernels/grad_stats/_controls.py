"""A way to compute gradient statistics that people write and that loses accuracy."""

from __future__ import annotations

import torch

from batchline.kernels.op import Control, Tensors
from batchline.kernels.statistics import errors


def mean_of_squares(g: torch.Tensor) -> Tensors:
    """ḡ and tr Σ = Σ_p (E[g_p²] − ḡ_p²) in fp32, as BackPACK computes its variance: a
    difference, element by element.
    """
    g = g.float()
    mean = g.mean(0)
    return mean, (g.square().mean(0) - mean.square()).sum()


def _errors_of_variance(outputs: Tensors, expected: Tensors) -> dict[str, float]:
    """The errors of ḡ, and of the noise scale that the variance gives.

    The variance is summed over the parameters and has no Bessel factor.
    """
    mean, variance = outputs
    batch = len(expected[1])
    trace = float(variance) * batch / (batch - 1)
    square = float(mean.square().sum()) - trace / batch
    return errors((mean,), expected, noise_scale=trace / square)


CONTROLS = (
    Control(
        mean_of_squares,
        dtypes=("float32", "bfloat16"),
        gives=1,
        errors=_errors_of_variance,
    ),
)
