"""Estimates of the gradient noise scale from the statistics of one batch of per-sample gradients."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class NoiseScale:
    """What one batch says of the noise of its gradients: S and G2 of McCandlish et al. 2018, arXiv:1812.06162, app. A.

    `trace` estimates tr Σ, the summed variance of one sample's gradient, and `square` estimates ‖G‖², of the true
    gradient. Both are unbiased, so either may come out negative: nothing is clamped.
    """

    trace: float
    square: float

    @property
    def simple(self) -> float:
        """B_simple = tr Σ/‖G‖², a ratio and so not unbiased; infinite where ‖G‖² is estimated at exactly 0."""
        return self.trace / self.square if self.square else self.trace * math.inf


def noise_scale(mean_square: float, squared_norms: Sequence[float]) -> NoiseScale:
    """The noise scale of a batch from M = ‖ḡ‖² and n_b = ‖g_b‖² of its B samples.

    S = (n̄ − M)·B/(B−1) and G2 = (B·M − n̄)/(B−1), n̄ the mean of n: appendix A's two batch sizes are 1 and B here.

    Raises:
        ValueError: of fewer than two samples, from which no variance can be had.
    """
    batch = len(squared_norms)
    if batch < 2:
        raise ValueError(f"a noise scale needs two samples or more, and this batch has {batch}")
    mean_norm = math.fsum(squared_norms) / batch
    return NoiseScale(trace=(mean_norm - mean_square) * batch / (batch - 1),
                      square=(batch * mean_square - mean_norm) / (batch - 1))
