"""Noise scales that an estimate allows, drawn: how its uncertainty is carried into what
follows from it.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtri

from batchline.bench.noise.estimators import NoiseEstimate


def noise_scales(
    estimate: NoiseEstimate, draws: int, generator: np.random.Generator
) -> np.ndarray:
    """φ[draws] from 0 to infinity, half below the estimate and half above, with its
    interval's ends at their quantiles.

    As in Fieller's interval, what is uncertain is φ itself towards the low end, and 1/φ
    towards the high end: the first may so fall to 0, and the second to an unbounded φ.
    Where the estimate itself is unbounded, 1/φ is for both. Resampling the batches
    instead would be too sure of φ: few of them vary less than what they were drawn
    from.
    """
    ranks = (
        generator.permutation(draws) + 0.5
    ) / draws  # evenly spread, so that the ends are no matter of luck
    deviations = ndtri(ranks) / ndtri((1 + estimate.confidence) / 2)  # ±1 at the ends
    middle, low, high = estimate.scale.simple, estimate.simple.low, estimate.simple.high
    with np.errstate(divide="ignore"):
        if estimate.scale.square <= 0:
            inverse = np.where(deviations < 0, -deviations / low, 0)
        else:
            below = np.maximum(middle + (middle - low) * np.minimum(deviations, 0), 0)
            above = 1 / middle - (1 / middle - 1 / high) * np.maximum(deviations, 0)
            inverse = np.where(deviations < 0, 1 / below, np.maximum(above, 0))
        return 1 / inverse
