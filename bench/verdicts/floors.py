"""The change of a case that counts as noise: what nothing can be blamed for, however
often it is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchline.bench.store.regressions import ACCURACY, LATENCY, MEMORY, QUANTITIES

_LEAST_SHARE = {LATENCY: 0.01, MEMORY: 0.01, ACCURACY: 0.1}
_LEAST_STEP = {
    LATENCY: (1e-6, "1 µs"),
    MEMORY: (2**16, "64 KiB"),
    ACCURACY: (0.01, "1% of the tolerance"),
}


@dataclass(frozen=True)
class Floor:
    """`share` is the largest change, of the base's value, that counts as noise;
    `source` says where it comes from.
    """

    share: float
    source: str


def floor(quantity: str, median: float, noise_share: float | None = None) -> Floor:
    """The largest of three: the quantity's least share, this case's A/A, and an
    absolute step over its median.

    `median` is the base's in the quantity's unit: seconds, bytes, or the error against
    fp64 as a share of the tolerance. `noise_share` is the 99th percentile of this
    case's A/A changes on this machine, None if not known.

    Raises:
        ValueError: if the quantity is not known, the median is not positive, the noise
            is negative, or one is not finite.
    """
    if quantity not in QUANTITIES:
        raise ValueError(f"no floor for {quantity!r}: one of {', '.join(QUANTITIES)}")
    if not 0 < median < math.inf or not (
        noise_share is None or 0 <= noise_share < math.inf
    ):
        raise ValueError(
            f"the {quantity} floor needs a positive median and no negative noise: {median}, {noise_share}"
        )
    step, in_words = _LEAST_STEP[quantity]
    candidates = [
        Floor(_LEAST_SHARE[quantity], "least"),
        Floor(step / median, in_words),
    ]
    if noise_share is not None:
        candidates.append(Floor(noise_share, "A/A"))
    return max(candidates, key=lambda one: one.share)
